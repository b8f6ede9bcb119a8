package events

import (
	"fmt"
	"slices"
	"time"
)

// UploadState is where an upload session stands.
type UploadState string

// An upload session is open until all its files are there, then handed to a job ("completed"), or it
// ends without one.
const (
	SessionOpen      UploadState = "open"
	SessionCompleted UploadState = "completed"
	SessionAborted   UploadState = "aborted"
	SessionExpired   UploadState = "expired"
)

// FileState says whether a declared file is there.
type FileState string

// A file is pending until its bytes arrived; present when its digest was a blob already.
const (
	FilePending  FileState = "pending"
	FilePresent  FileState = "present"
	FileComplete FileState = "complete"
)

// Upload is an upload session: the intake of one publication.
type Upload struct {
	ID          string      `json:"id"`
	JobID       string      `json:"job_id"`
	State       UploadState `json:"state"`
	Complete    bool        `json:"complete"` // every declared file is there
	Image       string      `json:"image"`
	Version     string      `json:"version"`
	OS          string      `json:"os,omitempty"`
	Release     string      `json:"release,omitempty"`
	Description string      `json:"description,omitempty"`
	Traits
	CloudInit      bool            `json:"cloud_init,omitempty"` // metadata that imgsrv makes has templates for cloud-init
	Visibility     Visibility      `json:"visibility"`
	Aliases        []string        `json:"aliases,omitempty"`
	Variants       []UploadVariant `json:"variants"`
	Attachments    []UploadFile    `json:"attachments,omitempty"` // files of the version as a whole; Format is the name
	Derive         []string        `json:"derive,omitempty"`      // formats to make of each disk once it is published
	InitiatedAt    time.Time       `json:"initiated_at"`
	InitiatedBy    string          `json:"initiated_by"`
	IdempotencyKey string          `json:"idempotency_key,omitempty"`
	RequestDigest  string          `json:"request_digest,omitempty"` // tells a repeated request from another one under the same key
	Reason         string          `json:"reason,omitempty"`         // why it was aborted
}

// UploadVariant is a variant with the files declared for it.
type UploadVariant struct {
	Variant
	Files []UploadFile `json:"files"`
	// Metadata is the Incus metadata tarball that imgsrv made, where the publisher declared none. Its
	// bytes are kept here: made again by another release they would differ, and so would the fingerprint.
	Metadata *MadeFile `json:"metadata,omitempty"`
	// Fingerprint, where the publisher stated one, is what metadata and root together have to have.
	Fingerprint Digest `json:"fingerprint,omitempty"`
}

// UploadFile is a declared file.
type UploadFile struct {
	Format   string     `json:"format"`
	Size     int64      `json:"size"`               // bytes, as declared
	Declared Digest     `json:"declared,omitempty"` // digest that the publisher stated
	State    FileState  `json:"state"`
	Digest   Digest     `json:"digest,omitempty"`   // of the bytes that arrived, or of the present blob
	Combined Digest     `json:"combined,omitempty"` // of metadata followed by these bytes, when it could be hashed on arrival
	Ingress  string     `json:"ingress,omitempty"`  // name in the job's ingress folder
	Arrived  *time.Time `json:"arrived_at,omitempty"`
}

// MadeFile is a small file made by imgsrv itself.
type MadeFile struct {
	Format string `json:"format"`
	Digest Digest `json:"digest"`
	Data   []byte `json:"data"`
}

// Formats lists the names of the variant's formats, with the metadata tarball that imgsrv made.
func (v *UploadVariant) Formats() []string {
	var formats []string
	for _, f := range v.Files {
		formats = append(formats, f.Format)
	}
	if v.Metadata != nil {
		formats = append(formats, v.Metadata.Format)
	}
	return formats
}

// Root is the file that an instance boots from, and that an Incus fingerprint covers after the metadata.
func (v *UploadVariant) Root() (*UploadFile, bool) {
	root, ok := RootFormat(v.Type, v.Formats())
	if !ok {
		return nil, false
	}
	for i := range v.Files {
		if v.Files[i].Format == root {
			return &v.Files[i], true
		}
	}
	return nil, false
}

// File finds a declared file; the pointer is into the session's own slice.
func (u *Upload) File(variant, format string) (*UploadFile, bool) {
	for ref, f := range u.Files() {
		if ref.Variant == variant && ref.Format == format {
			return f, true
		}
	}
	return nil, false
}

// Variant finds a variant by its name; the pointer is into the session's own slice.
func (u *Upload) Variant(name string) (*UploadVariant, bool) {
	for i := range u.Variants {
		if u.Variants[i].Name() == name {
			return &u.Variants[i], true
		}
	}
	return nil, false
}

// FileAt finds a declared file by its place in the session, counted from 0 in the order of [Upload.Files]; it
// is the number in the file's tus upload ID.
func (u *Upload) FileAt(n int) (ref FileRef, file *UploadFile, ok bool) {
	for ref, f := range u.Files() {
		if n == 0 {
			return ref, f, true
		}
		n--
	}
	return FileRef{}, nil, false
}

