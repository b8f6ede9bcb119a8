package api

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/access"
	"github.com/imgsrv/imgsrv/handlers/limits"
	"github.com/imgsrv/imgsrv/internal/incus"
	"github.com/imgsrv/imgsrv/store/blob"
)

type initiateInput struct {
	IdempotencyKey string `header:"Idempotency-Key" doc:"Up to 255 characters of your choice. A repeated request with the same key for the same version answers with the same session; another request under the key is refused." example:"ci-build-4711"`
	Body           sessionRequest
}

// sessionRequest is the body of POST /api/images.
type sessionRequest struct {
	Image       string `json:"image" doc:"Name of the image: 1 to 127 lower-case letters, digits, '.', '_' or '-'" example:"debian-bookworm"`
	Version     string `json:"version" doc:"Name of the version, which is immutable once published" example:"12.5.0"`
	OS          string `json:"os,omitempty" example:"debian"`
	Release     string `json:"release,omitempty" example:"bookworm"`
	Description string `json:"description,omitempty" example:"Debian 12, nightly build"`
	Traits
	CloudInit  bool             `json:"cloud_init,omitempty" doc:"Metadata that imgsrv makes has templates that hand an instance's cloud-init configuration over. Refused where every variant brings its own metadata"`
	Visibility string           `json:"visibility,omitempty" enum:"public,private" doc:"Who may see the image. Left out: as the image is, and public for a new one. A version can't change it"`
	Aliases    []string         `json:"aliases,omitempty" nullable:"false" doc:"Names that shall point at the version when it is published" example:"[\"latest\"]"`
	Variants   []variantRequest `json:"variants" nullable:"false" doc:"What the version offers. All variants appear together or not at all"`

	Derive []string `json:"derive,omitempty" nullable:"false" doc:"Formats that the server shall make of each virtual machine's disk once the version is published: disk.compressed.qcow2, disk.raw (with disk.raw.map.json), disk.raw.zst, disk.vhdx, disk.vmdk" example:"[\"disk.vmdk\"]"`

	Attachments []attachmentRequest `json:"attachments,omitempty" nullable:"false" doc:"Files of the version as a whole: SBOMs, signatures, release notes. Their content is not looked at"`
}

type variantRequest struct {
	Architecture string        `json:"architecture" doc:"One of Incus's names or its synonyms (x86_64 is amd64)" example:"amd64"`
	Type         string        `json:"type" enum:"virtual-machine,container"`
	Flavour      string        `json:"flavour,omitempty" default:"default" doc:"Tells variants of one architecture and type apart" example:"default"`
	Files        []fileRequest `json:"files" nullable:"false"`
	Fingerprint  string        `json:"fingerprint,omitempty" doc:"The Incus fingerprint that the variant must have: SHA-256 of metadata followed by root, 64 lower-case hex digits. With another one the publication fails. For images that are taken over from elsewhere" example:"9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"`
}

type fileRequest struct {
	Format string `json:"format" doc:"Name of the file in the version; what its ending promises is checked by content" example:"disk.qcow2"`
	Size   int64  `json:"size" format:"int64" doc:"Length in bytes" example:"196608"`
	SHA256 string `json:"sha256,omitempty" doc:"64 lower-case hex digits. Bytes that don't match are refused; bytes that the server has already needn't be uploaded" example:"9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"`
}

type initiateOutput struct {
	Location string `header:"Location" doc:"The session, as status_url"`
	Sequence uint64 `header:"Imgsrv-Sequence" doc:"Sequence of the event; send it as Imgsrv-Min-Sequence to read your own write"`
	Body     sessionOpened
}

// sessionOpened is the answer to POST /api/images.
type sessionOpened struct {
	UploadSessionID string       `json:"upload_session_id" format:"uuid"`
	State           string       `json:"state" enum:"uploading,queued,publishing,published,failed,aborted,expired"`
	StatusURL       string       `json:"status_url" format:"uri"`
	JobURL          string       `json:"job_url,omitempty" format:"uri" doc:"The publication job, once every file is there"`
	Files           []fileToSend `json:"files" nullable:"false"`
}

