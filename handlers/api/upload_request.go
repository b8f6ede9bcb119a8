package api

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/access"
	"github.com/imgsrv/imgsrv/handlers/problem"
	"github.com/imgsrv/imgsrv/internal/convert"
	"github.com/imgsrv/imgsrv/internal/imagefile"
	"github.com/imgsrv/imgsrv/internal/incus"
)

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

// attachmentRequest declares a file of the version as a whole.
type attachmentRequest struct {
	Name   string `json:"name" doc:"Name of the file in the version; not SHA256SUMS or what begins so" example:"sbom.spdx.json"`
	Size   int64  `json:"size" format:"int64" doc:"Length in bytes" example:"20480"`
	SHA256 string `json:"sha256,omitempty" doc:"As for the files of a variant" example:"9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"`
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
	digest := func(field, text string) (digest events.Digest) {
		if text != "" {
			var err error
			if digest, err = events.ParseDigest(text); err != nil {
				broken = append(broken, events.FieldError{Field: field, Value: text, Text: "a SHA-256 has 64 lower-case hex digits"})
			}
		}
		return digest
	}
	for i, v := range body.Variants {
		variant := events.UploadVariant{Variant: events.Variant{Type: events.VariantType(v.Type), Flavour: v.Flavour}}
		if variant.Flavour == "" {
			variant.Flavour = events.DefaultFlavour
		}
		var known bool
		if variant.Architecture, known = incus.Canonical(v.Architecture); !known {
			variant.Architecture = v.Architecture // so that only one rule is named as broken
			broken = append(broken, events.FieldError{Field: fmt.Sprintf("variants[%d].architecture", i), Value: v.Architecture,
				Text: errNoArchitecture().Error()})
		}
		variant.Fingerprint = digest(fmt.Sprintf("variants[%d].fingerprint", i), v.Fingerprint)
		for k, f := range v.Files {
			variant.Files = append(variant.Files, events.UploadFile{Format: f.Format, Size: f.Size, State: events.FilePending,
				Declared: digest(fmt.Sprintf("variants[%d].files[%d].sha256", i, k), f.SHA256)})
		}
		u.Variants = append(u.Variants, variant)
	}
	for i, a := range body.Attachments {
		u.Attachments = append(u.Attachments, events.UploadFile{Format: a.Name, Size: a.Size, State: events.FilePending,
			Declared: digest(fmt.Sprintf("attachments[%d].sha256", i), a.SHA256)})
	}
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

// checkSizes holds each declared file against the server's cap.
func (s *server) checkSizes(u events.Upload) error {
	for ref, f := range u.Files() {
		if s.MaxUploadBytes > 0 && f.Size > s.MaxUploadBytes {
			return problem.New(problem.CodeTooLarge, fmt.Sprintf("%s has %d bytes, and this server takes at most %d a file", ref, f.Size, s.MaxUploadBytes))
		}
	}
	return nil
}

// checkDerive says what a session asks for in vain.
func checkDerive(u events.Upload) (broken []events.FieldError) {
	disk := false
	for ref, f := range u.Files() {
		kind, _ := imagefile.Expect(f.Format)
		disk = disk || !ref.IsAttachment() && (kind == imagefile.Qcow2 || f.Format == convert.RawFormat)
	}
	for i, format := range u.Derive {
		field := fmt.Sprintf("derive[%d]", i)
		switch {
		case !convert.Known(format):
			broken = append(broken, events.FieldError{Field: field, Value: format, Text: errUnknownFormat().Error()})
		case !disk:
			broken = append(broken, events.FieldError{Field: field, Value: format, Text: "no variant has a disk to make it of: a qcow2, or disk.raw"})
		}
	}
	return broken
}
