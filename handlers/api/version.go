package api

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"reflect"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/internal/kept"
	"github.com/imgsrv/imgsrv/projections"
	"github.com/imgsrv/imgsrv/store/catalog"
)

type versionsInput struct {
	Image string `path:"image" example:"debian-bookworm"`
	PageInput
	AtInput
}

type versionsOutput struct {
	PageHeader
	AtHeader
	Body versionsPage
}

type versionsPage struct {
	Versions []versionSummary `json:"versions" nullable:"false"`
	Next     string           `json:"next,omitempty" doc:"after of the next page; absent on the last one"`
}

// versionSummary is a version in a list.
type versionSummary struct {
	Image       string    `json:"image" example:"debian-bookworm"`
	Version     string    `json:"version" example:"12.5.0"`
	PublishedAt time.Time `json:"published_at"`
	Aliases     []string  `json:"aliases" nullable:"false" doc:"Aliases that name it now"`
	Variants    []string  `json:"variants" nullable:"false" example:"[\"amd64.virtual-machine.default\"]"`
	Attachments []string  `json:"attachments,omitempty" nullable:"false" doc:"Names of its attachments" example:"[\"sbom.spdx.json\"]"`
	URL         string    `json:"url" format:"uri"`
}

type versionInput struct {
	Image       string `path:"image" example:"debian-bookworm"`
	Version     string `path:"version" doc:"Name of a version or of an alias" example:"latest"`
	IfNoneMatch string `header:"If-None-Match" doc:"ETag of an earlier answer"`
	AtInput
}

type versionOutput struct {
	Status       int
	ETag         string `header:"ETag"`
	CacheControl string `header:"Cache-Control"`
	AtHeader
	Body versionBody
}

// versionBody is a [versionDetail] in JSON.
type versionBody []byte

// Schema implements huma.SchemaProvider.
func (versionBody) Schema(r huma.Registry) *huma.Schema {
	return r.Schema(reflect.TypeFor[versionDetail](), true, "")
}

// MarshalJSON implements json.Marshaler.
func (b versionBody) MarshalJSON() ([]byte, error) { return b, nil }

func (b versionBody) encoded() []byte { return b }

// versionDetail is a version with all its files: the manifest.
type versionDetail struct {
	Image       string `json:"image" example:"debian-bookworm"`
	Version     string `json:"version" example:"12.5.0"`
	OS          string `json:"os,omitempty" example:"debian"`
	Release     string `json:"release,omitempty" example:"bookworm"`
	Description string `json:"description,omitempty"`
	Traits
	Visibility  string          `json:"visibility" enum:"public,private" doc:"Of the image, now"`
	PublishedAt time.Time       `json:"published_at"`
	PublishedBy string          `json:"published_by,omitempty"`
	Aliases     []string        `json:"aliases" nullable:"false" doc:"Aliases that name the version now"`
	URL         string          `json:"url" format:"uri"`
	JobURL      string          `json:"job_url" format:"uri" doc:"The job that published it"`
	Variants    []variantDetail `json:"variants" nullable:"false"`

	Attachments []attachmentDetail `json:"attachments,omitempty" nullable:"false" doc:"Files of the version as a whole: SBOMs, signatures, release notes"`
}

type variantDetail struct {
	Name         string         `json:"name" example:"amd64.virtual-machine.default"`
	Architecture string         `json:"architecture" example:"amd64"`
	Type         string         `json:"type" enum:"virtual-machine,container"`
	Flavour      string         `json:"flavour" example:"default"`
	Fingerprint  string         `json:"fingerprint,omitempty" doc:"The image's name in Incus and LXD: SHA-256 of metadata followed by root, hex"`
	Root         string         `json:"root,omitempty" doc:"The format that the fingerprint covers" example:"disk.qcow2"`
	Formats      []formatDetail `json:"formats" nullable:"false" doc:"Those that were published, then those that were made since"`
	Derived      []derivedState `json:"derived,omitempty" nullable:"false" doc:"Formats that are still to be made, and those that couldn't be"`
}

type formatDetail struct {
	Format    string            `json:"format" example:"disk.qcow2"`
	Digest    string            `json:"digest" example:"sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"`
	Size      int64             `json:"size" doc:"Bytes"`
	MediaType string            `json:"media_type" example:"application/x-qemu-disk"`
	Origin    string            `json:"origin" enum:"uploaded,made,derived" doc:"derived: made after the publication, and in no list of checksums"`
	MadeBy    *madeBy           `json:"made_by,omitempty" doc:"How a derived file was made"`
	Disk      *events.DiskInfo  `json:"disk,omitempty" doc:"What the header of a qcow2 disk says"`
	Incus     *events.ImageInfo `json:"incus,omitempty" doc:"What the metadata.yaml of a metadata tarball or unified image says"`
	URL       string            `json:"url" format:"uri" doc:"Download by name"`
	BlobURL   string            `json:"blob_url" format:"uri" doc:"Download by digest"`
}

