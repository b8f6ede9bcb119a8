package backup_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/backup"
	"github.com/imgsrv/imgsrv/internal/eventstest"
)

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
		if head, err := r.Log.Head(t.Context()); err != nil || head != want {
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
	if _, err := s.tryBackUp(t.Context(), filepath.Join(s.Root, "backup"), nil); err == nil || !strings.Contains(err.Error(), "own folder") {
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
	r.Log = other.Log
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
	path := func(content string) string { return s.Path(eventstest.Digest(content)) }
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

// Of a blob that garbage collection takes while a backup runs, later events say so, and the backup goes on to them. One that is garbage
// already isn't asked for; one that nothing published names is gone in the restored server.
func TestGarbageIsInNoBackup(t *testing.T) {
	t.Parallel()
	s, place := newServer(t), t.TempDir()
	s.publish("1", "kept")
	collect := func(content string) {
		b := events.Blob{Digest: eventstest.Digest(content), Size: int64(len(content)), MediaType: "x"}
		s.Append(events.BlobPromoted{Blob: b})
		b.State = events.BlobIsCollecting
		s.Append(events.BlobCollecting{Blob: b})
		b.State = events.BlobIsCollected
		s.Append(events.BlobCollected{Blob: b})
		if err := os.Remove(s.Path(b.Digest)); err != nil {
			t.Fatal(err)
		}
	}
	withdraw := func(name, content string) {
		v := version(name, s.keep("disk.raw", content))
		v.State = events.StateWithdrawn
		s.Append(events.VersionWithdrawn{Version: v})
	}
	withdraw("2", "before")
	collect("before")
	withdraw("3", "meanwhile")
	collected := version("4", s.keep("disk.raw", "of a version that can't be restored"))
	collected.State, collected.Withdrawal = events.StateWithdrawn, &events.Withdrawal{Reason: "x", CollectedAt: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
	s.Append(events.VersionCollected{Version: collected})
	unnamed := events.Blob{Digest: eventstest.Digest("unnamed"), Size: 7, MediaType: "x"}
	s.Append(events.BlobPromoted{Blob: unnamed})
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
	if b, err := r.Log.Blob(t.Context(), unnamed.Digest); err != nil || b.State.State != events.BlobIsCollected {
		t.Errorf("the blob that nothing names is %q (%v)", b.State.State, err)
	}
}

func TestKeysOfTheServerComeAlongWhereTheyWereAskedFor(t *testing.T) {
	t.Parallel()
	s, place := newServer(t), t.TempDir()
	if err := os.WriteFile(filepath.Join(s.Root, "webhook.key"), []byte("key\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(s.Root, "mirror-credentials"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string]string{"id-1": "https://user:pass@host\n", ".secret-half": "half"} {
		if err := os.WriteFile(filepath.Join(s.Root, "mirror-credentials", name), []byte(data), 0o600); err != nil {
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
