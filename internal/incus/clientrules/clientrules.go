// Package clientrules reads simplestreams documents by the rules of the Incus and LXD clients, and reports what those would
// pass over or stumble on without a word. Tests hold imgsrv's documents against it. It must not use package incus, which it
// is there to check.
//
// Sources of the rules: lxc/incus v7 (August 2026) and LXD 5.0.2, shared/simplestreams/{index,products,simplestreams,sort}.go,
// shared/osarch/architectures.go and client/simplestreams_images.go. LXD 5.0.4 and later read the same items as 5.0.2; only
// 5.0.3 reads both families of metadata items at once and so lists an image twice that offers both.
package clientrules

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Dialect is the client whose rules are applied.
type Dialect int

// The dialects.
const (
	Incus Dialect = iota // lxc/incus v7
	LXD                  // LXD 5.0
)

func (d Dialect) String() string {
	if d == LXD {
		return "LXD"
	}
	return "Incus"
}

// Image types as the clients name them.
const (
	Container      = "container"
	VirtualMachine = "virtual-machine"
)

// Image is one image as a client lists it.
type Image struct {
	Fingerprint  string
	Aliases      []Alias // those that lead to this image, sorted by name
	Architecture string  // the kernel's name, e.g. x86_64
	Type         string  // Container or VirtualMachine
	Properties   map[string]string
	Files        []File
	Product      string // key of the product
	Serial       string // key of the version
	SizeBytes    int64  // metadata and root
	CreatedAt    time.Time
	ExpiresAt    time.Time // 1970-01-01: never
}

// Alias is a name that leads to one image for its type and architecture.
type Alias struct {
	Name         string
	Type         string
	Architecture string // the kernel's name
}

// File is one file that a client may download.
type File struct {
	Role      string // meta, root, or root.delta-FINGERPRINT
	FileType  string // the item's ftype
	Path      string // relative to the remote's address
	SHA256    string
	SizeBytes int64
}

// Problem is one thing in the documents that a client would pass over or fail on.
type Problem struct {
	Code  string // stable, for tests: see the constants
	Where string // the place in the documents
	Text  string
}

// Codes of problems.
const (
	BadJSON             = "bad-json"
	UnknownField        = "unknown-field" // passed over by clients: a slip of the pen has no effect
	BadFormat           = "bad-format"
	EntrySkipped        = "entry-skipped"
	BadPath             = "bad-path"
	CacheCollision      = "cache-collision" // two documents have one name in the client's cache
	ProductsMismatch    = "products-mismatch"
	UnknownArchitecture = "unknown-architecture" // the product is passed over
	BadAlias            = "bad-alias"
	ContestedAlias      = "contested-alias" // chance or the operating system's name decides where it leads
	MissingField        = "missing-field"
	BadValue            = "bad-value"
	BadVersionKey       = "bad-version-key" // the version is passed over
	NoImage             = "no-image"        // the version makes no image
	IgnoredItem         = "ignored-item"
	DuplicateItem       = "duplicate-item"
	NoFingerprint       = "no-fingerprint" // the image is passed over
	ListedTwice         = "listed-twice"   // the fingerprint cannot be downloaded
	DroppedDelta        = "dropped-delta"
	SeveralDeltas       = "several-deltas" // a host that has more than one of the bases can't fetch the image
)

func (p Problem) String() string { return fmt.Sprintf("%s: %s (%s)", p.Where, p.Text, p.Code) }

// Problems is the error of Read: all that was found, in a stable order.
type Problems []Problem

func (p Problems) Error() string {
	lines := make([]string, len(p))
	for i, problem := range p {
		lines[i] = problem.String()
	}
	return strings.Join(lines, "\n")
}

// Has reports whether err is a Problems that holds one with this code.
func Has(err error, code string) bool {
	var problems Problems
	return errors.As(err, &problems) && slices.ContainsFunc(problems, func(p Problem) bool { return p.Code == code })
}

// Read gives the images that a client of this dialect lists for these documents, in its order. fetch gives the bytes of a
// document by the path in the index. The error is a Problems; the images are those a client would see in spite of them.
func Read(indexJSON []byte, fetch func(path string) ([]byte, error), dialect Dialect) ([]Image, error) {
	r := &reader{dialect: dialect}
	images := r.index(indexJSON, fetch)
	sortImages(images)
	r.checkFingerprints(images)
	r.assignAliases(images)
	if len(r.problems) == 0 {
		return images, nil
	}
	slices.SortFunc(r.problems, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Where, b.Where), cmp.Compare(a.Code, b.Code), cmp.Compare(a.Text, b.Text))
	})
	return images, r.problems
}

type reader struct {
	dialect  Dialect
	problems Problems
}

func (r *reader) report(code, where, format string, args ...any) {
	r.problems = append(r.problems, Problem{Code: code, Where: where, Text: fmt.Sprintf(format, args...)})
}

// checkFingerprints finds images that share a fingerprint: a client then says "more than one match".
func (r *reader) checkFingerprints(images []Image) {
	first := map[string]Image{}
	for _, image := range images {
		if other, taken := first[image.Fingerprint]; taken {
			r.report(ListedTwice, place(image.Product, image.Serial), "fingerprint %s is also that of %s",
				image.Fingerprint, place(other.Product, other.Serial))
			continue
		}
		first[image.Fingerprint] = image
	}
}

func place(product, serial string) string { return "product " + product + " version " + serial }
