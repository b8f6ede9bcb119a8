package events

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// DerivedKind is what a derived file is.
type DerivedKind string

// The two kinds.
const (
	DerivedFormat DerivedKind = "format" // the same disk in another form
	DerivedDelta  DerivedKind = "delta"  // what turns an earlier version's file into this version's
)

// DerivedState is where a derived file stands.
type DerivedState string

// The states. One that failed and is to be tried again has a RetryAt; one that has none waits to be asked for again.
const (
	DerivedIsRequested DerivedState = "requested"
	DerivedIsMade      DerivedState = "made"
	DerivedHasFailed   DerivedState = "failed"
	DerivedIsSkipped   DerivedState = "skipped" // it was optional and can't be made here
	DerivedIsRemoved   DerivedState = "removed"
)

// Derived is a file that is made from a published version's, after the publication: the manifest never changes.
type Derived struct {
	Image       string         `json:"image"`
	Version     string         `json:"version"`
	Variant     string         `json:"variant"`
	Format      string         `json:"format"`
	Kind        DerivedKind    `json:"kind"`
	State       DerivedState   `json:"state"`
	Optional    bool           `json:"optional,omitempty"` // skipped where there is no tool for it, or nothing to make it of
	RequestedBy string         `json:"requested_by,omitempty"`
	RequestedAt time.Time      `json:"requested_at,omitzero"`
	Attempts    int            `json:"attempts,omitempty"` // that failed, since it was asked for
	RetryAt     time.Time      `json:"retry_at,omitzero"`  // when a failed one is tried again
	Problem     *Problem       `json:"problem,omitempty"`  // why it failed or was skipped
	Digest      Digest         `json:"digest,omitempty"`   // of the file, once it is made
	Size        int64          `json:"size,omitempty"`     // bytes
	MediaType   string         `json:"media_type,omitempty"`
	From        *DerivedSource `json:"from,omitempty"`         // what it was made from
	BaseVersion string         `json:"base_version,omitempty"` // of a delta: the earlier version
	BaseDigest  Digest         `json:"base_digest,omitempty"`  // of a delta: that version's file
	How         *DerivedHow    `json:"how,omitempty"`
	MadeAt      time.Time      `json:"made_at,omitzero"`
	RemovedBy   string         `json:"removed_by,omitempty"`
	RemovedAt   time.Time      `json:"removed_at,omitzero"`
}

// DerivedSource is a file of the same variant.
type DerivedSource struct {
	Format string `json:"format"`
	Digest Digest `json:"digest"`
}

// DerivedHow says how a file was made, for people.
type DerivedHow struct {
	Tool        string `json:"tool"`         // qemu-img, or imgsrv for what it does by itself
	ToolVersion string `json:"tool_version"` // as the tool says it
	Arguments   string `json:"arguments"`    // with the formats' names where the files were
	Verified    string `json:"verified"`     // how the result was compared with its source
}

// The facts of a derived file.
type (
	// DerivedRequested asks for the file, or for it again; in one batch with VersionPublished where the publisher
	// or the image's policy wants it.
	DerivedRequested struct{ Derived }
	// DerivedMade says that the file is a blob, verified; in one batch with BlobPromoted, where that is new.
	DerivedMade struct{ Derived }
	// DerivedFailed says that an attempt failed; another follows at RetryAt, or none.
	DerivedFailed struct{ Derived }
	// DerivedSkipped says that the file was optional, and that its tool is absent or that there is nothing to make it of.
	DerivedSkipped struct{ Derived }
	// DerivedRemoved takes the file out of its version.
	DerivedRemoved struct{ Derived }
)

// DerivedFact is any fact of a derived file.
type DerivedFact = FactOf[Derived]

// After is the derived file after the fact.
func (d Derived) After() Derived { return d }

// Entity names the derived file.
func (d Derived) Entity() Entity { return DerivedEntity(d.Image, d.Version, d.Variant, d.Format) }

// Type names the fact's type.
func (DerivedRequested) Type() Type { return "imgsrv.derived.requested.v1" }

// Type names the fact's type.
func (DerivedMade) Type() Type { return "imgsrv.derived.made.v1" }

// Type names the fact's type.
func (DerivedFailed) Type() Type { return "imgsrv.derived.failed.v1" }

// Type names the fact's type.
func (DerivedSkipped) Type() Type { return "imgsrv.derived.skipped.v1" }

