package events

import (
	"slices"
	"strings"
	"time"
)

// MaxReasonBytes bounds the reason of a withdrawal.
const MaxReasonBytes = 1000

// Withdrawal says why a version can't be had any more.
type Withdrawal struct {
	Reason string    `json:"reason"`
	By     string    `json:"by"` // a principal's name, or imgsrv for retention
	At     time.Time `json:"at"`
	// CollectedAt is since when the version can't be restored: it needs its bytes no more, and they may be gone.
	CollectedAt time.Time `json:"collected_at,omitzero"`
}

// Restoration says who undid a withdrawal.
type Restoration struct {
	By string    `json:"by"`
	At time.Time `json:"at"`
}

// WithdrawVersion is the command to withdraw a version.
type WithdrawVersion struct {
	Withdrawal
	Version Current[Version]
	// Aliases are those of the image, at least all that name the version.
	Aliases []Current[Alias]
	// MoveTo, where not empty, is the version that these aliases are to name from then on, and Target its state.
	MoveTo string
	Target Current[Version]
	// RemoveAliases ends them instead.
	RemoveAliases bool
}

// Withdraw decides to take a published version out of lists and streams. To withdraw it again changes nothing. The
// aliases that name it move or end in the same batch, or stand in the way.
//
// That no alias is pointed at the version between the reading of its aliases and this batch is held by the version's
// subject: whatever points an alias at a version has a fact of that version in its batch.
func Withdraw(cmd WithdrawVersion) ([]Change, error) {
	v := cmd.Version.State
	if v.State == StateWithdrawn {
		return nil, nil
	}
	if v.State != StatePublished {
		return nil, Refuse(CodeNotFound, "there is no such published version")
	}
	if err := checkWithdrawal(cmd); err != nil {
		return nil, err
	}
	var changes []Change
	var names []string
	for _, alias := range cmd.Aliases {
		if alias.State.Version != v.Version || alias.State.Image != v.Image {
			continue
		}
		names = append(names, alias.State.Alias)
		switch {
		case cmd.RemoveAliases:
			changes = append(changes, Change{Fact: AliasRemoved{Alias{Image: v.Image, Alias: alias.State.Alias}}, Expect: alias.Sequence})
		case cmd.MoveTo != "":
			next := Alias{Image: v.Image, Alias: alias.State.Alias, Version: cmd.MoveTo, UploadID: cmd.Target.State.UploadID}
			changes = append(changes, Change{Fact: move(alias, next, MovedByHand), Expect: alias.Sequence})
		}
	}
	if len(names) > 0 && len(changes) == 0 {
		slices.Sort(names)
		return nil, Refuse(CodeAliasInUse, "version %s of image %s is named by %s: move what names it to another version, or remove it, in the same request", v.Version, v.Image, strings.Join(names, ", "))
	}
	if cmd.MoveTo != "" && len(names) > 0 {
		changes = append(changes, Change{Fact: VersionNamed{cmd.Target.State}, Expect: cmd.Target.Sequence})
	}
	withdrawal := cmd.Withdrawal
	v.State, v.Withdrawal, v.Restoration = StateWithdrawn, &withdrawal, nil
	return append(changes, Change{Fact: VersionWithdrawn{v}, Expect: cmd.Version.Sequence}), nil
}

func checkWithdrawal(cmd WithdrawVersion) error {
	var c checker
	c.text("reason", cmd.Reason, MaxReasonBytes)
	if strings.TrimSpace(cmd.Reason) == "" {
		c.fail("reason", "", "a withdrawal has a reason, for those who still ask for the version")
	}
	if cmd.MoveTo != "" && cmd.RemoveAliases {
		c.fail("remove_alias", "", "aliases are either moved or removed")
	}
	if cmd.MoveTo == cmd.Version.State.Version {
		c.fail("move_alias", cmd.MoveTo, "aliases are moved to another version than the withdrawn one")
	}
	if err := c.refusal(); err != nil {
		return err
	}
	if cmd.MoveTo != "" && cmd.Target.State.State != StatePublished {
		return Refuse(CodeNotFound, "image %s has no published version %s", cmd.Version.State.Image, cmd.MoveTo)
	}
	return nil
}

// Restore decides to undo a withdrawal. Where the version is published nothing has to happen; where its bytes have been
// collected nothing can.
func Restore(version Current[Version], by string, at time.Time) ([]Change, error) {
	v := version.State
	switch v.State {
	case StatePublished:
		return nil, nil
	case StateWithdrawn:
		if v.Withdrawal != nil && !v.Withdrawal.CollectedAt.IsZero() {
			return nil, Refuse(CodeCollected, "version %s of image %s can't be restored: its bytes have been collected since %s: publish it under another version name", v.Version, v.Image, v.Withdrawal.CollectedAt.UTC().Format(time.RFC3339))
		}
		v.State, v.Withdrawal, v.Restoration = StatePublished, nil, &Restoration{By: by, At: at}
		return []Change{{Fact: VersionRestored{v}, Expect: version.Sequence}}, nil
	}
	return nil, Refuse(CodeNotFound, "there is no such withdrawn version")
}

// CollectVersion decides that a withdrawn version needs its bytes no more. Whoever restores it in the same moment is
// right, or is refused: both are facts of the version. No change for a version that isn't withdrawn, or was collected.
func CollectVersion(version Current[Version], at time.Time) []Change {
	v := version.State
	if v.State != StateWithdrawn || v.Withdrawal == nil || !v.Withdrawal.CollectedAt.IsZero() {
		return nil
	}
	withdrawal := *v.Withdrawal
	withdrawal.CollectedAt = at
	v.Withdrawal = &withdrawal
	return []Change{{Fact: VersionCollected{v}, Expect: version.Sequence}}
}
