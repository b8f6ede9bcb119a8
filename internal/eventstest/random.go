package eventstest

import (
	"errors"

	"pgregory.net/rapid"

	"github.com/imgsrv/imgsrv/events"
)

// Draw makes a random valid history of about n decisions over few images, versions and aliases, so that they
// meet: sessions that are aborted, jobs that fail and are retried, aliases that move and end. What the rules
// refuse leaves no trace.
func Draw(t *rapid.T, n int) *History {
	h := New()
	images := rapid.SampledFrom([]string{"debian-bookworm", "alpine", "a.b_c-d"})
	versions := rapid.SampledFrom([]string{"1", "2", "12.5.0", "3~rc1+b"})
	aliases := rapid.SampledFrom([]string{"latest", "stable", "edge"})
	actions := rapid.SampledFrom([]string{"initiate", "file", "file", "complete", "advance", "advance", "advance", "finish", "finish",
		"abort", "expire", "fail step", "fail job", "retry", "cancel", "move alias", "remove alias", "skip event", "webhook", "delivery", "delivery", "delivery", "delivery", "subscriber",
		"mirror", "mirror", "mirror", "access", "access", "withdraw", "withdraw", "restore", "collect", "policy", "visibility", "derived", "derived", "derived", "damage"})
	for range n {
		action := actions.Draw(t, "action")
		if action == "initiate" || len(h.ids) == 0 {
			_, err := h.Initiate(t, drawSession(t, images.Draw(t, "image"), versions.Draw(t, "version"), aliases))
			ignoreRefusal(t, err)
			continue
		}
		id := rapid.SampledFrom(h.ids).Draw(t, "session")
		job := events.JobIDFor(id)
		ignoreRefusal(t, h.act(t, action, id, job, images, versions, aliases))
	}
	return h
}

func (h *History) act(t *rapid.T, action, id, job string, images, versions, aliases *rapid.Generator[string]) error {
	switch action {
	case "file":
		return h.CompleteFile(t, id)
	case "complete":
		return h.CompleteUpload(t, id)
	case "advance":
		return h.Advance(t, job)
	case "finish": // long ways are seldom walked step by step
		return h.finish(t, id, job)
	case "abort":
		return h.Abort(t, id)
	case "expire":
		return h.Expire(t, id)
	case "fail step":
		h.start(t, id, job)
		return h.FailStep(t, job)
	case "fail job":
		h.start(t, id, job)
		return h.FailJob(t, job, events.Problem{Code: "storage", Detail: "no \x00 space", Final: rapid.Bool().Draw(t, "final")})
	case "retry":
		if h.Job(job).State.State != events.JobStateFailed {
			h.start(t, id, job)
			ignoreRefusal(t, h.FailJob(t, job, events.Problem{Code: "storage", Detail: "no space"}))
		}
		return h.RetryJob(t, job)
	case "cancel":
		ignoreRefusal(t, h.handOver(t, id, job))
		return h.CancelJob(t, job, "operator", "wrong \x00 file")
	case "skip event":
		return h.SkipEvent(t, "elsewhere", h.Head())
	case "webhook":
		return h.webhook(t)
	case "derived":
		return h.derived(t, images.Draw(t, "image"), versions.Draw(t, "version"))
	case "damage":
		return h.damage(t)
	case "access":
		return h.access(t)
	case "mirror":
		return h.mirror(t)
	case "subscriber":
		return h.subscriber(t)
	case "delivery":
		if len(h.hooks) == 0 {
			h.AddWebhook(t)
		}
		return h.deliver(t, h.hooks[len(h.hooks)-1])
	case "withdraw":
		moveTo := rapid.SampledFrom([]string{"", "1", "2", "12.5.0"}).Draw(t, "move to")
		image, version := h.drawVersion(t, events.StatePublished, images, versions)
		return h.Withdraw(t, image, version, moveTo, moveTo == "" && rapid.Bool().Draw(t, "remove aliases"))
	case "restore":
		return h.restoreSome(t, images, versions)
	case "collect":
		h.collect(t, images, versions)
		return nil
	case "policy":
		return h.SetPolicy(t, images.Draw(t, "image"), events.Policy{
			Formats:   []events.PolicyFormat{{Format: "disk.raw.zst", Required: rapid.Bool().Draw(t, "required")}},
			Retention: events.Retention{KeepLast: rapid.IntRange(0, 3).Draw(t, "keep")}})
	case "visibility":
		return h.ChangeVisibility(t, images.Draw(t, "image"), rapid.SampledFrom([]events.Visibility{events.Public, events.Private}).Draw(t, "visibility"))
	case "move alias":
		return h.MoveAlias(t, images.Draw(t, "image"), aliases.Draw(t, "alias"), versions.Draw(t, "version"))
	}
	return h.RemoveAlias(t, images.Draw(t, "image"), aliases.Draw(t, "alias"))
}

