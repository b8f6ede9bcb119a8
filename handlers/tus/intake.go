package tus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/access"
	"github.com/imgsrv/imgsrv/internal/faults"
	"github.com/imgsrv/imgsrv/internal/tracecontext"
	"github.com/imgsrv/imgsrv/internal/tusname"
	"github.com/imgsrv/imgsrv/store/blob"
)

// maxMetadataBytes bounds a metadata tarball that a publisher gives; they have a few hundred KiB at most.
const maxMetadataBytes = 16 << 20

func parseUploadID(id string) (session string, n int, ok bool) {
	session, n, ok = tusname.Parse(id)
	return session, n, ok && events.IsID(session)
}

// intakeSpec says how a declared file is received: where it is the root of a variant whose metadata
// tarball is known already, the Incus fingerprint is hashed beside the digest.
func (h *Handler) intakeSpec(upload *events.Upload, ref events.FileRef, file *events.UploadFile) (blob.IntakeSpec, error) {
	spec := blob.IntakeSpec{SizeBytes: file.Size}
	variant, ok := upload.Variant(ref.Variant)
	if !ok { // an attachment
		return spec, nil
	}
	root, ok := variant.Root()
	if !ok || root.Format != file.Format {
		return spec, nil
	}
	if variant.Metadata != nil {
		spec.Prefix = variant.Metadata.Data
		return spec, nil
	}
	format, ok := events.MetadataFormat(variant.Formats())
	if !ok {
		return spec, nil
	}
	metadata, ok := upload.File(variant.Name(), format)
	if !ok || metadata.State == events.FilePending || metadata.Size > maxMetadataBytes {
		return spec, nil // the job reads the bytes once more
	}
	var from io.ReadCloser
	var err error
	if metadata.State == events.FilePresent {
		from, _, err = h.store.OpenBlob(metadata.Digest.Hex())
	} else {
		from, err = h.store.OpenIngress(upload.JobID, metadata.Ingress)
	}
	if err != nil {
		return spec, fmt.Errorf("open the metadata tarball: %w", err)
	}
	defer from.Close() //nolint:errcheck // only read
	var data bytes.Buffer
	if _, err := data.ReadFrom(io.LimitReader(from, maxMetadataBytes)); err != nil {
		return spec, fmt.Errorf("read the metadata tarball: %w", err)
	}
	spec.Prefix = data.Bytes()
	return spec, nil
}

// finish hands a full intake to its job and records the fact. It may be called again, and at once.
func (h *Handler) finish(ctx context.Context, session string, n int) error {
	intake, err := h.store.OpenIntake(session, n)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // finished by somebody else
	}
	if err != nil {
		return err
	}
	digest, combined, err := intake.Sums()
	if err != nil {
		return err
	}
	upload, err := h.log.Upload(ctx, session)
	if err != nil {
		return err
	}
	linkTrace(ctx, upload.Event)
	ref, file, ok := upload.State.FileAt(n)
	if !ok {
		return events.Refuse(events.CodeNotFound, "upload session %s has no file %d", session, n)
	}
	name := ref.Variant + "." + ref.Format
	if file.State == events.FilePending && upload.State.State == events.SessionOpen {
		if err := h.store.LinkToIngress(ctx, session, n, upload.State.JobID, name); err != nil {
			return err
		}
	}
	cmd := events.CompleteFile{File: ref, Size: intake.Size(),
		Digest: events.Digest("sha256:" + digest), Ingress: name, At: h.now().UTC()}
	if combined != "" {
		cmd.Combined = events.Digest("sha256:" + combined)
	}
	actor := access.From(ctx).Name
	if actor == "" {
		actor = "imgsrv"
	}
	cause := jetstream.Cause{Key: "file " + tusname.ID(session, n), Actor: actor, Correlation: session}
	_, err = h.log.Decide(ctx, cause, func(ctx context.Context) ([]events.Change, error) {
		current, err := h.log.Upload(ctx, session)
		if err != nil {
			return nil, err
		}
		return events.Complete(cmd, current)
	})
	if err != nil && !events.IsCode(err, events.CodeFileComplete) {
		return err
	}
	faults.Point("file recorded", "")
	err = h.store.DropIntake(session, n)
	faults.Point("file handed over", "")
	return err
}

