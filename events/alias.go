package events

import "slices"

// Alias is a movable name for a published version. A removed alias has no Version.
type Alias struct {
	Image    string `json:"image"`
	Alias    string `json:"alias"`
	Version  string `json:"version,omitempty"`
	UploadID string `json:"upload_id,omitempty"` // session of the version it names; UUIDv7s order in time
	JobID    string `json:"job_id,omitempty"`    // the publication that moved it; "" when moved by hand
}

// Mover says what moved an alias.
type Mover string

// An alias moves with a publication that names it, or by hand.
const (
	MovedByPublication Mover = "publication"
	MovedByHand        Mover = "hand"
)

// The facts of an alias.
type (
	// AliasMoved makes the alias name a version.
	AliasMoved struct {
		Alias
		Previous string `json:"previous"` // the version it named before; "" for a new alias, and where a v1 fact didn't say
		MovedBy  Mover  `json:"moved_by"`
	}
	// AliasRemoved ends the alias.
	AliasRemoved struct{ Alias }
)

// AliasFact is any fact of an alias.
type AliasFact = FactOf[Alias]

// After is the alias after the fact.
func (a Alias) After() Alias { return a }

// Entity names the alias.
func (a Alias) Entity() Entity { return AliasEntity(a.Image, a.Alias) }

// Type names the fact's type.
func (AliasMoved) Type() Type { return "imgsrv.alias.moved.v2" }

// Type names the fact's type.
func (AliasRemoved) Type() Type { return "imgsrv.alias.removed.v1" }

// MoveAlias decides to point an alias, by hand, at any published version of its image. The batch has a fact of that
// version too, so that it isn't withdrawn in the same moment. sameNameVersion
// is the state of the version that has the alias's name, isArchitecture tells whether Incus knows the
// alias as an architecture: both would be shadowed.
func MoveAlias(image, alias, to string, target Current[Version], img Current[Image], sameNameVersion Current[Version], isArchitecture bool, current Current[Alias]) ([]Change, error) {
	if err := CheckAliasName(alias); err != nil {
		return nil, &Error{Code: CodeInvalid, Text: err.Error(), Fields: []FieldError{{Field: "alias", Text: err.Error(), Value: alias}}}
	}
	if img.Sequence == 0 {
		return nil, Refuse(CodeNotFound, "there is no image %s", image)
	}
	if target.State.State == StateWithdrawn {
		return nil, Refuse(CodeNotFound, "version %s of image %s is withdrawn: %s", to, image, target.State.Withdrawal.Reason)
	}
	if target.State.State != StatePublished {
		return nil, Refuse(CodeNotFound, "image %s has no published version %s", image, to)
	}
	if err := aliasClash(image, alias, img.State, sameNameVersion.State, isArchitecture); err != nil {
		return nil, err
	}
	next := Alias{Image: image, Alias: alias, Version: to, UploadID: target.State.UploadID}
	return []Change{
		{Fact: VersionNamed{target.State}, Expect: target.Sequence},
		{Fact: move(current, next, MovedByHand), Expect: current.Sequence},
	}, nil
}

// move is the fact that current gives way to next.
func move(current Current[Alias], next Alias, by Mover) AliasMoved {
	return AliasMoved{Alias: next, Previous: current.State.Version, MovedBy: by}
}

func aliasClash(image, alias string, img Image, sameName Version, isArchitecture bool) error {
	switch {
	case sameName.State == StatePublished || sameName.State == StateReserved || sameName.State == StateWithdrawn:
		return Refuse(CodeAliasClash, "%s is a version of image %s: an alias needs another name", alias, image)
	case slices.Contains(img.Flavours, alias) || alias == DefaultFlavour:
		return Refuse(CodeAliasClash, "%s is a flavour of image %s: an alias needs another name", alias, image)
	case isArchitecture:
		return Refuse(CodeAliasClash, "%s is the name of an architecture: an alias needs another name", alias)
	}
	return nil
}

// RemoveAlias decides to end an alias.
func RemoveAlias(current Current[Alias], image, alias string) ([]Change, error) {
	if current.State.Version == "" {
		return nil, Refuse(CodeNotFound, "image %s has no alias %s", image, alias)
	}
	return []Change{{Fact: AliasRemoved{Alias{Image: image, Alias: alias}}, Expect: current.Sequence}}, nil
}

// moveAtPublication moves the alias only forward: a publication that began before the one the alias
// names, as a retried older one, leaves it where it is.
func moveAtPublication(current Current[Alias], alias string, u Upload) []Change {
	if current.State.Version != "" && current.State.UploadID > u.ID {
		return nil
	}
	next := Alias{Image: u.Image, Alias: alias, Version: u.Version, UploadID: u.ID, JobID: u.JobID}
	return []Change{{Fact: move(current, next, MovedByPublication), Expect: current.Sequence}}
}