// versions registers GET /api/images/{image}/versions: 200 a page, newest first, 400 a wrong cursor, 401, 404,
// 422, 503; and GET /api/images/{image}/versions/{version or alias}: 200 with ETag, 304, 401, 404, 410 it is withdrawn, 503.
func (s *server) versions() {
	read(s, huma.Operation{
		OperationID: "list-versions", Path: pathVersions, Tags: []string{tagImages}, Summary: "List an image's versions, newest first",
		Errors: []int{http.StatusBadRequest, http.StatusNotFound, http.StatusUnprocessableEntity},
	}, []*projections.Runner{s.CatalogProjection}, s.listVersions)
	read(s, huma.Operation{
		OperationID: "get-version", Path: pathVersion, Tags: []string{tagImages}, Summary: "Get a version's manifest",
		Description: "Digests, sizes and download URLs of all its files. The version may be named by an alias; a version wins over an alias of the same name.",
		Errors:      []int{http.StatusBadRequest, http.StatusNotFound, http.StatusGone},
		Responses:   map[string]*huma.Response{"304": {Description: "Not changed since the ETag in If-None-Match"}},
	}, []*projections.Runner{s.CatalogProjection}, s.getVersion)
}

func (s *server) listVersions(ctx context.Context, in *versionsInput) (*versionsOutput, error) {
	rows, next, asOf, err := s.versionsAt(ctx, in)
	if err != nil {
		return nil, err
	}
	path := pathImages + "/" + url.PathEscape(in.Image) + "/versions"
	out := &versionsOutput{PageHeader: in.next(ctx, path, next, "at", asOf.AtSequence), AtHeader: asOf, Body: versionsPage{Versions: []versionSummary{}, Next: next}}
	for _, row := range rows {
		summary := versionSummary{Image: row.Manifest.Image, Version: row.Manifest.Version, PublishedAt: row.PublishedAt,
			Aliases: listed(row.Aliases), Variants: []string{}, URL: versionURL(ctx, row.Manifest.Image, row.Manifest.Version)}
		for _, v := range row.Manifest.Variants {
			summary.Variants = append(summary.Variants, v.Name())
		}
		for _, a := range row.Manifest.Attachments {
			summary.Attachments = append(summary.Attachments, a.Name)
		}
		out.Body.Versions = append(out.Body.Versions, summary)
	}
	return out, nil
}

func (s *server) versionsAt(ctx context.Context, in *versionsInput) (rows []catalog.VersionRow, next string, asOf AtHeader, err error) {
	if in.At != "" {
		return s.pastVersions(ctx, in)
	}
	if _, err := s.visibleImage(ctx, in.Image); err != nil {
		return nil, "", asOf, err
	}
	rows, next, err = s.Catalog.Versions(ctx, in.Image, in.After, in.Limit)
	return rows, next, asOf, err
}

func (s *server) getVersion(ctx context.Context, in *versionInput) (*versionOutput, error) {
	row, asOf, err := s.versionAt(ctx, in.Image, in.Version, in.At)
	if err != nil {
		return nil, err
	}
	doc, err := s.versionDocument(ctx, in, row)
	if err != nil {
		return nil, notFoundAs(err, missingVersion(in.Image, in.Version))
	}
	out := &versionOutput{Status: http.StatusOK, CacheControl: "no-cache", AtHeader: asOf, Body: doc.body, ETag: doc.etag}
	if row.Visibility == events.Private {
		out.CacheControl = "private, no-cache"
	}
	if etagMatches(in.IfNoneMatch, out.ETag) {
		out.Status = http.StatusNotModified
	}
	return out, nil
}

// versionDocument is the answer that tells of a version.
type versionDocument struct {
	body versionBody
	etag string // of the bytes: aliases and the server's name are in them too
}

// versionQuestion is what a version's document depends on, besides the tables.
type versionQuestion struct {
	image, name, base string
	problems          bool // see seesProblems
}