// Index is the inverse of [Upload.FileAt].
func (u *Upload) Index(variant, format string) (int, bool) {
	n := 0
	for ref := range u.Files() {
		if ref.Variant == variant && ref.Format == format {
			return n, true
		}
		n++
	}
	return 0, false
}

func (u *Upload) complete() bool {
	for _, f := range u.Files() {
		if f.State == FilePending {
			return false
		}
	}
	return true
}

// clone copies what a rule is about to change, so that states stay values.
func (u Upload) clone() Upload {
	u.Variants = slices.Clone(u.Variants)
	for i := range u.Variants {
		u.Variants[i].Files = slices.Clone(u.Variants[i].Files)
	}
	u.Attachments = slices.Clone(u.Attachments)
	return u
}

// The facts of an upload session. Each carries the whole session.
type (
	// UploadInitiated opens a session. With Complete, every file was present and a job follows at once.
	UploadInitiated struct{ Upload }
	// UploadFileCompleted says that one file has arrived whole; with Complete it was the last.
	UploadFileCompleted struct {
		Upload
		File FileRef `json:"file"`
	}
	// UploadCompleted hands the files to the job, in one batch with its JobQueued.
	UploadCompleted struct{ Upload }
	// UploadAborted ends a session on request; in one batch with StateReleased.
	UploadAborted struct{ Upload }
	// UploadExpired ends an abandoned session; in one batch with StateReleased.
	UploadExpired struct{ Upload }
)

// UploadFact is any fact of an upload session.
type UploadFact = FactOf[Upload]

// After is the session after the fact.
func (u Upload) After() Upload { return u }

// Entity names the session.
func (u Upload) Entity() Entity { return UploadEntity(u.ID) }

// Type names the fact's type.
func (UploadInitiated) Type() Type { return "imgsrv.upload.initiated.v1" }

// Type names the fact's type.
func (UploadFileCompleted) Type() Type { return "imgsrv.upload.file_completed.v1" }

// Type names the fact's type.
func (UploadCompleted) Type() Type { return "imgsrv.upload.completed.v1" }

// Type names the fact's type.
func (UploadAborted) Type() Type { return "imgsrv.upload.aborted.v1" }

// Type names the fact's type.
func (UploadExpired) Type() Type { return "imgsrv.upload.expired.v1" }

// InitiateUpload is the command that opens a session, with what it has to be compared with.
type InitiateUpload struct {
	// Session is everything but JobID, State and Complete. Files of a digest that is a blob already are
	// marked FilePresent by the caller, with that blob's Digest.
	Session Upload
	// Version is the state of the version to be made: it keeps two sessions from racing for one version.
	Version Current[Version]
	// AliasOfVersionName is the state of the alias that has the version's name.
	AliasOfVersionName Current[Alias]
	Image              Current[Image]
	// VersionOfAliasName holds, for each alias, the state of the version that has the alias's name.
	VersionOfAliasName map[string]Current[Version]
	// AliasOfFlavour holds, for each variant's flavour, the state of the alias that has its name.
	AliasOfFlavour map[string]Current[Alias]
	// Present holds the state of each blob that the session is told of by a FilePresent: they are held for it.
	Present map[Digest]Current[Blob]
	// IsArchitecture tells whether Incus knows a name as an architecture.
	IsArchitecture func(string) bool
}

// Initiate decides about a new session.
func Initiate(cmd InitiateUpload) ([]Change, error) {
	u := cmd.Session.clone()
	if err := CheckUpload(u); err != nil {
		return nil, err
	}
	version := cmd.Version
	switch version.State.State {
	case StateWithdrawn:
		return nil, &Error{Code: CodeVersionExists, Upload: version.State.UploadID,
			Text: fmt.Sprintf("version %s of image %s was published and is withdrawn, and its name stays taken: choose another version name", u.Version, u.Image)}
	case StatePublished:
		return nil, &Error{Code: CodeVersionExists, Upload: version.State.UploadID,
			Text: fmt.Sprintf("version %s of image %s is published, and published versions never change: choose another version name", u.Version, u.Image)}
	case StateReserved:
		return nil, &Error{Code: CodeVersionInProgress, Upload: version.State.UploadID,
			Text: fmt.Sprintf("version %s of image %s is being published by upload session %s: wait for it, resume it or abort it", u.Version, u.Image, version.State.UploadID)}
	}
	if cmd.AliasOfVersionName.State.Version != "" {
		return nil, Refuse(CodeAliasClash, "%s is an alias of image %s: choose another version name or remove the alias", u.Version, u.Image)
	}
	if cmd.Image.Sequence != 0 && cmd.Image.State.Visibility != u.Visibility {
		return nil, Refuse(CodeVisibility, "image %s is %s, and a publication doesn't change that: leave visibility out, or say %s", u.Image, cmd.Image.State.Visibility, cmd.Image.State.Visibility)
	}
	for _, v := range u.Variants {
		if cmd.AliasOfFlavour[v.Flavour].State.Version != "" {
			return nil, Refuse(CodeAliasClash, "%s is an alias of image %s: choose another flavour or remove the alias", v.Flavour, u.Image)
		}
	}
	for _, alias := range u.Aliases {
		if err := aliasClash(u.Image, alias, cmd.Image.State, cmd.VersionOfAliasName[alias].State, cmd.IsArchitecture(alias)); err != nil {
			return nil, err
		}
	}
	u.JobID = JobIDFor(u.ID)
	u.State = SessionOpen
	u.Complete = u.complete()
	changes := []Change{{Fact: UploadInitiated{u}}}
	held := map[Digest]bool{}
	for ref, f := range u.Files() {
		blob := cmd.Present[f.Digest]
		switch {
		case f.State != FilePresent || held[f.Digest]:
			continue
		case blob.Sequence == 0 || blob.State.State != BlobIsPresent:
			return nil, fmt.Errorf("open upload session %s: %s is said to be there, and its blob isn't", u.ID, ref)
		}
		held[f.Digest] = true
		changes = append(changes, RetainBlob(blob)...)
	}
	return append(changes, Change{Fact: VersionReserved{reserve(version.State, u)}, Expect: version.Sequence}), nil
}

