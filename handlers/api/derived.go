package api

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/access"
	"github.com/imgsrv/imgsrv/internal/convert"
	"github.com/imgsrv/imgsrv/store/catalog"
)

// originDerived is the origin of what was made after the publication; the other origins are the manifest's.
const originDerived = "derived"

// madeBy says how a derived file was made.
type madeBy struct {
	Tool        string    `json:"tool" example:"qemu-img"`
	ToolVersion string    `json:"tool_version" example:"10.0.0"`
	Arguments   string    `json:"arguments" doc:"With the formats' names where the files were" example:"convert -f qcow2 -O vmdk disk.qcow2 disk.vmdk"`
	Verified    string    `json:"verified" doc:"How the result was compared with its source"`
	From        string    `json:"from" doc:"The format it was made from" example:"disk.qcow2"`
	FromDigest  string    `json:"from_digest" example:"sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"`
	BaseVersion string    `json:"base_version,omitempty" doc:"Of a delta: the version that it is applied to" example:"12.4.0"`
	BaseDigest  string    `json:"base_digest,omitempty" doc:"Of a delta: the file that it is applied to"`
	MadeAt      time.Time `json:"made_at"`
}

// derivedState is a format that isn't there.
type derivedState struct {
	Format   string     `json:"format" example:"disk.vmdk"`
	State    string     `json:"state" enum:"requested,failed,skipped" doc:"skipped: it was optional, and the server has no tool for it"`
	Attempts int        `json:"attempts,omitempty" doc:"That failed"`
	RetryAt  *time.Time `json:"retry_at,omitempty" doc:"When a failed one is tried again by itself"`
	Error    *jobError  `json:"error,omitempty" doc:"Why it isn't there; only for who may publish to the image or operates the server"`
}

// addDerived adds to a variant what was made after the publication, and what wasn't.
func addDerived(ctx context.Context, v *variantDetail, row catalog.VersionRow) {
	for _, d := range row.Derived {
		switch {
		case d.Variant != v.Name:
		case d.State == events.DerivedIsMade:
			v.Formats = append(v.Formats, formatDetail{Format: d.Format, Digest: string(d.Digest), Size: d.Size, MediaType: d.MediaType, Origin: originDerived,
				MadeBy: madeByOf(d), URL: formatURL(ctx, row.Manifest.Image, row.Manifest.Version, v.Name, d.Format), BlobURL: blobURL(ctx, d.Digest)})
		default:
			v.Derived = append(v.Derived, derivedStateOf(ctx, d))
		}
	}
}

func madeByOf(d events.Derived) *madeBy {
	m := madeBy{BaseVersion: d.BaseVersion, BaseDigest: string(d.BaseDigest), MadeAt: d.MadeAt.UTC()}
	if d.How != nil {
		m.Tool, m.ToolVersion, m.Arguments, m.Verified = d.How.Tool, d.How.ToolVersion, d.How.Arguments, d.How.Verified
	}
	if d.From != nil {
		m.From, m.FromDigest = d.From.Format, string(d.From.Digest)
	}
	return &m
}

// seesProblems says whether the caller may know why files of an image can't be made.
func seesProblems(ctx context.Context, image string) bool {
	who := access.From(ctx)
	return who.May(events.RolePublisher, image) || who.May(events.RoleOperator, image)
}

func derivedStateOf(ctx context.Context, d events.Derived) derivedState {
	s := derivedState{Format: d.Format, State: string(d.State), Attempts: d.Attempts, RetryAt: timeOrNone(d.RetryAt)}
	if d.Problem != nil && seesProblems(ctx, d.Image) {
		s.Error = &jobError{Code: d.Problem.Code, Detail: d.Problem.Detail, Final: d.Problem.Final}
	}
	return s
}

type deriveInput struct {
	Image   string `path:"image" example:"debian-bookworm"`
	Version string `path:"version" doc:"Name of a version, not of an alias" example:"12.5.0"`
	Variant string `path:"variant" example:"amd64.virtual-machine.default"`
	Body    struct {
		Format string `json:"format" doc:"disk.compressed.qcow2, disk.raw (with disk.raw.map.json), disk.raw.zst, disk.vhdx or disk.vmdk" example:"disk.vmdk"`
	}
}

type derivedFormat struct {
	Image   string `json:"image" example:"debian-bookworm"`
	Version string `json:"version" example:"12.5.0"`
	Variant string `json:"variant" example:"amd64.virtual-machine.default"`
	Format  string `json:"format" example:"disk.vmdk"`
	State   string `json:"state" enum:"requested,made"`
	URL     string `json:"url" format:"uri" doc:"Where the file is, once it is made"`
}

// derived registers POST /api/images/{image}/versions/{version}/variants/{variant}/derive: 202 with Location and
// Imgsrv-Sequence, 400, 401, 403, 404 no such published version or variant, 409 it was published with the format,
// 413, 415, 422 a format that imgsrv can't make, 503.
func (s *server) derived() {
	write(s, events.RolePublisher, huma.Operation{
		OperationID: "derive-format", Method: http.MethodPost, Path: pathDerive, DefaultStatus: http.StatusAccepted, Tags: []string{tagPublish},
		Summary:     "Make a further format of a published disk",
		Description: "Also tries again what has failed. The version shows the format under `derived` until it is made, and then among the variant's formats.",
		Errors:      []int{http.StatusNotFound, http.StatusConflict},
	}, s.deriveFormat)
}

func (s *server) deriveFormat(ctx context.Context, in *deriveInput) (*locatedOutput[derivedFormat], error) {
	format := in.Body.Format
	if events.CheckImageName(in.Image) != nil || events.CheckVersionName(in.Version) != nil {
		return nil, missing("image %q has no version %q", in.Image, in.Version)
	}
	if !convert.Known(format) {
		return nil, invalid("format", format, errUnknownFormat())
	}
	read := func(ctx context.Context, format string) (events.Current[events.Derived], error) {
		return s.Events.Derived(ctx, in.Image, in.Version, in.Variant, format)
	}
	after, err := change(ctx, s, format, read, func(ctx context.Context, current events.Current[events.Derived]) ([]events.Change, error) {
		version, err := s.Events.Version(ctx, in.Image, in.Version)
		if err != nil {
			return nil, err
		}
		changes, err := events.Derive(events.RequestDerived{Image: in.Image, Name: in.Version, Variant: in.Variant, Format: format, Kind: events.DerivedFormat,
			Version: version, By: access.From(ctx).Name, At: s.Clock().UTC()}, current)
		if err != nil {
			return nil, err
		}
		for _, v := range version.State.Manifest.Variants {
			if _, ok := v.SourceDisk(); v.Name() == in.Variant && !ok {
				return nil, invalid("format", format, fmt.Errorf("variant %s has no disk to make it of: no qcow2 that can be read, and no disk.raw", in.Variant))
			}
		}
		return changes, nil
	})
	if err != nil {
		return nil, err
	}
	return locatedAnswer(versionURL(ctx, in.Image, in.Version), after, derivedFormat{Image: in.Image, Version: in.Version, Variant: in.Variant,
		Format: format, State: string(after.State.State), URL: formatURL(ctx, in.Image, in.Version, in.Variant, format)}), nil
}

func errUnknownFormat() error {
	return fmt.Errorf("imgsrv makes %s; %s comes with %s", strings.Join(convert.Formats(), ", "), convert.MapFormat, convert.RawFormat)
}
