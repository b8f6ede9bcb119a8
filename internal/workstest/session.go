package workstest

import (
	"bytes"
	"context"
	"time"

	"github.com/google/uuid"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/internal/eventstest"
	"github.com/imgsrv/imgsrv/store/blob"
)

// RootFormat is the root's of the sessions that [Session] makes.
const RootFormat = "rootfs.squashfs"

var (
	// Container is the variant of the sessions that [Session] makes.
	Container = events.Variant{Architecture: "amd64", Type: events.Container, Flavour: events.DefaultFlavour}
	// Metadata is their metadata, an xz file as far as its magic goes.
	Metadata = append([]byte{0xfd, '7', 'z', 'X', 'Z', 0}, "metadata"...)
)

// Root is a squashfs as far as its magic goes.
func Root(text string) []byte { return append([]byte("hsqs"), text...) }

// Session is a session that waits for a container's root of some bytes.
func Session(image, version string, sizeBytes int64) events.Upload {
	return events.Upload{ID: uuid.Must(uuid.NewV7()).String(), Image: image, Version: version, Visibility: events.Public, InitiatedAt: time.Now().UTC(), InitiatedBy: "test",
		Variants: []events.UploadVariant{{Variant: Container, Files: []events.UploadFile{{Format: RootFormat, Size: sizeBytes, State: events.FilePending}},
			Metadata: &events.MadeFile{Format: events.FormatMetadata, Digest: eventstest.Digest(Metadata), Data: Metadata}}}}
}

// NoArchitecture is for [events.InitiateUpload]: no name is one.
func NoArchitecture(string) bool { return false }

// Bring receives the root of a session that was made by [Session] and is in the log, as handlers/tus does, up to the fact that it is
// complete; it may be called from any goroutine.
func (w *Works) Bring(session string, root []byte) error {
	ctx, size := context.Background(), int64(len(root))
	if err := w.Store.CreateSession(session); err != nil {
		return err
	}
	intake, err := w.Store.CreateIntake(ctx, session, 0, blob.IntakeSpec{SizeBytes: size})
	if err != nil {
		return err
	}
	if _, err := intake.Append(ctx, bytes.NewReader(root)); err != nil {
		return err
	}
	name := Container.Name() + "." + RootFormat
	if err := w.Store.LinkToIngress(ctx, session, 0, events.JobIDFor(session), name); err != nil {
		return err
	}
	return w.Decide(func(ctx context.Context) ([]events.Change, error) {
		current, err := w.Log.Upload(ctx, session)
		if err != nil {
			return nil, err
		}
		return events.Complete(events.CompleteFile{File: events.FileRef{Variant: Container.Name(), Format: RootFormat}, Size: size,
			Digest: eventstest.Digest(root), Ingress: name, At: time.Now().UTC()}, current)
	})
}
