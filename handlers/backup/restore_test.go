package backup_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/backup"
	"github.com/imgsrv/imgsrv/internal/eventstest"
)

func TestARestoreHasTheSameEventsUnderTheSameSequencesAndTheSameBytes(t *testing.T) {
	t.Parallel()
	s, place := newServer(t), t.TempDir()
	s.publish("1", "one", "shared")
	s.publish("2", "two", "shared")
	withdrawn := version("3", s.keep("disk.raw", "withdrawn"))
	withdrawn.State, withdrawn.Withdrawal = events.StateWithdrawn, &events.Withdrawal{Reason: "bad", By: "admin", At: time.Now().UTC()} // can be restored
	s.Append(events.VersionWithdrawn{Version: withdrawn})
	made := s.keep("disk.vmdk", "derived")
	derived := events.Derived{Image: "debian", Version: "1", Variant: "amd64.virtual-machine.default", Format: "disk.vmdk", Kind: events.DerivedFormat, State: events.DerivedIsMade, Digest: made.Digest, Size: made.Size}
	s.Append(events.DerivedMade{Derived: derived})
	attached := version("4")
	note := s.keep("notes.txt", "attachment")
	attached.Manifest.Attachments = []events.ManifestAttachment{{Name: "notes.txt", Digest: note.Digest, Size: note.Size}}
	head := s.Append(events.VersionPublished{Version: attached})
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
	if r.Log.Identity() == s.Log.Identity() {
		t.Error("the restored stream takes itself for the one that was backed up")
	}
	if err := backup.CheckFinished(r.dir); err != nil {
		t.Error(err)
	}
	if left, err := r.Store.IngressJobs(); err != nil || len(left) != 0 {
		t.Errorf("the restore left %v in ingress (%v)", left, err)
	}
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
		s.Append(events.BlobPromoted{Blob: b})
		b.Damage = &events.Damage{FoundAt: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), Reason: events.DamageMissing}
		s.Append(events.BlobDamaged{Blob: b})
		if err := os.Remove(s.Path(b.Digest)); err != nil {
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
		if b, err := r.Log.Blob(t.Context(), eventstest.Digest(content)); err != nil || b.Sequence == 0 || (b.State.Damage != nil) != damaged {
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
			if head, err := r.Log.Head(t.Context()); err != nil || head != 0 {
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

// An older release that doesn't know all that is in a backup leaves it to a newer one, rather than to restore a part.
func TestABackupOfANewerReleaseIsRefused(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.publish("1", "one")
	replaced := func(data []byte, old, with string) []byte {
		if !bytes.Contains(data, []byte(old)) {
			t.Fatalf("no %s in %s", old, data)
		}
		return bytes.ReplaceAll(data, []byte(old), []byte(with))
	}
	write := func(path string, data []byte) {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, newer := range map[string]struct {
		make func(place string)
		want string
	}{
		"form": {func(place string) {
			path := filepath.Join(place, "backup.json")
			write(path, replaced([]byte(files(t, place)["backup.json"]), `"format": 1`, `"format": 2`))
		}, "use a newer one"},
		"type of event": {func(place string) {
			const segment, point = "events/00000000000000000001-00000000000000000001.jsonl.zst", "points/00000000000000000001.json"
			packed := []byte(files(t, place)[segment])
			unzip, _ := zstd.NewReader(nil)
			zip, _ := zstd.NewWriter(nil)
			plain, err := unzip.DecodeAll(packed, nil)
			if err != nil {
				t.Fatal(err)
			}
			again := zip.EncodeAll(replaced(plain, "imgsrv.version.published.v1", "imgsrv.version.published.v9"), nil)
			document := replaced([]byte(files(t, place)[point]), fmt.Sprintf("%x", sha256.Sum256(packed)), fmt.Sprintf("%x", sha256.Sum256(again)))
			write(filepath.Join(place, segment), again)
			write(filepath.Join(place, point), replaced(document, fmt.Sprintf(`"bytes": %d`, len(packed)), fmt.Sprintf(`"bytes": %d`, len(again))))
		}, "a newer release wrote it"},
	} {
		place := t.TempDir()
		s.backUp(place)
		newer.make(place)
		r := newRestore(t, place, 0)
		if err := r.run(t.Context(), nil); err == nil || !strings.Contains(err.Error(), newer.want) {
			t.Errorf("%s: %v, want %q", name, err, newer.want)
		}
		if head, err := r.Log.Head(t.Context()); err != nil || head != 0 {
			t.Errorf("%s: %d events were restored (%v)", name, head, err)
		}
	}
}

// Ended early at any of its stages, a restore goes on when it is given again.
func TestARestoreGoesOnWhereItWas(t *testing.T) {
	t.Parallel()
	s, place := newServer(t), t.TempDir()
	for i := range 5 {
		s.publish(fmt.Sprint(i), fmt.Sprint("disk ", i), "shared")
	}
	head := s.Append(events.UploadInitiated{Upload: session("half")})
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
			if end, err := r.Log.Head(t.Context()); err != nil || end != head+1 {
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
		if _, err := s.Log.Append(t.Context(), jetstream.Cause{}, batch...); err != nil {
			t.Fatal(err)
		}
	}
	s.backUp(place)
	r := restore(t, place, 0)
	if r.Abandoned != (backup.Abandoned{Uploads: 2, Jobs: 1}) {
		t.Errorf("ended: %+v", r.Abandoned)
	}
	for _, id := range []string{open, full} {
		if upload, err := r.Log.Upload(t.Context(), id); err != nil || upload.State.State != events.SessionAborted || !strings.Contains(upload.State.Reason, "restored from a backup") {
			t.Errorf("session: %s %q (%v)", upload.State.State, upload.State.Reason, err)
		}
	}
	ended, err := r.Log.Job(t.Context(), job)
	if err != nil || ended.State.State != events.JobStateFailed || ended.State.Problem.Code != "restored" || !ended.State.Problem.Final {
		t.Errorf("job: %+v (%v)", ended.State, err)
	}
	for _, name := range []string{"open", "full", "running"} {
		if v, err := r.Log.Version(t.Context(), "debian", name); err != nil || v.State.State != events.StateReleased {
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
	consume(s.Log, 2)
	s.backUp(place) // as of 5
	s.publish("5", "5")
	consume(s.Log, 4)
	s.publish("6", "6")
	s.backUp(place) // as of 7

	for to, want := range map[events.Sequence][]events.Sequence{7: {5, 6, 7}, 6: {3, 4, 5, 6}, 5: {3, 4, 5}, 4: {1, 2, 3, 4}} {
		r := restore(t, place, to)
		r.publish("last", "last") // lets the consumer end
		if got := consume(r.Log, to); !cmp.Equal(got, want) {
			t.Errorf("restored to %d, the consumer got %v, want %v", to, got, want)
		}
	}
}