type fileToSend struct {
	Variant string     `json:"variant" doc:"attachments: the file is an attachment, and format its name" example:"amd64.virtual-machine.default"`
	Format  string     `json:"format" example:"disk.qcow2"`
	State   string     `json:"state" enum:"pending,present,complete" doc:"present: the server has the bytes already"`
	Size    int64      `json:"size" doc:"Length in bytes"`
	TUS     *tusTarget `json:"tus,omitempty" doc:"Where and how to upload a pending file with tus 1.0"`
}

type tusTarget struct {
	CreateURL string `json:"create_url" format:"uri" doc:"POST here to create the upload"`
	Metadata  string `json:"metadata" doc:"The value of the Upload-Metadata header to send there" example:"session MDE5…,variant YW1k…,format ZGlz…"`
}

// initiate registers POST /api/images: 201 with Location and Imgsrv-Sequence; 400 what is no JSON, 401, 403,
// 409 the version or a name is taken (status_url says by which session), 413 a declared size is over the cap
// or the body over 1 MiB, 422 a broken rule or a reused Idempotency-Key, 429 too many
// sessions or bytes, 503, 507 the storage lacks the room.
func (s *server) initiate() {
	write(s, events.RolePublisher, huma.Operation{
		OperationID: "open-upload-session", Method: http.MethodPost, Path: pathImages, DefaultStatus: http.StatusCreated,
		Tags: []string{tagPublish}, Summary: "Open an upload session for a new version",
		Description: "Declares a version with its variants and files. Upload each pending file to its `tus` target; the publication starts by itself once all are there.",
		Errors: []int{http.StatusBadRequest, http.StatusConflict, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType,
			http.StatusUnprocessableEntity, http.StatusInsufficientStorage},
	}, s.openSession)
}

func (s *server) openSession(ctx context.Context, in *initiateInput) (*initiateOutput, error) {
	if err := access.Need(access.From(ctx), in.Body.Image, events.RolePublisher); err != nil {
		return nil, err
	}
	session, err := s.newSession(ctx, in)
	if err != nil {
		return nil, err
	}
	if session.ID, err = s.newSessionID(ctx, session.Image, session.Aliases); err != nil {
		return nil, err
	}
	var opened events.Current[events.Upload]
	var admission *limits.Admission
	defer func() { admission.End() }()
	folder := false
	cause := jetstream.Cause{Key: "initiate " + session.ID, Actor: session.InitiatedBy, Correlation: session.ID}
	sequence, err := s.Events.Decide(ctx, cause, func(ctx context.Context) ([]events.Change, error) {
		changes, before, err := s.decideSession(ctx, session, in.Body.Visibility == "")
		if err != nil || len(changes) == 0 {
			opened = before
			return nil, err
		}
		opened.State = events.Fold(events.Upload{}, changes[0].Fact)
		if admission, err = s.admit(ctx, admission, opened.State); err != nil {
			return nil, err
		}
		if !folder {
			// Before the fact, so that whoever looks for abandoned sessions finds a folder for each.
			folder = true
			err = s.Blobs.CreateSession(session.ID)
		}
		return changes, err
	})
	if err != nil {
		// Where the log's answer is unknown the session may exist, and the folder is then needed.
		switch unknown := errors.Is(err, jetstream.ErrUnavailable) || ctx.Err() != nil; {
		case folder && !unknown:
			err = errors.Join(err, s.Blobs.RemoveSession(session.ID))
		case folder:
			admission.Opened()
		}
		return nil, err
	}
	if opened.Sequence == 0 {
		admission.Opened()
	}
	return s.sessionAnswer(ctx, opened.State, max(sequence, opened.Sequence))
}

// admit takes the place of a session within the limits, in place of the one that an earlier try took.
func (s *server) admit(ctx context.Context, before *limits.Admission, u events.Upload) (*limits.Admission, error) {
	admission, err := s.Intake.Admit(ctx, u)
	if err != nil {
		return before, err
	}
	return admission, nil
}

