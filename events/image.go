package events

import "slices"

// Image is a named line of releases, as its last publication described it.
type Image struct {
	Name        string     `json:"name"`
	OS          string     `json:"os,omitempty"`
	Release     string     `json:"release,omitempty"`
	Description string     `json:"description,omitempty"`
	Visibility  Visibility `json:"visibility"`
	Flavours    []string   `json:"flavours"` // of all its versions; an alias may have none of these names
	// Policy says what is made of its versions and how long they are kept; absent where none was set.
	Policy *Policy `json:"policy,omitempty"`
}

// The facts of an image.
type (
	// ImageDescribed is appended in one batch with the first publication, and with each that says something new.
	ImageDescribed struct{ Image }
	// ImagePolicySet gives it its policy, in place of any before.
	ImagePolicySet struct{ Image }
	// ImageVisibilityChanged says who may see all of its versions from then on.
	ImageVisibilityChanged struct{ Image }
)

// ImageFact is any fact of an image.
type ImageFact = FactOf[Image]

// After is the image after the fact.
func (i Image) After() Image { return i }

// Entity names the image.
func (i Image) Entity() Entity { return ImageEntity(i.Name) }

// Type names the fact's type.
func (ImageDescribed) Type() Type { return "imgsrv.image.described.v1" }

// Type names the fact's type.
func (ImagePolicySet) Type() Type { return "imgsrv.image.policy_set.v1" }

// Type names the fact's type.
func (ImageVisibilityChanged) Type() Type { return "imgsrv.image.visibility_changed.v1" }

// describe gives the image that a publication leaves behind, and whether that is news. Silence about a
// text keeps what was known. A publication settles who may see an image only when it is new: no later one
// brings older versions to light.
func describe(image Current[Image], u Upload) []Change {
	old := image.State
	next := Image{Name: u.Image, OS: u.OS, Release: u.Release, Description: u.Description, Visibility: u.Visibility, Policy: old.Policy}
	if image.Sequence != 0 {
		next.Visibility = old.Visibility
	}
	if next.OS == "" {
		next.OS = old.OS
	}
	if next.Release == "" {
		next.Release = old.Release
	}
	if next.Description == "" {
		next.Description = old.Description
	}
	next.Flavours = slices.Clone(old.Flavours)
	for _, v := range u.Variants {
		if !slices.Contains(next.Flavours, v.Flavour) {
			next.Flavours = append(next.Flavours, v.Flavour)
		}
	}
	slices.Sort(next.Flavours)
	if image.Sequence != 0 && next.OS == old.OS && next.Release == old.Release && next.Description == old.Description &&
		slices.Equal(next.Flavours, old.Flavours) {
		return nil
	}
	return []Change{{Fact: ImageDescribed{next}, Expect: image.Sequence}}
}
