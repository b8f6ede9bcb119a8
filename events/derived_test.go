package events

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var derivedAt = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

func publishedWith(formats ...ManifestFormat) Current[Version] {
	v := ManifestVariant{Variant: Variant{Architecture: "amd64", Type: VirtualMachine, Flavour: DefaultFlavour}, Root: "disk.qcow2", Formats: formats}
	m := &Manifest{Image: "debian", Version: "1", Variants: []ManifestVariant{v}}
	return Current[Version]{State: Version{Image: "debian", Version: "1", State: StatePublished, Manifest: m}, Sequence: 5}
}

const derivedVariant = "amd64.virtual-machine.default"

func TestWhatIsAskedForAndWhatIsRefused(t *testing.T) {
	t.Parallel()
	published := publishedWith(ManifestFormat{Format: "disk.qcow2", Disk: &DiskInfo{}})
	reserved := published
	reserved.State.State, reserved.State.Manifest = StateReserved, nil
	ask := RequestDerived{Image: "debian", Name: "1", Variant: derivedVariant, Format: "disk.vmdk", Kind: DerivedFormat, Version: published, By: "ci", At: derivedAt}
	with := func(change func(*RequestDerived)) RequestDerived {
		cmd := ask
		change(&cmd)
		return cmd
	}
	for name, c := range map[string]struct {
		cmd    RequestDerived
		before Derived
		code   Code // "" for no refusal
		facts  int
	}{
		"new":               {cmd: ask, facts: 1},
		"made already":      {cmd: ask, before: Derived{State: DerivedIsMade}},
		"on its way":        {cmd: ask, before: Derived{State: DerivedIsRequested}},
		"failed":            {cmd: ask, before: Derived{State: DerivedHasFailed, Attempts: 3, Problem: &Problem{Final: true}}, facts: 1},
		"to be tried again": {cmd: ask, before: Derived{State: DerivedHasFailed, RetryAt: derivedAt}, facts: 1},
		"skipped":           {cmd: ask, before: Derived{State: DerivedIsSkipped}, facts: 1},
		"removed":           {cmd: ask, before: Derived{State: DerivedIsRemoved}, facts: 1},
		"not published":     {cmd: with(func(c *RequestDerived) { c.Version = reserved }), code: CodeNotFound},
		"another variant":   {cmd: with(func(c *RequestDerived) { c.Variant = "arm64.virtual-machine.default" }), code: CodeNotFound},
		"published with it": {cmd: with(func(c *RequestDerived) { c.Format = "disk.qcow2" }), code: CodeFormatExists},
		"no name":           {cmd: with(func(c *RequestDerived) { c.Format = "../x" }), code: CodeInvalid},
	} {
		current := Current[Derived]{State: c.before}
		if c.before.State != "" {
			current.Sequence = 9
		}
		changes, err := Derive(c.cmd, current)
		if (err != nil) != (c.code != "") || err != nil && !IsCode(err, c.code) || len(changes) != c.facts {
			t.Errorf("%s: %v, %v", name, changes, err)
			continue
		}
		if c.facts == 1 {
			want := Derived{Image: "debian", Version: "1", Variant: derivedVariant, Format: "disk.vmdk", Kind: DerivedFormat, State: DerivedIsRequested, RequestedBy: "ci", RequestedAt: derivedAt}
			if diff := cmp.Diff([]Change{{Fact: DerivedRequested{want}, Expect: current.Sequence}}, changes); diff != "" {
				t.Errorf("%s (-want +got):\n%s", name, diff)
			}
		}
	}
}

