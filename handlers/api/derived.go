package api

import (
	"context"
	"time"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/access"
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

func derivedStateOf(ctx context.Context, d events.Derived) derivedState {
	s := derivedState{Format: d.Format, State: string(d.State), Attempts: d.Attempts, RetryAt: timeOrNone(d.RetryAt)}
	who := access.From(ctx)
	if d.Problem != nil && (who.May(events.RolePublisher, d.Image) || who.May(events.RoleOperator, d.Image)) {
		s.Error = &jobError{Code: d.Problem.Code, Detail: d.Problem.Detail, Final: d.Problem.Final}
	}
	return s
}
