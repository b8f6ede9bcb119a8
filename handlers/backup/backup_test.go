package backup_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/backup"
	"github.com/imgsrv/imgsrv/internal/eventstest"
	"github.com/imgsrv/imgsrv/internal/natstest"
	"github.com/imgsrv/imgsrv/store/blob"
)

// server is the truth of a server: a log and a store.
type server struct {
	t     *testing.T
	log   *jetstream.Log
	store *blob.Store
	dir   string
}

func newServer(t *testing.T) *server {
	t.Helper()
	dir := t.TempDir()
	store, err := blob.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return &server{t: t, log: natstest.Log(t), store: store, dir: dir}
}

// keep makes a blob and its reference.
func (s *server) keep(format, content string) events.ManifestFormat {
	s.t.Helper()
	digest := eventstest.Digest(content)
	if err := errors.Join(s.store.WriteIngress("job", "file", []byte(content)), s.store.Promote(s.t.Context(), "job", "file", digest.Hex(), int64(len(content)))); err != nil {
		s.t.Fatal(err)
	}
	return events.ManifestFormat{Format: format, Digest: digest, Size: int64(len(content)), MediaType: "application/octet-stream", Origin: events.OriginUploaded}
}

func (s *server) append(facts ...events.Fact) events.Sequence {
	s.t.Helper()
	var changes []events.Change
	for _, fact := range facts {
		last, _, err := s.log.Last(s.t.Context(), fact.Entity())
		if err != nil {
			s.t.Fatal(err)
		}
		changes = append(changes, events.Change{Fact: fact, Expect: last.Sequence})
	}
	sequence, err := s.log.Append(s.t.Context(), jetstream.Cause{Actor: "test"}, changes...)
	if err != nil {
		s.t.Fatal(err)
	}
	return sequence
}

func version(name string, files ...events.ManifestFormat) events.Version {
	m := &events.Manifest{Image: "debian", Version: name, Visibility: events.Public, Variants: []events.ManifestVariant{{
		Variant: events.Variant{Architecture: "amd64", Type: events.VirtualMachine, Flavour: events.DefaultFlavour}, Formats: files}}}
	return events.Version{Image: "debian", Version: name, State: events.StatePublished, Manifest: m}
}

func (s *server) publish(name string, contents ...string) events.Sequence {
	s.t.Helper()
	var files []events.ManifestFormat
	for i, content := range contents {
		files = append(files, s.keep(fmt.Sprintf("disk%d.raw", i), content))
	}
	return s.append(events.VersionPublished{Version: version(name, files...)})
}