// CompleteFile is the command that records a file's arrival.
type CompleteFile struct {
	File     FileRef
	Size     int64  // bytes that arrived
	Digest   Digest // their digest
	Combined Digest // "" if it wasn't hashed on arrival
	Ingress  string // where they are
	At       time.Time
}

// Complete decides about an arrived file. A file that is recorded already, with the same digest, is
// CodeFileComplete: the command was a repetition.
func Complete(cmd CompleteFile, upload Current[Upload]) ([]Change, error) {
	if upload.Sequence == 0 {
		return nil, Refuse(CodeNotFound, "there is no such upload session")
	}
	u := upload.State.clone()
	file, ok := u.File(cmd.File.Variant, cmd.File.Format)
	if !ok {
		return nil, Refuse(CodeNotFound, "upload session %s declares no %s", u.ID, cmd.File)
	}
	if file.State != FilePending {
		return nil, Refuse(CodeFileComplete, "%s is there already", cmd.File)
	}
	if u.State != SessionOpen {
		return nil, Refuse(CodeSessionClosed, "upload session %s is %s and takes no more files", u.ID, u.State)
	}
	if cmd.Size != file.Size {
		return nil, Refuse(CodeFileMismatch, "%s has %d bytes, declared were %d", cmd.File, cmd.Size, file.Size)
	}
	file.State, file.Digest, file.Combined, file.Ingress = FileComplete, cmd.Digest, cmd.Combined, cmd.Ingress
	at := cmd.At
	file.Arrived = &at
	u.Complete = u.complete()
	return []Change{{Fact: UploadFileCompleted{u, cmd.File}, Expect: upload.Sequence}}, nil
}

// CompleteUpload decides to hand a complete session to its job.
func CompleteUpload(upload Current[Upload], at time.Time) ([]Change, error) {
	u := upload.State.clone()
	if u.State != SessionOpen || !u.Complete {
		return nil, Refuse(CodeSessionClosed, "upload session %s has no files to hand over", u.ID)
	}
	u.State = SessionCompleted
	return []Change{
		{Fact: UploadCompleted{u}, Expect: upload.Sequence},
		{Fact: JobQueued{newJob(u, at)}},
	}, nil
}

// AbortUpload decides to end an open session on request.
func AbortUpload(upload Current[Upload], version Current[Version], reason string) ([]Change, error) {
	u, err := endUpload(upload, SessionAborted)
	if err != nil {
		return nil, err
	}
	u.Reason = reason
	return append([]Change{{Fact: UploadAborted{u}, Expect: upload.Sequence}}, release(u.ID, version)...), nil
}

// ExpireUpload decides to end an abandoned session.
func ExpireUpload(upload Current[Upload], version Current[Version]) ([]Change, error) {
	u, err := endUpload(upload, SessionExpired)
	if err != nil {
		return nil, err
	}
	return append([]Change{{Fact: UploadExpired{u}, Expect: upload.Sequence}}, release(u.ID, version)...), nil
}

// AbandonUpload decides to end a session that no job has taken, whatever has arrived of it: for a server that was restored without
// the bytes.
func AbandonUpload(upload Current[Upload], version Current[Version], reason string) ([]Change, error) {
	u := upload.State.clone()
	if upload.Sequence == 0 || u.State != SessionOpen {
		return nil, Refuse(CodeSessionClosed, "upload session %s is %s", u.ID, u.State)
	}
	u.State, u.Reason = SessionAborted, reason
	return append([]Change{{Fact: UploadAborted{u}, Expect: upload.Sequence}}, release(u.ID, version)...), nil
}

func endUpload(upload Current[Upload], end UploadState) (Upload, error) {
	u := upload.State.clone()
	switch {
	case upload.Sequence == 0:
		return u, Refuse(CodeNotFound, "there is no such upload session")
	case u.State == SessionCompleted || u.State == SessionOpen && u.Complete:
		return u, Refuse(CodePublishing, "upload session %s has all its files and is being published by job %s: it can't be aborted any more", u.ID, u.JobID)
	case u.State != SessionOpen:
		return u, Refuse(CodeSessionClosed, "upload session %s is %s already", u.ID, u.State)
	}
	u.State = end
	return u, nil
}
