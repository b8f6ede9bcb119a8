package events

import "time"

// VersionState is where a version stands.
type VersionState string

// A version is free until a session reserves it. Its name stays taken once it is published, also while it is withdrawn.
const (
	StateFree      VersionState = ""
	StateReserved  VersionState = "reserved"
	StateReleased  VersionState = "released"
	StatePublished VersionState = "published"
	StateWithdrawn VersionState = "withdrawn"
)

// Version is one release of an image.
type Version struct {
	Image    string       `json:"image"`
	Version  string       `json:"version"`
	State    VersionState `json:"state"`
	UploadID string       `json:"upload_id"` // the session that holds it, or made it
	Manifest *Manifest    `json:"manifest,omitempty"`
	// Withdrawal says why and by whom, while the version is withdrawn.
	Withdrawal *Withdrawal `json:"withdrawal,omitempty"`
	// Restoration says who undid the last withdrawal: retention leaves such a version alone.
	Restoration *Restoration `json:"restoration,omitempty"`
}

// Manifest is all that a published version offers. It never changes.
type Manifest struct {
	Image       string `json:"image"`
	Version     string `json:"version"`
	OS          string `json:"os,omitempty"`
	Release     string `json:"release,omitempty"`
	Description string `json:"description,omitempty"`
	Traits
	Visibility  Visibility        `json:"visibility"`
	UploadID    string            `json:"upload_id"`
	JobID       string            `json:"job_id"`
	UploadedAt  time.Time         `json:"uploaded_at"` // when the session began; dates the Incus metadata
	PublishedAt time.Time         `json:"published_at"`
	PublishedBy string            `json:"published_by"`
	Variants    []ManifestVariant `json:"variants"`
	// Attachments are files of the version as a whole, in the order in which they were declared.
	Attachments []ManifestAttachment `json:"attachments,omitempty"`
}

// ManifestVariant is a variant with its formats.
type ManifestVariant struct {
	Variant
	// Fingerprint is the image's name in Incus and LXD: the SHA-256 of metadata followed by root, hex;
	// "" where the variant has no such pair. Metadata and Root are the formats it covers. Of a unified image it is the
	// SHA-256 of the one tarball: then that is Metadata, and Root is "".
	Fingerprint string           `json:"fingerprint,omitempty"`
	Metadata    string           `json:"metadata,omitempty"`
	Root        string           `json:"root,omitempty"`
	Formats     []ManifestFormat `json:"formats"`
}

// ManifestFormat is one downloadable file.
type ManifestFormat struct {
	Format    string     `json:"format"`
	Digest    Digest     `json:"digest"`
	Size      int64      `json:"size"` // bytes
	MediaType string     `json:"media_type"`
	Origin    string     `json:"origin"` // OriginUploaded, OriginMade
	Disk      *DiskInfo  `json:"disk,omitempty"`
	Incus     *ImageInfo `json:"incus,omitempty"`
}

// Where a format's bytes come from.
const (
	OriginUploaded = "uploaded"
	OriginMade     = "made"
)

// DiskInfo is what was read from a qcow2 header.
type DiskInfo struct {
	Version     int    `json:"version"`      // 2 or 3
	VirtualSize int64  `json:"virtual_size"` // bytes that a guest sees
	ClusterSize int64  `json:"cluster_size"` // bytes
	Compression string `json:"compression"`  // zlib or zstd: the type for compressed clusters, used or not
	Compressed  bool   `json:"compressed"`   // some cluster is compressed
	Encrypted   bool   `json:"encrypted,omitempty"`
	Snapshots   int    `json:"snapshots,omitempty"`
}

// ImageInfo is what was read from the metadata.yaml of a metadata tarball or a unified image.
type ImageInfo struct {
	CreatedAt time.Time `json:"created_at"`
	ExpiresAt time.Time `json:"expires_at,omitzero"`
	// Properties and Templates (the paths that templates are for, sorted) are absent where they take more than MaxImageInfoBytes.
	Properties map[string]string `json:"properties,omitempty"`
	Templates  []string          `json:"templates,omitempty"`
}

// MaxImageInfoBytes bounds the texts of an [ImageInfo]: a job's facts carry one for each variant.
const MaxImageInfoBytes = 4 << 10

// Format finds a format of a variant.
func (m *Manifest) Format(variant, format string) (ManifestFormat, bool) {
	for _, v := range m.Variants {
		if v.Name() != variant {
			continue
		}
		for _, f := range v.Formats {
			if f.Format == format {
				return f, true
			}
		}
	}
	return ManifestFormat{}, false
}

// The facts of a version.
type (
	// VersionReserved holds the version for a session; in one batch with UploadInitiated or JobRetried.
	VersionReserved struct{ Version }
	// VersionReleased frees the name again; in one batch with what ended the publication.
	VersionReleased struct{ Version }
	// VersionPublished makes the version visible, whole; in one batch with JobSucceeded.
	VersionPublished struct{ Version }
	// VersionNamed says that an alias is pointed at the version; in one batch with AliasMoved, where that is not
	// the version's publication. The state is as before: the fact makes whoever withdraws the version in the same
	// moment decide anew.
	VersionNamed struct{ Version }
	// VersionWithdrawn takes the version out of lists and streams; its bytes stay, for a time.
	VersionWithdrawn struct{ Version }
	// VersionRestored undoes a withdrawal.
	VersionRestored struct{ Version }
	// VersionCollected ends the time in which a withdrawn version can be restored: it needs its bytes no more.
	VersionCollected struct{ Version }
)

// VersionFact is any fact of a version.
type VersionFact = FactOf[Version]

// After is the version after the fact.
func (v Version) After() Version { return v }

// Entity names the version.
func (v Version) Entity() Entity { return VersionEntity(v.Image, v.Version) }

// Type names the fact's type.
func (VersionReserved) Type() Type { return "imgsrv.version.reserved.v1" }

// Type names the fact's type.
func (VersionReleased) Type() Type { return "imgsrv.version.released.v1" }

// Type names the fact's type.
func (VersionPublished) Type() Type { return "imgsrv.version.published.v1" }

// Type names the fact's type.
func (VersionNamed) Type() Type { return "imgsrv.version.named.v1" }

// Type names the fact's type.
func (VersionWithdrawn) Type() Type { return "imgsrv.version.withdrawn.v1" }

// Type names the fact's type.
func (VersionRestored) Type() Type { return "imgsrv.version.restored.v1" }

// Type names the fact's type.
func (VersionCollected) Type() Type { return "imgsrv.version.collected.v1" }

func reserve(v Version, u Upload) Version {
	v.Image, v.Version, v.State, v.UploadID = u.Image, u.Version, StateReserved, u.ID
	return v
}

// release frees a version that the session holds. A version that someone else holds by now is left alone.
func release(uploadID string, version Current[Version]) []Change {
	v := version.State
	if v.State != StateReserved || v.UploadID != uploadID {
		return nil
	}
	v.State = StateReleased
	return []Change{{Fact: VersionReleased{v}, Expect: version.Sequence}}
}