func (s *server) backUp(place string) backup.Result {
	s.t.Helper()
	result, err := s.tryBackUp(s.t.Context(), place, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	return result
}

func (s *server) tryBackUp(ctx context.Context, place string, report func(backup.Progress)) (backup.Result, error) {
	if report == nil {
		report = func(backup.Progress) {}
	}
	cfg := backup.Config{Log: s.log, Blobs: s.store, Release: "test", Own: []string{s.dir}, Logger: slog.New(slog.DiscardHandler),
		Secrets: map[string]string{"webhook.key": filepath.Join(s.dir, "webhook.key"), "signing.key": filepath.Join(s.dir, "absent"),
			"mirror-credentials": filepath.Join(s.dir, "mirror-credentials")}}
	return backup.Make(ctx, cfg, backup.Request{Place: place, WithSecrets: true}, report)
}

// restored is a server that was made from a backup.
type restored struct {
	server
	backup.Restored
	cfg backup.RestoreConfig
}

func newRestore(t *testing.T, place string, to events.Sequence) *restored {
	t.Helper()
	r := &restored{server: server{t: t, log: natstest.Log(t), dir: t.TempDir()}}
	r.cfg = backup.RestoreConfig{Place: place, DataDir: r.dir, StorageDir: filepath.Join(r.dir, "storage"), To: to, Logger: slog.New(slog.DiscardHandler),
		OpenLog: func(context.Context) (*jetstream.Log, func() error, error) {
			return r.log, func() error { return nil }, nil
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
	r.store, err = blob.Open(r.cfg.StorageDir)
	return err
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
	s.t.Helper()
	err := s.log.Export(s.t.Context(), upTo, func(r jetstream.Record) error {
		records = append(records, r)
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return records
}

// wantBlobs compares all blobs of a store with contents.
func (s *server) wantBlobs(contents ...string) {
	s.t.Helper()
	want, got := map[string]string{}, map[string]string{}
	for _, content := range contents {
		want[eventstest.Digest(content).Hex()] = content
	}
	for path, content := range files(s.t, filepath.Join(s.store.Root(), "cas", "sha256")) {
		got[filepath.Base(path)] = content
	}
	if diff := cmp.Diff(want, got); diff != "" {
		s.t.Errorf("blobs (-want +got):\n%s", diff)
	}
}

// files reads all files below a folder, by their paths in it.
func files(t *testing.T, dir string) map[string]string {
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

func TestARestoreHasTheSameEventsUnderTheSameSequencesAndTheSameBytes(t *testing.T) {
	t.Parallel()
	s, place := newServer(t), t.TempDir()
	s.publish("1", "one", "shared")
	s.publish("2", "two", "shared")
	withdrawn := version("3", s.keep("disk.raw", "withdrawn"))
	withdrawn.State, withdrawn.Withdrawal = events.StateWithdrawn, &events.Withdrawal{Reason: "bad", By: "admin", At: time.Now().UTC()} // can be restored
	s.append(events.VersionWithdrawn{Version: withdrawn})
	made := s.keep("disk.vmdk", "derived")
	derived := events.Derived{Image: "debian", Version: "1", Variant: "amd64.virtual-machine.default", Format: "disk.vmdk", Kind: events.DerivedFormat, State: events.DerivedIsMade, Digest: made.Digest, Size: made.Size}
	s.append(events.DerivedMade{Derived: derived})
	attached := version("4")
	note := s.keep("notes.txt", "attachment")
	attached.Manifest.Attachments = []events.ManifestAttachment{{Name: "notes.txt", Digest: note.Digest, Size: note.Size}}
	head := s.append(events.VersionPublished{Version: attached})
	s.keep("x", "of no version")

	result := s.backUp(place)
	if result.Sequence != head || result.NewEvents != int64(head) || result.Copied != (backup.Amount{Count: 6, Bytes: 38}) || len(result.Missing) != 0 {
		t.Errorf("result %+v", result)
	}
	r := restore(t, place, 0)
	if diff := cmp.Diff(s.history(head), r.history(head+10), exceptTime); diff != "" {
		t.Errorf("events (-backed up +restored):\n%s", diff)
	}
	r.wantBlobs("one", "two", "shared", "withdrawn", "derived", "attachment")
	if token, err := os.ReadFile(filepath.Join(r.dir, "admin.token")); err != nil || !strings.HasPrefix(string(token), "imgsrv_") || strings.TrimSpace(string(token)) != r.Token {
		t.Errorf("admin.token holds %q (%v)", token, err)
	}
	if r.log.Identity() == s.log.Identity() {
		t.Error("the restored stream takes itself for the one that was backed up")
	}
	if err := backup.CheckFinished(r.dir); err != nil {
		t.Error(err)
	}
	if left, err := r.store.IngressJobs(); err != nil || len(left) != 0 {
		t.Errorf("the restore left %v in ingress (%v)", left, err)
	}
}

func TestABackupOfTheSameStreamCopiesOnlyWhatIsNew(t *testing.T) {
	t.Parallel()
	s, place := newServer(t), t.TempDir()
	first := s.publish("1", "one", "shared")
	s.backUp(place)
	before := files(t, place)
	between := s.publish("2", "two", "shared")
	second := s.publish("3", "three")

	result := s.backUp(place)
	if result.Previous != first || result.NewEvents != 2 || result.Copied.Count != 2 || result.Blobs.Count != 4 {
		t.Errorf("second backup: %+v", result)
	}
	again := s.backUp(place)
	if again.NewEvents != 0 || again.Copied.Count != 0 || again.Sequence != second {
		t.Errorf("a backup of nothing new: %+v", again)
	}
	after := files(t, place)
	for name, content := range before {
		if after[name] != content {
			t.Errorf("the second backup changed %s", name)
		}
	}
	for to, contents := range map[events.Sequence][]string{first: {"one", "shared"}, between: {"one", "two", "shared"}, second: {"one", "two", "three", "shared"}, 0: {"one", "two", "three", "shared"}} {
		r := restore(t, place, to)
		r.wantBlobs(contents...)
		want := to
		if to == 0 {
			want = second
		}
		if head, err := r.log.Head(t.Context()); err != nil || head != want {
			t.Errorf("restored to %d: the head is %d (%v)", to, head, err)
		}
	}
	if err := newRestore(t, place, second+1).run(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "newest backup") {
		t.Errorf("restore beyond the newest backup: %v", err)
	}
}

func TestABackupIsntMixedWithAnythingElse(t *testing.T) {
	t.Parallel()
	s, place := newServer(t), t.TempDir()
	s.publish("1", "one")
	s.backUp(place)
	other := newServer(t)
	other.publish("1", "other")
	if _, err := other.tryBackUp(t.Context(), place, nil); !errors.Is(err, backup.ErrForeign) || !strings.Contains(err.Error(), "choose another place") {
		t.Errorf("backup over that of another stream: %v", err)
	}
	occupied := t.TempDir()
	if err := os.WriteFile(filepath.Join(occupied, "thesis.tex"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.tryBackUp(t.Context(), occupied, nil); !errors.Is(err, backup.ErrForeign) {
		t.Errorf("backup into a folder of something else: %v", err)
	}
	if err := newRestore(t, occupied, 0).run(t.Context(), nil); !errors.Is(err, backup.ErrNoBackup) {
		t.Errorf("restore from a folder of something else: %v", err)
	}
	if _, err := s.tryBackUp(t.Context(), filepath.Join(s.dir, "backup"), nil); err == nil || !strings.Contains(err.Error(), "own folder") {
		t.Errorf("backup into the storage: %v", err)
	}
	if _, err := s.tryBackUp(t.Context(), "backup", nil); err == nil {
		t.Error("backup to a path relative to nobody knows what succeeded")
	}

	r := newRestore(t, place, 0)
	if err := os.WriteFile(filepath.Join(r.dir, "signing.key"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := r.run(t.Context(), nil); !errors.Is(err, backup.ErrNotEmpty) {
		t.Errorf("restore into a folder that is a server's: %v", err)
	}
	r = newRestore(t, place, 0)
	r.log = other.log
	if err := r.run(t.Context(), nil); !errors.Is(err, jetstream.ErrNotEmpty) {
		t.Errorf("restore into a stream with events: %v", err)
	}
}

// However far a backup came: it is none until it has ended, and the next one takes what is there.
func TestABackupThatEndsEarlyIsNone(t *testing.T) {
	t.Parallel()
	s, place := newServer(t), t.TempDir()
	s.publish("1", "one", "two", "three")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	_, err := s.tryBackUp(ctx, place, func(p backup.Progress) {
		if p.Stage == "blobs" {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("a cancelled backup: %v", err)
	}
	if err := newRestore(t, place, 0).run(t.Context(), nil); !errors.Is(err, backup.ErrNoBackup) {
		t.Errorf("restore from half a backup: %v", err)
	}
	if err := os.WriteFile(filepath.Join(place, ".tmp-1"), nil, 0o600); err != nil { // of a kill in mid-copy
		t.Fatal(err)
	}
	s.backUp(place)
	restore(t, place, 0).wantBlobs("one", "two", "three")
	if _, err := os.Stat(filepath.Join(place, ".tmp-1")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a leftover is still there: %v", err)
	}
}

func TestWhatTheServerItselfLacksIsReportedAndDoesntEndTheBackup(t *testing.T) {
	t.Parallel()
	s, place := newServer(t), t.TempDir()
	s.publish("1", "good", "absent", "rotten")
	path := func(content string) string {
		hex := eventstest.Digest(content).Hex()
		return filepath.Join(s.dir, "cas", "sha256", hex[:2], hex)
	}
	if err := errors.Join(os.Remove(path("absent")), os.Chmod(path("rotten"), 0o600), os.WriteFile(path("rotten"), []byte("ratten"), 0o600)); err != nil {
		t.Fatal(err)
	}
	result := s.backUp(place)
	reasons := map[events.Digest]string{}
	for _, m := range result.Missing {
		reasons[m.Digest] = m.Reason
	}
	if len(reasons) != 2 || !strings.Contains(reasons[eventstest.Digest("absent")], "isn't in the store") || !strings.Contains(reasons[eventstest.Digest("rotten")], "damaged") {
		t.Errorf("missing: %v", result.Missing)
	}
	r := newRestore(t, place, 0)
	var missing *backup.MissingError
	if err := r.run(t.Context(), nil); !errors.As(err, &missing) || len(missing.Missing) != 2 || !strings.Contains(missing.Missing[0].Reason, "when the backup was made") {
		t.Fatalf("restore: %v", err)
	}
	if err := backup.CheckFinished(r.dir); err == nil {
		t.Error("the restore is taken for finished")
	}
	r.cfg.AllowMissing = true
	if err := r.run(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	r.wantBlobs("good")
}

// What was found damaged after a backup was made is whole in what is restored from it, and known to be.
func TestWhatTheServerHasLostSinceIsThereAfterARestore(t *testing.T) {
	t.Parallel()
	s, place := newServer(t), t.TempDir()
	s.publish("1", "good", "lost later")
	s.backUp(place)
	s.publish("2", "lost before")
	for _, content := range []string{"lost later", "lost before"} {
		b := events.Blob{Digest: eventstest.Digest(content), Size: int64(len(content)), MediaType: "x"}
		s.append(events.BlobPromoted{Blob: b})
		b.Damage = &events.Damage{FoundAt: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), Reason: events.DamageMissing}
		s.append(events.BlobDamaged{Blob: b})
		if err := os.Remove(filepath.Join(s.dir, "cas", "sha256", b.Digest.Hex()[:2], b.Digest.Hex())); err != nil {
			t.Fatal(err)
		}
	}
	if result := s.backUp(place); len(result.Missing) != 1 {
		t.Fatalf("missing: %v", result.Missing)
	}
	r := newRestore(t, place, 0)
	r.cfg.AllowMissing = true
	if err := r.run(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	r.wantBlobs("good", "lost later")
	for content, damaged := range map[string]bool{"lost later": false, "lost before": true} {
		if b, err := r.log.Blob(t.Context(), eventstest.Digest(content)); err != nil || b.Sequence == 0 || (b.State.Damage != nil) != damaged {
			t.Errorf("%s: %+v (%v)", content, b.State, err)
		}
	}
}

func TestDamageInABackupIsNoticed(t *testing.T) {
	t.Parallel()
	s, place := newServer(t), t.TempDir()
	s.publish("1", "one", "two")
	s.backUp(place)
	hex := eventstest.Digest("one").Hex()
	for name, want := range map[string]string{"cas/sha256/" + hex[:2] + "/" + hex: "damaged in the backup", "events/00000000000000000001-00000000000000000001.jsonl.zst": "read events/"} {
		t.Run(strings.Split(name, "/")[0], func(t *testing.T) {
			path := filepath.Join(place, name)
			good, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			bad := append([]byte(nil), good...)
			bad[len(bad)/2] ^= 1
			if err := os.WriteFile(path, bad, 0o600); err != nil {
				t.Fatal(err)
			}
			r := newRestore(t, place, 0)
			if err := r.run(t.Context(), nil); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("restore: %v, want %q", err, want)
			}
			if head, err := r.log.Head(t.Context()); err != nil || head != 0 {
				t.Errorf("%d events were restored (%v)", head, err)
			}
			if err := os.WriteFile(path, good, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := r.run(t.Context(), nil); err != nil { // mended, the same restore goes on
				t.Fatal(err)
			}
			r.wantBlobs("one", "two")
		})
	}
}

// Ended early at any of its stages, a restore goes on when it is given again.
func TestARestoreGoesOnWhereItWas(t *testing.T) {
	t.Parallel()
	s, place := newServer(t), t.TempDir()
	for i := range 5 {
		s.publish(fmt.Sprint(i), fmt.Sprint("disk ", i), "shared")
	}
	head := s.append(events.UploadInitiated{Upload: session("half")})
	s.backUp(place)
	for _, stage := range []string{"read", "blobs", "events", "end"} {
		t.Run(stage, func(t *testing.T) {
			t.Parallel()
			r := newRestore(t, place, 0)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			err := r.run(ctx, func(p backup.Progress) {
				if p.Stage == stage {
					cancel()
				}
				if stage == "end" && p.Stage == "events" { // a folder in place of the token, which comes last
					_ = os.Mkdir(filepath.Join(r.dir, "admin.token"), 0o700)
				}
			})
			if err == nil {
				t.Fatal("it wasn't ended")
			}
			if err := backup.CheckFinished(r.dir); err == nil || !strings.Contains(err.Error(), "isn't finished") {
				t.Errorf("a server would start on it: %v", err)
			}
			_ = os.Remove(filepath.Join(r.dir, "admin.token"))
			other := r.cfg
			other.To = 1
			if _, err := backup.Restore(t.Context(), other, func(backup.Progress) {}); err == nil || !strings.Contains(err.Error(), "another restore") {
				t.Errorf("another restore into the same folder: %v", err)
			}
			if err := r.run(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(s.history(head), r.history(head), exceptTime); diff != "" {
				t.Errorf("events (-backed up +restored):\n%s", diff)
			}
			if end, err := r.log.Head(t.Context()); err != nil || end != head+1 {
				t.Errorf("the head is %d (%v), want one event more than %d: the session ended once", end, err, head)
			}
			r.wantBlobs("disk 0", "disk 1", "disk 2", "disk 3", "disk 4", "shared")
		})
	}
}

func session(name string) events.Upload {
	u := eventstest.Session("debian", name)
	u.ID, u.State, u.InitiatedAt = "0199c0de-0000-7000-8000-000000000000", events.SessionOpen, time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	u.JobID = events.JobIDFor(u.ID)
	return u
}

// What wasn't published yet has no bytes in a backup: the restored server says so of each session and job, and its version is free.
func TestWhatWasntFinishedEndsWithAReason(t *testing.T) {
	t.Parallel()
	s, place := newServer(t), t.TempDir()
	h := eventstest.New()
	open, _ := h.Initiate(t, eventstest.Session("debian", "open"))
	full, _ := h.Initiate(t, eventstest.Session("debian", "full"))
	running, _ := h.Initiate(t, eventstest.Session("debian", "running"))
	for _, err := range []error{h.CompleteFile(t, full), h.CompleteFile(t, running), h.CompleteUpload(t, running)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	job := events.JobIDFor(running)
	for range 7 { // in the middle of promote
		if err := h.Advance(t, job); err != nil {
			t.Fatal(err)
		}
	}
	for _, batch := range h.Batches {
		if _, err := s.log.Append(t.Context(), jetstream.Cause{}, batch...); err != nil {
			t.Fatal(err)
		}
	}
	s.backUp(place)
	r := restore(t, place, 0)
	if r.Abandoned != (backup.Abandoned{Uploads: 2, Jobs: 1}) {
		t.Errorf("ended: %+v", r.Abandoned)
	}
	for _, id := range []string{open, full} {
		if upload, err := r.log.Upload(t.Context(), id); err != nil || upload.State.State != events.SessionAborted || !strings.Contains(upload.State.Reason, "restored from a backup") {
			t.Errorf("session: %s %q (%v)", upload.State.State, upload.State.Reason, err)
		}
	}
	ended, err := r.log.Job(t.Context(), job)
	if err != nil || ended.State.State != events.JobStateFailed || ended.State.Problem.Code != "restored" || !ended.State.Problem.Final {
		t.Errorf("job: %+v (%v)", ended.State, err)
	}
	for _, name := range []string{"open", "full", "running"} {
		if v, err := r.log.Version(t.Context(), "debian", name); err != nil || v.State.State != events.StateReleased {
			t.Errorf("version %s is %s (%v)", name, v.State.State, err)
		}
	}
}

// A consumer goes on behind what it had handled, by the newest backup that has nothing beyond the restored sequence.
func TestConsumersGoOn(t *testing.T) {
	t.Parallel()
	s, place := newServer(t), t.TempDir()
	consumer := jetstream.Consumer{Name: "watcher", Subjects: []string{events.SubjectOfKind(events.KindVersion)}, InOrder: true, Workers: 1}
	consume := func(log *jetstream.Log, until events.Sequence) (got []events.Sequence) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		acknowledged := false
		err := log.Consume(ctx, consumer, func(_ context.Context, d jetstream.Delivery) error {
			if acknowledged { // the one before is, now that another comes
				cancel()
				return io.EOF
			}
			got = append(got, d.Sequence)
			acknowledged = d.Sequence == until
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	for i := range 5 {
		s.publish(fmt.Sprint(i), fmt.Sprint(i))
	}
	consume(s.log, 2)
	s.backUp(place) // as of 5
	s.publish("5", "5")
	consume(s.log, 4)
	s.publish("6", "6")
	s.backUp(place) // as of 7

	for to, want := range map[events.Sequence][]events.Sequence{7: {5, 6, 7}, 6: {3, 4, 5, 6}, 5: {3, 4, 5}, 4: {1, 2, 3, 4}} {
		r := restore(t, place, to)
		r.publish("last", "last") // lets the consumer end
		if got := consume(r.log, to); !cmp.Equal(got, want) {
			t.Errorf("restored to %d, the consumer got %v, want %v", to, got, want)
		}
	}
}

// Of a blob that garbage collection takes while a backup runs, later events say so, and the backup goes on to them. One that is garbage
// already isn't asked for; one that nothing published names is gone in the restored server.
func TestGarbageIsInNoBackup(t *testing.T) {
	t.Parallel()
	s, place := newServer(t), t.TempDir()
	s.publish("1", "kept")
	collect := func(content string) {
		b := events.Blob{Digest: eventstest.Digest(content), Size: int64(len(content)), MediaType: "x"}
		s.append(events.BlobPromoted{Blob: b})
		b.State = events.BlobIsCollecting
		s.append(events.BlobCollecting{Blob: b})
		b.State = events.BlobIsCollected
		s.append(events.BlobCollected{Blob: b})
		hex := b.Digest.Hex()
		if err := os.Remove(filepath.Join(s.dir, "cas", "sha256", hex[:2], hex)); err != nil {
			t.Fatal(err)
		}
	}
	withdraw := func(name, content string) {
		v := version(name, s.keep("disk.raw", content))
		v.State = events.StateWithdrawn
		s.append(events.VersionWithdrawn{Version: v})
	}
	withdraw("2", "before")
	collect("before")
	withdraw("3", "meanwhile")
	collected := version("4", s.keep("disk.raw", "of a version that can't be restored"))
	collected.State, collected.Withdrawal = events.StateWithdrawn, &events.Withdrawal{Reason: "x", CollectedAt: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
	s.append(events.VersionCollected{Version: collected})
	unnamed := events.Blob{Digest: eventstest.Digest("unnamed"), Size: 7, MediaType: "x"}
	s.append(events.BlobPromoted{Blob: unnamed})
	once := false
	result, err := s.tryBackUp(t.Context(), place, func(p backup.Progress) {
		if p.Stage == "events" && !once { // the events are written, and no blob is yet
			once = true
			collect("meanwhile")
		}
	})
	if err != nil || len(result.Missing) != 0 || result.Blobs.Count != 1 {
		t.Fatalf("backup: %+v, %v", result, err)
	}
	r := restore(t, place, 0)
	r.wantBlobs("kept")
	if b, err := r.log.Blob(t.Context(), unnamed.Digest); err != nil || b.State.State != events.BlobIsCollected {
		t.Errorf("the blob that nothing names is %q (%v)", b.State.State, err)
	}
}

func TestKeysOfTheServerComeAlongWhereTheyWereAskedFor(t *testing.T) {
	t.Parallel()
	s, place := newServer(t), t.TempDir()
	if err := os.WriteFile(filepath.Join(s.dir, "webhook.key"), []byte("key\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(s.dir, "mirror-credentials"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string]string{"id-1": "https://user:pass@host\n", ".secret-half": "half"} {
		if err := os.WriteFile(filepath.Join(s.dir, "mirror-credentials", name), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s.publish("1", "one")
	if result := s.backUp(place); !cmp.Equal(result.Secrets, []string{"mirror-credentials/id-1", "webhook.key"}) {
		t.Errorf("keys in the backup: %v", result.Secrets)
	}
	r := restore(t, place, 0)
	if data, err := os.ReadFile(filepath.Join(r.dir, "mirror-credentials", "id-1")); err != nil || string(data) != "https://user:pass@host\n" {
		t.Errorf("the credentials are %q (%v)", data, err)
	}
	if data, err := os.ReadFile(filepath.Join(r.dir, "webhook.key")); err != nil || string(data) != "key\n" {
		t.Errorf("webhook.key is %q (%v)", data, err)
	}
}