// start takes a session to a job with a running step, so that it can fail.
func (h *History) start(t *rapid.T, id, job string) {
	ignoreRefusal(t, h.handOver(t, id, job))
	state := h.Job(job).State
	if step, ok := state.Next(); ok && state.Step(step).State != events.StepRunning {
		ignoreRefusal(t, h.Advance(t, job))
	}
}

// handOver gives a session all its files, and the job the session.
func (h *History) handOver(t *rapid.T, id, job string) error {
	for !h.Upload(id).State.Complete {
		if err := h.CompleteFile(t, id); err != nil {
			return err
		}
	}
	if h.Job(job).Sequence == 0 {
		return h.CompleteUpload(t, id)
	}
	return nil
}

// finish takes a session as far as the rules let it go.
func (h *History) finish(t *rapid.T, id, job string) error {
	if err := h.handOver(t, id, job); err != nil {
		return err
	}
	for {
		if err := h.Advance(t, job); err != nil {
			return err
		}
	}
}

func drawSession(t *rapid.T, image, version string, aliases *rapid.Generator[string]) events.Upload {
	session := Session(image, version, rapid.SliceOfNDistinct(aliases, 0, 2, rapid.ID).Draw(t, "aliases")...)
	session.OS = rapid.SampledFrom([]string{"", "debian", "alpine"}).Draw(t, "os")
	session.Description = rapid.StringMatching(`[a-zé"\\ ]{0,8}`).Draw(t, "description")
	session.Visibility = rapid.SampledFrom([]events.Visibility{events.Public, events.Private}).Draw(t, "visibility")
	session.Derive = rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"disk.vmdk", "disk.raw.zst"}), 0, 2, rapid.ID).Draw(t, "derive")
	if rapid.Bool().Draw(t, "traits") {
		supported := rapid.Bool().Draw(t, "supported")
		session.Traits = events.Traits{ReleaseTitle: "12 (bookworm)", Codename: "bookworm", SupportEOL: "2126-06-30", Supported: &supported,
			Labels: map[string]string{"build": session.Description}, Requirements: map[string]string{"secureboot": "false"}}
	}
	session.Variants[0].Flavour = rapid.SampledFrom([]string{events.DefaultFlavour, "cloud"}).Draw(t, "flavour")
	if rapid.Bool().Draw(t, "container") {
		session.Variants = append(session.Variants, events.UploadVariant{
			Variant: events.Variant{Architecture: "arm64", Type: events.Container, Flavour: events.DefaultFlavour},
			Files: []events.UploadFile{
				{Format: "rootfs.squashfs", Size: 4096, State: events.FilePending},
				{Format: "shared.bin", Size: 7, State: events.FilePresent, Digest: Digest("shared")},
			},
		})
	}
	if rapid.Bool().Draw(t, "unified") {
		session.Variants = append(session.Variants, events.UploadVariant{
			Variant: events.Variant{Architecture: "amd64", Type: events.Container, Flavour: "whole"},
			Files:   []events.UploadFile{{Format: "incus_combined.tar.gz", Size: 4096, State: events.FilePending}},
		})
	}
	for _, name := range rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"sbom.spdx.json", "notes.md", "disk.qcow2"}), 0, 2, rapid.ID).Draw(t, "attachments") {
		session.Attachments = append(session.Attachments, events.UploadFile{Format: name, Size: 300, State: events.FilePending})
	}
	if rapid.Bool().Draw(t, "known attachment") { // one that is a format elsewhere
		session.Attachments = append(session.Attachments, events.UploadFile{Format: "shared.txt", Size: 7, State: events.FilePresent, Digest: Digest("shared")})
	}
	return session
}

// ignoreRefusal lets the rules say no, and nothing else.
func ignoreRefusal(t *rapid.T, err error) {
	var refusal *events.Error
	if err != nil && !errors.As(err, &refusal) {
		t.Fatalf("a rule failed: %v", err)
	}
}

// drawVersion picks a version in some state, where there is one: most names are of no version.
func (h *History) drawVersion(t *rapid.T, state events.VersionState, images, versions *rapid.Generator[string]) (image, version string) {
	var found []events.Version
	for _, event := range h.Events {
		if fact, ok := event.Fact.(events.VersionFact); ok && h.last[fact.Entity()].Sequence == event.Sequence && fact.After().State == state {
			found = append(found, fact.After())
		}
	}
	if len(found) == 0 {
		return images.Draw(t, "image"), versions.Draw(t, "version")
	}
	v := found[rapid.IntRange(0, len(found)-1).Draw(t, "of these versions")]
	return v.Image, v.Version
}

func (h *History) restoreSome(t *rapid.T, images, versions *rapid.Generator[string]) error {
	image, version := h.drawVersion(t, events.StateWithdrawn, images, versions)
	return h.Restore(t, image, version)
}
