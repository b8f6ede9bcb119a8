package backup_test

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/backup"
	"github.com/imgsrv/imgsrv/internal/eventstest"
	"github.com/imgsrv/imgsrv/internal/natstest"
	"github.com/imgsrv/imgsrv/internal/workstest"
)

// server is the truth of a server.
type server struct{ *workstest.Works }

func newServer(t *testing.T) *server {
	t.Helper()
	return &server{workstest.New(t)}
}

// keep makes a blob and its reference.
func (s *server) keep(format, content string) events.ManifestFormat {
	s.T.Helper()
	return events.ManifestFormat{Format: format, Digest: s.Put([]byte(content)), Size: int64(len(content)), MediaType: "application/octet-stream", Origin: events.OriginUploaded}
}

func version(name string, files ...events.ManifestFormat) events.Version {
	m := &events.Manifest{Image: "debian", Version: name, Visibility: events.Public, Variants: []events.ManifestVariant{{
		Variant: events.Variant{Architecture: "amd64", Type: events.VirtualMachine, Flavour: events.DefaultFlavour}, Formats: files}}}
	return events.Version{Image: "debian", Version: name, State: events.StatePublished, Manifest: m}
}

func (s *server) publish(name string, contents ...string) events.Sequence {
	s.T.Helper()
	var files []events.ManifestFormat
	for i, content := range contents {
		files = append(files, s.keep(fmt.Sprintf("disk%d.raw", i), content))
	}
	return s.Append(events.VersionPublished{Version: version(name, files...)})
}

func (s *server) backUp(place string) backup.Result {
	s.T.Helper()
	result, err := s.tryBackUp(s.T.Context(), place, nil)
	if err != nil {
		s.T.Fatal(err)
	}
	return result
}

func (s *server) tryBackUp(ctx context.Context, place string, report func(backup.Progress)) (backup.Result, error) {
	if report == nil {
		report = func(backup.Progress) {}
	}
	cfg := backup.Config{Log: s.Log, Blobs: s.Store, Release: "test", Own: []string{s.Root}, Logger: slog.New(slog.DiscardHandler),
		Secrets: map[string]string{"webhook.key": filepath.Join(s.Root, "webhook.key"), "signing.key": filepath.Join(s.Root, "absent"),
			"mirror-credentials": filepath.Join(s.Root, "mirror-credentials")}}
	return backup.Make(ctx, cfg, backup.Request{Place: place, WithSecrets: true}, report)
}

// restored is a server that was made from a backup.
type restored struct {
	server
	backup.Restored
	dir string // of its data
	cfg backup.RestoreConfig
}

func newRestore(t *testing.T, place string, to events.Sequence) *restored {
	t.Helper()
	dir := t.TempDir()
	r := &restored{server: server{&workstest.Works{T: t, Root: filepath.Join(dir, "storage"), Log: natstest.Log(t)}}, dir: dir}
	r.cfg = backup.RestoreConfig{Place: place, DataDir: dir, StorageDir: r.Root, To: to, Logger: slog.New(slog.DiscardHandler),
		OpenLog: func(context.Context) (*jetstream.Log, func() error, error) {
			return r.Log, func() error { return nil }, nil
		}}
	return r
}

func (r *restored) run(ctx context.Context, report func(backup.Progress)) (err error) {
	if report == nil {
		report = func(backup.Progress) {}
	}
	if r.Restored, err = backup.Restore(ctx, r.cfg, report); err != nil {
		return err
	}
	r.Store = r.OpenStore()
	return nil
}

func restore(t *testing.T, place string, to events.Sequence) *restored {
	t.Helper()
	r := newRestore(t, place, to)
	if err := r.run(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	return r
}

func (s *server) history(upTo events.Sequence) (records []jetstream.Record) {
	s.T.Helper()
	err := s.Log.Export(s.T.Context(), upTo, func(r jetstream.Record) error {
		records = append(records, r)
		return nil
	})
	if err != nil {
		s.T.Fatal(err)
	}
	return records
}

// wantBlobs compares all blobs of a store with contents.
func (s *server) wantBlobs(contents ...string) {
	s.T.Helper()
	want, got := map[string]string{}, map[string]string{}
	for _, content := range contents {
		want[eventstest.Digest(content).Hex()] = content
	}
	for path, content := range files(s.T, filepath.Join(s.Root, "cas", "sha256")) {
		got[filepath.Base(path)] = content
	}
	if diff := cmp.Diff(want, got); diff != "" {
		s.T.Errorf("blobs (-want +got):\n%s", diff)
	}
}

// files reads all files below a folder, by their paths in it.
func files(t testing.TB, dir string) map[string]string {
	t.Helper()
	found := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		rel, _ := filepath.Rel(dir, path)
		found[rel] = string(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

var exceptTime = cmpopts.IgnoreFields(jetstream.Record{}, "Time") // when the stream stored it