// Type names the fact's type.
func (DerivedRemoved) Type() Type { return "imgsrv.derived.removed.v1" }

// rawDisk is the one name of a format that is taken for a raw disk: its content has no mark.
const rawDisk = "disk.raw"

// SourceDisk picks the disk that further formats are made of: a qcow2 whose header was read at the publication, so
// that it needs no other file, the variant's root first; else a raw disk. ok is false where there is none.
func (v *ManifestVariant) SourceDisk() (disk ManifestFormat, ok bool) {
	for _, f := range v.Formats {
		switch {
		case f.Disk != nil && f.Disk.Encrypted:
		case f.Disk != nil && (!ok || disk.Disk == nil || f.Format == v.Root), f.Format == rawDisk && !ok:
			disk, ok = f, true
		}
	}
	return disk, ok
}

// MaxDerive bounds the formats that a session asks for.
const MaxDerive = 20

func (c *checker) derive(formats []string) {
	if len(formats) > MaxDerive {
		c.fail("derive", "", fmt.Sprintf("a session asks for at most %d formats", MaxDerive))
	}
	for i, format := range formats {
		c.name(fmt.Sprintf("derive[%d]", i), format, CheckFormatName)
		if slices.Contains(formats[:i], format) {
			c.fail(fmt.Sprintf("derive[%d]", i), format, "a format is asked for once")
		}
	}
}

// deriveAtPublication asks for the formats that the session or the image's policy wants of each variant with a disk. Of others,
// such as containers and encrypted disks, none can be made: a policy passes over them, also where it says required, for it is about what
// can be made of a version, not about what a version has to have.
// There was nothing to make any of it from before, so that the entities are new.
func deriveAtPublication(m *Manifest, u Upload, policy *Policy, at time.Time) []Change {
	var changes []Change
	for _, v := range m.Variants {
		if _, ok := v.SourceDisk(); !ok {
			continue
		}
		asked := map[string]bool{}
		ask := func(format string, optional bool, by string) {
			if _, published := m.Format(v.Name(), format); published || asked[format] {
				return
			}
			asked[format] = true
			changes = append(changes, Change{Fact: DerivedRequested{Derived{Image: m.Image, Version: m.Version, Variant: v.Name(), Format: format,
				Kind: DerivedFormat, State: DerivedIsRequested, Optional: optional, RequestedBy: by, RequestedAt: at}}})
		}
		for _, format := range u.Derive {
			ask(format, false, u.InitiatedBy)
		}
		if policy != nil {
			for _, f := range policy.Formats {
				ask(f.Format, !f.Required, byPolicy)
			}
		}
	}
	return changes
}

// byPolicy is who asks for what an image's policy wants: the server by itself.
const byPolicy = "imgsrv"

// Pending says whether the file is still to be made without anybody's asking again.
func (d Derived) Pending() bool {
	return d.State == DerivedIsRequested || d.State == DerivedHasFailed && !d.RetryAt.IsZero()
}

// RequestDerived is the command that asks for a derived file.
type RequestDerived struct {
	Image, Name     string // of the version
	Variant, Format string
	Kind            DerivedKind
	Optional        bool
	Version         Current[Version]
	By              string
	At              time.Time
}

// Derive decides to make a derived file, or to try again where that failed. What is on its way already, or
// made, is no change. Whether imgsrv knows how to make the format is not for a rule to say.
func Derive(cmd RequestDerived, current Current[Derived]) ([]Change, error) {
	if err := needVariant(cmd.Version, cmd.Image, cmd.Name, cmd.Variant); err != nil {
		return nil, err
	}
	if err := CheckFormatName(cmd.Format); err != nil {
		return nil, &Error{Code: CodeInvalid, Text: "format: " + err.Error(), Fields: []FieldError{{Field: "format", Text: err.Error(), Value: cmd.Format}}}
	}
	if _, ok := cmd.Version.State.Manifest.Format(cmd.Variant, cmd.Format); ok {
		return nil, Refuse(CodeFormatExists, "version %s of image %s was published with %s of %s", cmd.Name, cmd.Image, cmd.Format, cmd.Variant)
	}
	if d := current.State; d.State == DerivedIsMade || d.State == DerivedIsRequested {
		return nil, nil
	}
	next := Derived{Image: cmd.Image, Version: cmd.Name, Variant: cmd.Variant, Format: cmd.Format, Kind: cmd.Kind, State: DerivedIsRequested,
		Optional: cmd.Optional, RequestedBy: cmd.By, RequestedAt: cmd.At}
	return []Change{{Fact: DerivedRequested{next}, Expect: current.Sequence}}, nil
}