// versionDocument makes the document of a version of the past, or has one of now that was made of the same tables.
func (s *server) versionDocument(ctx context.Context, in *versionInput, row catalog.VersionRow) (versionDocument, error) {
	if in.At != "" {
		return writeVersion(ctx, row)
	}
	question := versionQuestion{image: in.Image, name: in.Version, base: base(ctx), problems: seesProblems(ctx, in.Image)}
	return kept.Get(s.versionDocuments, question, func(doc versionDocument) int { return len(doc.body) + 512 }, func() (versionDocument, error) {
		row, err := s.Catalog.Version(ctx, in.Image, in.Version) // again: the one above may be of an earlier edition than what is kept now
		if err != nil {
			return versionDocument{}, err
		}
		return writeVersion(ctx, row)
	})
}

func writeVersion(ctx context.Context, row catalog.VersionRow) (versionDocument, error) {
	var body bytes.Buffer
	e := json.NewEncoder(&body)
	e.SetEscapeHTML(false) // as huma does
	if err := e.Encode(versionDetailOf(ctx, row)); err != nil {
		return versionDocument{}, fmt.Errorf("encode version %s of image %s: %w", row.Version, row.Image, err)
	}
	return versionDocument{body: body.Bytes(), etag: etagOf(body.Bytes())}, nil
}

func missingVersion(image, version string) error {
	return missing("image %q has no version or alias %q", image, version)
}

// versionAt is the version that a name or an alias stands for, if the caller may see it: now, or where at isn't empty, as it was then.
func (s *server) versionAt(ctx context.Context, image, version, at string) (row catalog.VersionRow, asOf AtHeader, err error) {
	if events.CheckImageName(image) != nil || events.CheckVersionName(version) != nil {
		return row, asOf, missingVersion(image, version)
	}
	if at != "" {
		row, asOf, err = s.pastVersion(ctx, image, version, at)
	} else {
		row, err = s.Catalog.Version(ctx, image, version)
	}
	if err == nil {
		err = s.mayHave(ctx, row.Manifest.Image, row.Manifest.Version, row.Visibility, row.Withdrawn)
	}
	if err != nil {
		return row, asOf, notFoundAs(err, missingVersion(image, version))
	}
	return row, asOf, nil
}

// mayHave refuses what belongs to a version that the caller may not see, with catalog.ErrNotFound, and to one that is withdrawn. Whether its bytes are
// collected the log knows, and where that doesn't answer nothing is said of it.
func (s *server) mayHave(ctx context.Context, image, version string, visibility events.Visibility, withdrawn *events.Withdrawal) error {
	if !maySee(ctx, image, visibility) {
		return catalog.ErrNotFound
	}
	if withdrawn == nil {
		return nil
	}
	text := fmt.Sprintf("version %s of image %s is withdrawn: %s", version, image, withdrawn.Reason)
	current, err := s.Events.Version(ctx, image, version)
	if now := current.State.Withdrawal; err == nil && now != nil && !now.CollectedAt.IsZero() {
		text += "; its bytes have been collected since " + now.CollectedAt.UTC().Format(time.RFC3339)
	}
	return &events.Error{Code: events.CodeWithdrawn, Text: text}
}

func versionDetailOf(ctx context.Context, row catalog.VersionRow) versionDetail {
	m := row.Manifest
	detail := versionDetail{Image: m.Image, Version: m.Version, OS: m.OS, Release: m.Release, Description: m.Description, Traits: traitsOf(m.Traits),
		Visibility: string(row.Visibility), PublishedAt: m.PublishedAt.UTC(), PublishedBy: m.PublishedBy, Aliases: listed(row.Aliases),
		URL: versionURL(ctx, m.Image, m.Version), JobURL: jobURL(ctx, m.JobID), Variants: []variantDetail{}, Attachments: attachmentsOf(ctx, m)}
	for _, v := range m.Variants {
		variant := variantDetail{Name: v.Name(), Architecture: v.Architecture, Type: string(v.Type), Flavour: v.Flavour,
			Fingerprint: v.Fingerprint, Root: v.Root, Formats: []formatDetail{}}
		for _, f := range v.Formats {
			variant.Formats = append(variant.Formats, formatDetail{Format: f.Format, Digest: string(f.Digest), Size: f.Size, MediaType: f.MediaType,
				Origin: f.Origin, Disk: f.Disk, Incus: f.Incus, URL: formatURL(ctx, m.Image, m.Version, v.Name(), f.Format), BlobURL: blobURL(ctx, f.Digest)})
		}
		addDerived(ctx, &variant, row)
		detail.Variants = append(detail.Variants, variant)
	}
	return detail
}