func TestADerivedFileKeepsWhoAskedAndLosesItsTroubles(t *testing.T) {
	t.Parallel()
	version := publishedWith(ManifestFormat{Format: "disk.qcow2", Disk: &DiskInfo{}})
	current := Current[Derived]{Sequence: 7, State: Derived{Image: "debian", Version: "1", Variant: derivedVariant, Format: "disk.vmdk", Kind: DerivedFormat,
		State: DerivedIsRequested, Optional: true, RequestedBy: "ci", RequestedAt: derivedAt}}
	failed := FailDerived(current, Problem{Code: "tool-failed", Detail: "a \x00 b"}, derivedAt)
	if len(failed) != 1 {
		t.Fatalf("failed: %v", failed)
	}
	after := failed[0].Fact.(DerivedFailed).Derived
	if !after.Pending() || after.Attempts != 1 || after.Problem.Detail != "a \uFFFD b" {
		t.Errorf("after a failure: %+v, %+v", after, after.Problem)
	}
	current = Current[Derived]{State: after, Sequence: 8}
	made := Derived{Image: "debian", Version: "1", Variant: derivedVariant, Format: "disk.vmdk", Kind: DerivedFormat, Digest: "sha256:x", Size: 1,
		From: &DerivedSource{}, How: &DerivedHow{}, MadeAt: derivedAt}
	changes, err := RecordDerived(made, version, current)
	if err != nil || len(changes) != 1 {
		t.Fatalf("made: %v, %v", changes, err)
	}
	got := changes[0].Fact.(DerivedMade).Derived
	if got.State != DerivedIsMade || got.RequestedBy != "ci" || !got.Optional || got.Attempts != 1 || got.Problem != nil || !got.RetryAt.IsZero() || got.Pending() {
		t.Errorf("made is %+v", got)
	}
	current = Current[Derived]{State: got, Sequence: 9}
	for what, changes := range map[string][]Change{
		"fails": FailDerived(current, Problem{}, time.Time{}), "is skipped": SkipDerived(current, Problem{}),
	} {
		if len(changes) != 0 {
			t.Errorf("what is made %s: %v", what, changes)
		}
	}
	if changes, err := RecordDerived(made, version, current); len(changes) != 0 || err != nil {
		t.Errorf("made again: %v, %v", changes, err)
	}
	delta := made
	delta.Kind = DerivedDelta
	if _, err := RecordDerived(delta, version, Current[Derived]{}); err == nil {
		t.Error("a delta without a base is recorded")
	}
	removed, err := RemoveDerived(current, "ci", derivedAt)
	if err != nil || removed[0].Fact.(DerivedRemoved).State != DerivedIsRemoved {
		t.Errorf("removed: %v, %v", removed, err)
	}
	if _, err := RemoveDerived(Current[Derived]{}, "ci", derivedAt); !IsCode(err, CodeNotFound) {
		t.Errorf("what isn't there is removed: %v", err)
	}
}

func TestTheSourceOfFurtherFormats(t *testing.T) {
	t.Parallel()
	qcow2, locked := &DiskInfo{}, &DiskInfo{Encrypted: true}
	for name, c := range map[string]struct {
		formats []ManifestFormat
		want    string // "" for none
	}{
		"the root":          {[]ManifestFormat{{Format: "other.qcow2", Disk: qcow2}, {Format: "disk.qcow2", Disk: qcow2}, {Format: "disk.raw"}}, "disk.qcow2"},
		"another qcow2":     {[]ManifestFormat{{Format: "disk.raw"}, {Format: "other.qcow2", Disk: qcow2}}, "other.qcow2"},
		"a raw disk":        {[]ManifestFormat{{Format: "notes.txt"}, {Format: "disk.raw"}}, "disk.raw"},
		"nothing to read":   {[]ManifestFormat{{Format: "disk.qcow2", Disk: locked}, {Format: "rootfs.squashfs"}}, ""},
		"raw beside locked": {[]ManifestFormat{{Format: "disk.qcow2", Disk: locked}, {Format: "disk.raw"}}, "disk.raw"},
	} {
		v := ManifestVariant{Root: "disk.qcow2", Formats: c.formats}
		if got, ok := v.SourceDisk(); got.Format != c.want || ok != (c.want != "") {
			t.Errorf("%s: %q, %v", name, got.Format, ok)
		}
	}
}