// newSession makes a session of a request: defaults filled in, architectures under their canonical names, a
// metadata file before the root that it is hashed with.
func (s *server) newSession(ctx context.Context, in *initiateInput) (events.Upload, error) {
	body := in.Body
	u := events.Upload{
		Image: body.Image, Version: body.Version, OS: body.OS, Release: body.Release,
		Description: body.Description, Traits: body.Traits.said(), CloudInit: body.CloudInit, Visibility: events.Visibility(body.Visibility), Aliases: body.Aliases, Derive: body.Derive,
		InitiatedAt: s.Clock().UTC(), InitiatedBy: access.From(ctx).Name, IdempotencyKey: in.IdempotencyKey,
	}
	if u.Visibility == "" {
		u.Visibility = events.Public
	}
	var broken []events.FieldError
	for i, v := range body.Variants {
		variant := events.UploadVariant{Variant: events.Variant{Type: events.VariantType(v.Type), Flavour: v.Flavour}}
		if variant.Flavour == "" {
			variant.Flavour = events.DefaultFlavour
		}
		var known bool
		if variant.Architecture, known = incus.Canonical(v.Architecture); !known {
			variant.Architecture = v.Architecture // so that only one rule is named as broken
			broken = append(broken, events.FieldError{Field: fmt.Sprintf("variants[%d].architecture", i), Value: v.Architecture,
				Text: "an architecture is one of " + strings.Join(incus.Architectures(), ", ") + ", or a synonym that Incus knows, such as x86_64"})
		}
		if v.Fingerprint != "" {
			var err error
			if variant.Fingerprint, err = events.ParseDigest(v.Fingerprint); err != nil {
				broken = append(broken, events.FieldError{Field: fmt.Sprintf("variants[%d].fingerprint", i), Value: v.Fingerprint,
					Text: "a fingerprint has 64 lower-case hex digits"})
			}
		}
		for k, f := range v.Files {
			file := events.UploadFile{Format: f.Format, Size: f.Size, State: events.FilePending}
			if f.SHA256 != "" {
				digest, err := events.ParseDigest(f.SHA256)
				if err != nil {
					broken = append(broken, events.FieldError{Field: fmt.Sprintf("variants[%d].files[%d].sha256", i, k), Value: f.SHA256,
						Text: "a sha256 has 64 lower-case hex digits"})
				}
				file.Declared = digest
			}
			variant.Files = append(variant.Files, file)
		}
		u.Variants = append(u.Variants, variant)
	}
	attachments, wrong := newAttachments(body.Attachments)
	u.Attachments, broken = attachments, append(broken, wrong...)
	broken = append(broken, checkDerive(u)...)
	if err := checkForm(u, broken); err != nil {
		return u, err
	}
	for _, v := range u.Variants {
		// Not before the rules of form, which speak of the places in the request.
		slices.SortStableFunc(v.Files, func(a, b events.UploadFile) int { return metadataFirst(a) - metadataFirst(b) })
	}
	if err := s.checkSizes(u); err != nil {
		return u, err
	}
	var err error
	u.RequestDigest, err = requestDigest(u)
	return u, err
}

func metadataFirst(f events.UploadFile) int {
	if _, ok := events.MetadataFormat([]string{f.Format}); ok {
		return 0
	}
	return 1
}

// checkForm adds the rules that only the API knows to those of the events.
func checkForm(u events.Upload, broken []events.FieldError) error {
	err := events.CheckUpload(u)
	if len(broken) == 0 {
		return err
	}
	var refusal *events.Error
	if errors.As(err, &refusal) {
		broken = append(broken, refusal.Fields...)
	}
	text := fmt.Sprintf("the request breaks %d rules", len(broken))
	if broken = broken[:min(len(broken), events.MaxFieldErrors)]; len(broken) == 1 {
		text = broken[0].Field + ": " + broken[0].Text
	}
	return &events.Error{Code: events.CodeInvalid, Text: text, Fields: broken}
}