func needVariant(v Current[Version], image, version, variant string) error {
	if v.State.State != StatePublished || v.State.Manifest == nil {
		return Refuse(CodeNotFound, "image %s has no published version %s", image, version)
	}
	for _, have := range v.State.Manifest.Variants {
		if have.Name() == variant {
			return nil
		}
	}
	return Refuse(CodeNotFound, "version %s of image %s has no variant %s", version, image, variant)
}

// RecordDerived decides to record a derived file whose bytes are a blob; made needs its names, kind, bytes, source and
// how it was made, and the rest is as it was asked for. Nobody need have asked. No change where one is recorded
// already: it is the same disk.
func RecordDerived(made Derived, version Current[Version], current Current[Derived]) ([]Change, error) {
	if err := needVariant(version, made.Image, made.Version, made.Variant); err != nil {
		return nil, err
	}
	switch {
	case made.Digest == "" || made.Size <= 0 || made.From == nil || made.How == nil:
		return nil, fmt.Errorf("record %s: its digest, size, source and how it was made are all needed", made.Entity().ID)
	case made.Kind == DerivedDelta && (made.BaseVersion == "" || made.BaseDigest == ""):
		return nil, fmt.Errorf("record %s: a delta has a base", made.Entity().ID)
	}
	if current.State.State == DerivedIsMade {
		return nil, nil
	}
	made.State, made.Problem, made.RetryAt, made.RemovedBy, made.RemovedAt = DerivedIsMade, nil, time.Time{}, "", time.Time{}
	made.Optional, made.Attempts = current.State.Optional, current.State.Attempts
	made.RequestedBy, made.RequestedAt = current.State.RequestedBy, current.State.RequestedAt
	return []Change{{Fact: DerivedMade{made.Plain()}, Expect: current.Sequence}}, nil
}

// FailDerived decides that an attempt at a pending file failed: another follows at retryAt, or, where that is zero,
// none before somebody asks again. No change where the file isn't pending any more.
func FailDerived(current Current[Derived], problem Problem, retryAt time.Time) []Change {
	if !current.State.Pending() {
		return nil
	}
	next := current.State
	next.State, next.Problem, next.RetryAt = DerivedHasFailed, &problem, retryAt
	next.Attempts++
	return []Change{{Fact: DerivedFailed{next.Plain()}, Expect: current.Sequence}}
}

// SkipDerived decides to do without a pending file that is optional.
func SkipDerived(current Current[Derived], problem Problem) []Change {
	if !current.State.Pending() || !current.State.Optional {
		return nil
	}
	next := current.State
	next.State, next.Problem, next.RetryAt = DerivedIsSkipped, &problem, time.Time{}
	return []Change{{Fact: DerivedSkipped{next.Plain()}, Expect: current.Sequence}}
}

// Plain is the derived file without what a tool may have said and PostgreSQL can't hold.
func (d Derived) Plain() Derived {
	plain := func(s string) string { return strings.ToValidUTF8(strings.ReplaceAll(s, "\x00", "\uFFFD"), "\uFFFD") }
	if d.Problem != nil {
		problem := *d.Problem
		problem.Detail = plain(problem.Detail)
		d.Problem = &problem
	}
	if d.How != nil {
		d.How = &DerivedHow{plain(d.How.Tool), plain(d.How.ToolVersion), plain(d.How.Arguments), plain(d.How.Verified)}
	}
	return d
}

// RemoveDerived decides to take a derived file out of its version, whether it is made or not.
func RemoveDerived(current Current[Derived], by string, at time.Time) ([]Change, error) {
	next := current.State
	if current.Sequence == 0 || next.State == DerivedIsRemoved {
		return nil, Refuse(CodeNotFound, "there is no such derived file")
	}
	next.State, next.RetryAt, next.RemovedBy, next.RemovedAt = DerivedIsRemoved, time.Time{}, by, at
	return []Change{{Fact: DerivedRemoved{next}, Expect: current.Sequence}}, nil
}
