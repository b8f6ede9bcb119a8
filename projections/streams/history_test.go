package streams_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/imgsrv/imgsrv/events"
)

// history is a stream in memory that the rules of package events fill.
type history struct {
	t       testing.TB
	now     time.Time
	events  []events.Event
	batches [][]events.Change // what made them, each to be appended at once
}

func newHistory(t testing.TB) *history { return &history{t: t, now: noon(0)} }

// last is the state of an entity; of no facts, the zero value.
func last[S any](h *history, of events.Entity) events.Current[S] {
	var current events.Current[S]
	for _, e := range h.events {
		if e.Subject == of.Subject() {
			current = events.Current[S]{State: events.Fold(current.State, e.Fact), Sequence: e.Sequence, Event: e}
		}
	}
	return current
}

// add appends a decision as the stream would: each fact only where its entity is as it was when the rule decided.
func (h *history) add(changes []events.Change, err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
	h.batches = append(h.batches, changes)
	for _, c := range changes {
		subject := c.Fact.Entity().Subject()
		var at events.Sequence
		for _, e := range h.events {
			if e.Subject == subject {
				at = e.Sequence
			}
		}
		if at != c.Expect {
			h.t.Fatalf("%s expects sequence %d of %s, which is at %d", c.Fact.Type(), c.Expect, subject, at)
		}
		h.events = append(h.events, events.Event{Meta: events.Meta{Time: h.now}, Sequence: events.Sequence(len(h.events) + 1),
			Subject: subject, Type: c.Fact.Type(), Fact: c.Fact})
	}
}

// variant declares a variant with metadata and a root; bytes are told apart by the given text.
func variant(kind events.VariantType, flavour, bytes string) events.UploadVariant {
	root := map[events.VariantType]string{vm: "disk.qcow2", container: "rootfs.squashfs"}[kind]
	return events.UploadVariant{
		Variant: events.Variant{Architecture: "amd64", Type: kind, Flavour: flavour},
		Files: []events.UploadFile{
			{Format: events.FormatMetadata, Size: 700, State: events.FilePresent, Digest: events.Digest("sha256:" + digest("metadata of "+bytes))},
			{Format: root, Size: 196608, State: events.FilePresent, Digest: events.Digest("sha256:" + digest("root of "+bytes)),
				Combined: events.Digest("sha256:" + digest(bytes))},
		},
	}
}

// publish takes a session through all its facts to the published version. Where it wants another visibility than the image has, the
// image's is changed first.
func (h *history) publish(u events.Upload) {
	h.t.Helper()
	u.ID = uuid.Must(uuid.NewV7()).String()
	u.InitiatedAt, u.InitiatedBy = h.now, "admin"
	if u.Visibility == "" {
		u.Visibility = events.Public
	}
	if image := last[events.Image](h, events.ImageEntity(u.Image)); image.Sequence != 0 && image.State.Visibility != u.Visibility {
		h.add(events.ChangeVisibility(image, u.Visibility))
	}
	version := func() events.Current[events.Version] {
		return last[events.Version](h, events.VersionEntity(u.Image, u.Version))
	}
	aliases := map[string]events.Current[events.Alias]{}
	for _, name := range u.Aliases {
		aliases[name] = last[events.Alias](h, events.AliasEntity(u.Image, name))
	}
	present := map[events.Digest]events.Current[events.Blob]{}
	for _, f := range u.Files() {
		if f.State == events.FilePresent {
			blob := last[events.Blob](h, events.BlobEntity(f.Digest))
			h.add(events.PromoteBlob(events.Blob{Digest: f.Digest, Size: f.Size}, blob), nil)
			present[f.Digest] = last[events.Blob](h, events.BlobEntity(f.Digest))
		}
	}
	h.add(events.Initiate(events.InitiateUpload{Session: u, Present: present, Version: version(), Image: last[events.Image](h, events.ImageEntity(u.Image)),
		IsArchitecture: func(string) bool { return false }}))
	h.add(events.CompleteUpload(last[events.Upload](h, events.UploadEntity(u.ID)), h.now))
	session := last[events.Upload](h, events.UploadEntity(u.ID))
	job := func() events.Current[events.Job] {
		return last[events.Job](h, events.JobEntity(session.State.JobID))
	}
	for _, step := range events.Steps() {
		h.add(events.StartStep(job(), step, h.now))
		if step == events.StepPublish {
			break
		}
		h.add(events.CompleteStep(job(), step, job().State.Files, h.now))
	}
	h.add(events.Publish(events.PublishVersion{Job: job(), Upload: session.State, Version: version(),
		Image: last[events.Image](h, events.ImageEntity(u.Image)), Aliases: aliases, At: h.now}))
}

func (h *history) moveAlias(image, alias, version string) {
	h.t.Helper()
	h.add(events.MoveAlias(image, alias, version, last[events.Version](h, events.VersionEntity(image, version)),
		last[events.Image](h, events.ImageEntity(image)), last[events.Version](h, events.VersionEntity(image, alias)),
		false, last[events.Alias](h, events.AliasEntity(image, alias))))
}

func (h *history) removeAlias(image, alias string) {
	h.t.Helper()
	h.add(events.RemoveAlias(last[events.Alias](h, events.AliasEntity(image, alias)), image, alias))
}

// tick lets time pass, so that what follows happens in another second.
func (h *history) tick() { h.now = h.now.Add(1500 * time.Millisecond) }

func (h *history) String() string {
	text := ""
	for _, e := range h.events {
		text += fmt.Sprintf("%d %s %s\n", e.Sequence, e.Type, e.Subject)
	}
	return text
}

// withdrawOrRestore withdraws a published version, its aliases go; a withdrawn one it restores.
func (h *history) withdrawOrRestore(image, version string) {
	h.t.Helper()
	current := last[events.Version](h, events.VersionEntity(image, version))
	if current.State.State == events.StateWithdrawn {
		h.add(events.Restore(current, "admin", h.now))
		return
	}
	h.add(events.Withdraw(events.WithdrawVersion{Withdrawal: events.Withdrawal{Reason: "bad", By: "admin", At: h.now}, Version: current, RemoveAliases: true,
		Aliases: []events.Current[events.Alias]{last[events.Alias](h, events.AliasEntity(image, latestAlias))}}))
}

const latestAlias = "latest"