// linkTrace leads from the trace of a request to that of what it goes on with: a client that sends no traceparent has a trace for
// each of its requests.
func linkTrace(ctx context.Context, e events.Event) {
	span, before := trace.SpanFromContext(ctx), tracecontext.SpanOf(e.TraceParent)
	if before.IsValid() && span.SpanContext().TraceID() != before.TraceID() {
		span.AddLink(trace.Link{SpanContext: before})
	}
}

// Offset says how many bytes of a session's n-th file have arrived; the error wraps fs.ErrNotExist when
// no upload of it was created, or it is complete.
func (h *Handler) Offset(session string, n int) (int64, error) {
	intake, err := h.store.OpenIntake(session, n)
	if errors.Is(err, blob.ErrDataLost) || errors.Is(err, blob.ErrStateLost) {
		return 0, fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	}
	if err != nil {
		return 0, err
	}
	return intake.Offset(), nil
}

// ExpiresAt says when an open session expires unless something happens to it before; ok is false for a
// session without a folder, whose bytes are all handed over.
func (h *Handler) ExpiresAt(session string) (at time.Time, ok bool) {
	last, err := h.store.SessionActivity(session)
	if err != nil {
		return time.Time{}, false
	}
	return last.Add(h.idle), true
}

// Recover finishes files that were full when the last process ended, before their fact was appended.
func (h *Handler) Recover(ctx context.Context) error {
	sessions, err := h.store.Sessions()
	if err != nil {
		return err
	}
	for _, session := range sessions {
		upload, err := h.log.Upload(ctx, session.ID)
		if err != nil {
			return err
		}
		for n := 0; ; n++ {
			if _, _, ok := upload.State.FileAt(n); !ok {
				break
			}
			intake, err := h.store.OpenIntake(session.ID, n)
			if err != nil || intake.Offset() != intake.Size() {
				continue // not created, or not full: its client comes back, or it expires
			}
			if err := h.finish(ctx, session.ID, n); err != nil {
				h.logger.WarnContext(ctx, "full upload not recorded at start; its next request tries again", "upload", tusname.ID(session.ID, n), "error", err)
			}
		}
	}
	return nil
}

// Expire calls ExpireAbandoned at once and then now and then, and returns when ctx ends.
func (h *Handler) Expire(ctx context.Context, every time.Duration) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		if err := h.ExpireAbandoned(ctx); err != nil && ctx.Err() == nil {
			h.logger.WarnContext(ctx, "abandoned uploads not cleaned; tried again later", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// orphanAge is how old the folder of a session without a fact has to be before nobody is about to append the fact: many times as long
// as that may take on any node.
const orphanAge = 10 * time.Minute

// ExpireAbandoned ends sessions without activity for longer than the handler's idle time, and removes the
// folders of sessions that are over, and of those that a crash kept from ever beginning.
func (h *Handler) ExpireAbandoned(ctx context.Context) error {
	sessions, err := h.store.Sessions()
	if err != nil {
		return err
	}
	for _, session := range sessions {
		rested := h.now().Sub(session.LastActivity)
		if rested < min(h.idle, orphanAge) {
			continue
		}
		if rested < h.idle {
			upload, err := h.log.Upload(ctx, session.ID)
			if err != nil {
				return fmt.Errorf("look for the session of folder %s: %w", session.ID, err)
			}
			if upload.Sequence > 0 {
				continue
			}
		}
		if err := h.expire(ctx, session.ID); err != nil {
			return fmt.Errorf("expire session %s: %w", session.ID, err)
		}
	}
	return nil
}

func (h *Handler) expire(ctx context.Context, session string) error {
	cause := jetstream.Cause{Key: "expire " + session, Actor: "imgsrv", Correlation: session}
	_, err := h.log.Decide(ctx, cause, func(ctx context.Context) ([]events.Change, error) {
		upload, err := h.log.Upload(ctx, session)
		if err != nil {
			return nil, err
		}
		version, err := h.log.Version(ctx, upload.State.Image, upload.State.Version)
		if err != nil {
			return nil, err
		}
		return events.ExpireUpload(upload, version)
	})
	switch {
	case events.IsCode(err, events.CodePublishing):
		return nil // complete, and on its way to its job
	case err == nil, events.IsCode(err, events.CodeNotFound), events.IsCode(err, events.CodeSessionClosed):
		return h.store.RemoveSession(session)
	}
	return err
}
