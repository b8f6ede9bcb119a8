package eventstest

import (
	"maps"
	"slices"

	"github.com/imgsrv/imgsrv/events"
)

// Aliases are the current states of all aliases of an image, removed ones too, by name.
func (h *History) Aliases(image string) []events.Current[events.Alias] {
	names := map[string]bool{}
	for _, event := range h.Events {
		if fact, ok := event.Fact.(events.AliasFact); ok && fact.After().Image == image {
			names[fact.After().Alias] = true
		}
	}
	var out []events.Current[events.Alias]
	for _, name := range slices.Sorted(maps.Keys(names)) {
		out = append(out, h.Alias(image, name))
	}
	return out
}

// Withdraw withdraws a version. Aliases that name it move to the version moveTo, or are removed, or stand in the way.
func (h *History) Withdraw(tb TB, image, version, moveTo string, removeAliases bool) error {
	tb.Helper()
	cmd := events.WithdrawVersion{Withdrawal: events.Withdrawal{Reason: "it is \"bad\" é", By: "publisher", At: h.now}, Version: h.Version(image, version),
		Aliases: h.Aliases(image), MoveTo: moveTo, RemoveAliases: removeAliases}
	if moveTo != "" {
		cmd.Target = h.Version(image, moveTo)
	}
	return h.decide(tb)(events.Withdraw(cmd))
}

// Restore undoes a withdrawal.
func (h *History) Restore(tb TB, image, version string) error {
	tb.Helper()
	return h.decide(tb)(events.Restore(h.Version(image, version), "publisher", h.now))
}

// SetPolicy gives an image a policy.
func (h *History) SetPolicy(tb TB, image string, policy events.Policy) error {
	tb.Helper()
	return h.decide(tb)(events.SetPolicy(h.Image(image), policy))
}

// ChangeVisibility changes who may see an image.
func (h *History) ChangeVisibility(tb TB, image string, visibility events.Visibility) error {
	tb.Helper()
	return h.decide(tb)(events.ChangeVisibility(h.Image(image), visibility))
}