// requestDigest tells requests apart that were made under one idempotency key. What differs only in writing,
// such as the order of members or a synonym of an architecture, is the same request.
func requestDigest(u events.Upload) (string, error) {
	u.ID, u.IdempotencyKey, u.InitiatedBy = "", "", ""
	u.InitiatedAt = time.Time{}
	canonical, err := json.Marshal(u)
	if err != nil {
		return "", fmt.Errorf("digest the request: %w", err)
	}
	sum := sha256.Sum256(canonical)
	return hex.EncodeToString(sum[:]), nil
}

// decideSession reads what the rule needs and calls it. Where an earlier request with the same idempotency key
// has opened the session, there is nothing to change, and before is that session.
func (s *server) decideSession(ctx context.Context, u events.Upload, anyVisibility bool) (changes []events.Change, before events.Current[events.Upload], err error) {
	cmd := events.InitiateUpload{VersionOfAliasName: map[string]events.Current[events.Version]{}, AliasOfFlavour: map[string]events.Current[events.Alias]{}, IsArchitecture: isArchitecture}
	if cmd.Version, err = s.Events.Version(ctx, u.Image, u.Version); err != nil {
		return nil, before, err
	}
	if before, err = s.openedBefore(ctx, u, cmd.Version.State); err != nil || before.Sequence != 0 {
		return nil, before, err
	}
	if cmd.Image, err = s.Events.Image(ctx, u.Image); err != nil {
		return nil, before, err
	}
	if anyVisibility && cmd.Image.Sequence != 0 {
		u.Visibility = cmd.Image.State.Visibility
	}
	if cmd.AliasOfVersionName, err = s.Events.Alias(ctx, u.Image, u.Version); err != nil {
		return nil, before, err
	}
	for _, alias := range u.Aliases {
		if cmd.VersionOfAliasName[alias], err = s.Events.Version(ctx, u.Image, alias); err != nil {
			return nil, before, err
		}
	}
	for _, v := range u.Variants {
		if cmd.AliasOfFlavour[v.Flavour], err = s.Events.Alias(ctx, u.Image, v.Flavour); err != nil {
			return nil, before, err
		}
	}
	if u, cmd.Present, err = s.markPresent(ctx, u); err != nil {
		return nil, before, err
	}
	// One of these takes megabytes and a processor for a moment: many at once would take all.
	select {
	case s.packing <- struct{}{}:
		u, err = makeMetadata(u, cmd.Image.State)
		<-s.packing
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		return nil, before, err
	}
	cmd.Session = u
	changes, err = events.Initiate(cmd)
	return changes, before, err
}

// openedBefore looks whether the session that holds the version, or made it, was opened by the same request.
func (s *server) openedBefore(ctx context.Context, u events.Upload, version events.Version) (none events.Current[events.Upload], err error) {
	if u.IdempotencyKey == "" || version.State != events.StateReserved && version.State != events.StatePublished && version.State != events.StateWithdrawn {
		return none, nil
	}
	before, err := s.Events.Upload(ctx, version.UploadID)
	if err != nil || before.State.IdempotencyKey != u.IdempotencyKey || before.State.InitiatedBy != u.InitiatedBy {
		return none, err
	}
	if before.State.RequestDigest != u.RequestDigest {
		return none, &events.Error{Code: events.CodeIdempotencyReuse, Upload: before.State.ID,
			Text: "the Idempotency-Key was used for another request of this version: use a new key, or send the same request"}
	}
	return before, nil
}

// markPresent marks the files whose declared digest is a blob that is really there, and says on which state of the blobs that was
// found.
func (s *server) markPresent(ctx context.Context, u events.Upload) (events.Upload, map[events.Digest]events.Current[events.Blob], error) {
	present := map[events.Digest]events.Current[events.Blob]{}
	for _, f := range u.Files() {
		f.State, f.Digest = events.FilePending, ""
		if f.Declared == "" {
			continue
		}
		known, err := s.Events.Blob(ctx, f.Declared)
		if err != nil {
			return u, nil, err
		}
		if known.Sequence == 0 || known.State.State != events.BlobIsPresent || known.State.Size != f.Size || known.State.Damage != nil { // an upload repairs a damaged one
			continue
		}
		var wrongSize *blob.SizeMismatchError
		there, err := s.Blobs.HasBlob(f.Declared.Hex(), f.Size)
		if err != nil && !errors.As(err, &wrongSize) {
			return u, nil, err
		}
		if !there {
			s.suspect(f.Declared)
		}
		if there && s.mayKnow(ctx, f.Declared) { // a lost blob is taken in again
			f.State, f.Digest = events.FilePresent, f.Declared
			present[f.Declared] = known
		}
	}
	return u, present, nil
}

// mayKnow says whether the caller may hear that a blob is there: who guesses digests learns nothing. Where the
// database can't tell, the bytes are uploaded once more.
func (s *server) mayKnow(ctx context.Context, digest events.Digest) bool {
	if access.From(ctx).MayServer(events.RoleReader) {
		return true
	}
	_, err := s.findBlob(ctx, digest)
	return err == nil
}

// makeMetadata makes the Incus metadata tarball of each variant that has a root and brings none. It is made now,
// before the bytes, since the fingerprint is the digest of the tarball followed by the root.
func makeMetadata(u events.Upload, known events.Image) (events.Upload, error) {
	made := false
	for i := range u.Variants {
		v := &u.Variants[i]
		_, hasRoot := v.Root()
		if _, brought := events.MetadataFormat(v.Formats()); brought || !hasRoot {
			continue
		}
		data, err := incus.Metadata{
			Architecture: v.Architecture, CreationDate: u.InitiatedAt, Name: u.Image, Variant: v.Flavour, Version: u.Version,
			OS: first(u.OS, known.OS, u.Image), Release: first(u.Release, known.Release, u.Version), Description: first(u.Description, known.Description),
			ExpiryDate: u.EndOfSupport(), Requirements: u.Requirements, CloudInit: u.CloudInit,
		}.Tarball()
		if err != nil {
			return u, fmt.Errorf("make the metadata tarball of variant %s: %w", v.Name(), err)
		}
		made = true
		sum := sha256.Sum256(data)
		v.Metadata = &events.MadeFile{Format: events.FormatMetadata, Digest: events.Digest("sha256:" + hex.EncodeToString(sum[:])), Data: data}
	}
	if u.CloudInit && !made {
		return u, &events.Error{Code: events.CodeInvalid, Text: "cloud_init: imgsrv makes no metadata for this version",
			Fields: []events.FieldError{{Field: "cloud_init", Value: "true", Text: "templates are put into metadata that imgsrv makes, and here each variant brings its own, or none can be made: put them into yours"}}}
	}
	return u, nil
}

func first(texts ...string) string {
	for _, text := range texts {
		if text != "" {
			return text
		}
	}
	return ""
}

func isArchitecture(name string) bool {
	_, known := incus.Canonical(name)
	return known
}

func (s *server) sessionAnswer(ctx context.Context, u events.Upload, sequence events.Sequence) (*initiateOutput, error) {
	state, job, err := s.sessionState(ctx, u)
	if err != nil {
		return nil, err
	}
	if state == statePublished {
		s.waitVisible(ctx, job, len(u.Aliases))
	}
	out := &initiateOutput{Location: uploadURL(ctx, u.ID), Sequence: uint64(sequence)}
	out.Body = sessionOpened{UploadSessionID: u.ID, State: state, StatusURL: out.Location}
	if u.Complete {
		out.Body.JobURL = jobURL(ctx, u.JobID)
	}
	for ref, f := range u.Files() {
		file := fileToSend{Variant: ref.Variant, Format: ref.Format, State: string(f.State), Size: f.Size}
		if f.State == events.FilePending && u.State == events.SessionOpen {
			file.TUS = &tusTarget{CreateURL: base(ctx) + pathTUS, Metadata: UploadMetadata(u.ID, ref.Variant, ref.Format)}
		}
		out.Body.Files = append(out.Body.Files, file)
	}
	return out, nil
}
