package garbage_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/garbage"
	"github.com/imgsrv/imgsrv/handlers/operations"
	"github.com/imgsrv/imgsrv/internal/eventstest"
	"github.com/imgsrv/imgsrv/internal/workstest"
	"github.com/imgsrv/imgsrv/store/blob"
)

func writeFile(dir, name string, data []byte) error {
	return os.WriteFile(filepath.Join(dir, name), data, 0o600)
}

// stored are the digests of the files in the store whose bytes are right.
func (y *yard) stored() []events.Digest {
	y.T.Helper()
	found := []events.Digest{}
	err := y.Store.Blobs(context.Background(), func(f blob.File) error {
		file, _, err := y.Store.OpenBlob(f.SHA256)
		if err != nil {
			return err
		}
		data, err := io.ReadAll(file)
		if err := errors.Join(err, file.Close()); err != nil {
			return err
		}
		if got := eventstest.Digest(data); got.Hex() != f.SHA256 {
			return fmt.Errorf("blob %s has the bytes of %s", f.SHA256, got)
		}
		found = append(found, events.Digest("sha256:"+f.SHA256))
		return nil
	})
	if err != nil {
		y.T.Error(err)
	}
	return found
}

func sorted(digests ...events.Digest) []events.Digest {
	digests = append([]events.Digest{}, digests...)
	slices.Sort(digests)
	return slices.Compact(digests)
}

func (y *yard) wantStored(what string, digests ...events.Digest) {
	y.T.Helper()
	if diff := cmp.Diff(sorted(digests...), y.stored()); diff != "" {
		y.T.Errorf("%s: blobs in the store (-want +got):\n%s", what, diff)
	}
}

// A withdrawn version can be restored for a time. After it the bytes go that it alone named, with what was derived from it and
// from it alone; and then it can't be restored.
func TestWhatAWithdrawnVersionAloneNamedGoesAfterATime(t *testing.T) {
	t.Parallel()
	y := newYard(t)
	y.publications()
	old, both, delta, format := workstest.Root("old"), workstest.Root("both"), []byte("delta from old"), []byte("format of old")
	y.publish("1", old)
	y.publish("2", both)
	y.publish("3", both)
	for _, err := range []error{y.derive("1", "disk.vmdk", "", format), y.derive("2", "d.vcdiff", "1", delta), y.withdraw("1"), y.withdraw("2"), y.restore("2")} {
		if err != nil {
			t.Fatal(err)
		}
	}
	c := y.collector(nil)
	all := []events.Digest{eventstest.Digest(workstest.Metadata), eventstest.Digest(old), eventstest.Digest(both), eventstest.Digest(delta), eventstest.Digest(format)}
	start := time.Now()
	for _, after := range []time.Duration{0, 2 * time.Hour, garbage.DefaultKeepWithdrawn - time.Minute} {
		y.now = start.Add(after)
		if result := y.collect(c, false); result.Blobs+result.Versions+result.Derived != 0 {
			t.Errorf("%s after the withdrawal: %+v", after, result)
		}
	}
	y.wantStored("within the time", all...)

	y.now = start.Add(garbage.DefaultKeepWithdrawn + time.Minute)
	dry := y.collect(c, true)
	y.wantStored("after a dry run", all...)
	if err := y.restore("1"); err != nil {
		t.Fatalf("restored after a dry run: %v", err)
	}
	if result := y.collect(c, true); len(result.Items) != 0 {
		t.Errorf("of a restored version would go: %+v", result.Items)
	}
	y.now = start
	if err := y.withdraw("1"); err != nil {
		t.Fatal(err)
	}
	y.now = start.Add(garbage.DefaultKeepWithdrawn + time.Minute)
	result := y.collect(c, false)
	if want := int64(len(old) + len(format)); result.Blobs != 2 || result.Versions != 1 || result.Derived != 2 || result.Bytes != want || result.Kept != 0 {
		t.Errorf("collected %+v, want 2 blobs of %d bytes", result, want)
	}
	if dry.Bytes != result.Bytes || dry.Blobs != result.Blobs || !dry.DryRun || dry.Derived != result.Derived {
		t.Errorf("the dry run said %+v", dry)
	}
	y.wantStored("after the time", eventstest.Digest(workstest.Metadata), eventstest.Digest(both), eventstest.Digest(delta))
	if err := y.restore("1"); !events.IsCode(err, events.CodeCollected) {
		t.Errorf("restored: %v", err)
	}
	// Clients may have the delta in their lists yet.
	y.now = y.now.Add(garbage.LeastGrace + time.Minute)
	if result := y.collect(c, false); result.Blobs != 1 || result.Versions+result.Derived != 0 {
		t.Errorf("an hour later: %+v", result)
	}
	y.wantStored("an hour later", eventstest.Digest(workstest.Metadata), eventstest.Digest(both))

	// What was collected is taken in again, by the same digest.
	y.publish("4", old)
	y.wantStored("published again", eventstest.Digest(workstest.Metadata), eventstest.Digest(both), eventstest.Digest(old))
}

// What an open session was told of stays for it, however old it is.
func TestASessionHoldsTheBlobsThatItWasToldOf(t *testing.T) {
	t.Parallel()
	y := newYard(t)
	y.publications()
	data := workstest.Root("x")
	y.publish("1", data)
	u := events.Upload{}
	err := y.Decide(func(ctx context.Context) ([]events.Change, error) {
		known, there, err := y.present(ctx, eventstest.Digest(data), int64(len(data)))
		if err != nil || !there {
			return nil, errors.Join(err, errors.New("the blob isn't there"))
		}
		described, err := y.Log.Image(ctx, image)
		u = events.Upload{ID: "019aba40-0000-7000-8000-000000000001", Image: image, Version: "2", Visibility: events.Public, InitiatedAt: time.Now().UTC(), InitiatedBy: "test",
			Variants: []events.UploadVariant{{Variant: workstest.Container, Files: []events.UploadFile{
				{Format: workstest.RootFormat, Size: int64(len(data)), State: events.FilePresent, Digest: eventstest.Digest(data)},
				{Format: events.FormatMetadata, Size: 5, State: events.FilePending}}}}}
		if err != nil {
			return nil, err
		}
		return events.Initiate(events.InitiateUpload{Session: u, Image: described, Present: map[events.Digest]events.Current[events.Blob]{eventstest.Digest(data): known},
			IsArchitecture: workstest.NoArchitecture})
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := y.withdraw("1"); err != nil {
		t.Fatal(err)
	}
	y.now = time.Now().Add(30 * 24 * time.Hour)
	c := y.collector(nil)
	y.collect(c, false)
	y.wantStored("while the session is open", eventstest.Digest(data))
	err = y.Decide(func(ctx context.Context) ([]events.Change, error) {
		upload, err := y.Log.Upload(ctx, u.ID)
		if err != nil {
			return nil, err
		}
		version, err := y.Log.Version(ctx, image, "2")
		if err != nil {
			return nil, err
		}
		return events.ExpireUpload(upload, version)
	})
	if err != nil {
		t.Fatal(err)
	}
	y.collect(c, false)
	y.wantStored("after it has ended")
}

// have makes bytes a blob that nothing needs but what the test says.
func (y *yard) have(data []byte) events.Blob {
	y.T.Helper()
	b := events.Blob{Digest: y.Put(data), Size: int64(len(data)), MediaType: "text/plain"}
	y.Append(events.BlobPromoted{Blob: b})
	return b
}

// A job needs its blobs as long as it may go on: one that failed for now for a day, one that failed for good not at all.
func TestAJobHoldsItsBlobs(t *testing.T) {
	t.Parallel()
	y := newYard(t)
	held := map[string]events.Blob{}
	start := time.Now().UTC()
	for name, job := range map[string]events.Job{
		"waits":       {State: events.JobStateQueued},
		"runs":        {State: events.JobStateRunning},
		"failed":      {State: events.JobStateFailed, Problem: &events.Problem{Code: "x"}, EndedAt: start},
		"was refused": {State: events.JobStateFailed, Problem: &events.Problem{Code: "x", Final: true}, EndedAt: start},
		"cancelled":   {State: events.JobStateCancelled, Problem: &events.Problem{Code: "x", Final: true}, EndedAt: start},
	} {
		b := y.have([]byte("of a job that " + name))
		held[name] = b
		job.ID = "019aba40-0000-7000-8000-" + b.Digest.Hex()[:12]
		job.Files = []events.JobFile{{Variant: workstest.Container.Name(), Format: "rootfs.squashfs", Size: b.Size, Digest: b.Digest, Origin: events.OriginUploaded}}
		y.Append(events.JobStepStarted{Job: job})
	}
	c := y.collector(nil)
	for _, at := range []struct {
		after time.Duration
		holds []string
	}{
		{0, []string{"waits", "runs", "failed", "was refused", "cancelled"}}, // nothing goes as soon as that
		{23 * time.Hour, []string{"waits", "runs", "failed"}},
		{25 * time.Hour, []string{"waits", "runs"}},
	} {
		y.now = start.Add(at.after)
		y.collect(c, false)
		var want []events.Digest
		for _, name := range at.holds {
			want = append(want, held[name].Digest)
		}
		y.wantStored(at.after.String()+" later", want...)
	}
}

// All files of a version hold their blobs, also those that are of no variant.
func TestAVersionHoldsItsAttachments(t *testing.T) {
	t.Parallel()
	y := newYard(t)
	format, attachment := y.have([]byte("format")), y.have([]byte("attachment"))
	version := events.Version{Image: image, Version: "1", State: events.StatePublished, Manifest: &events.Manifest{Image: image, Version: "1", Visibility: events.Public,
		Variants:    []events.ManifestVariant{{Variant: workstest.Container, Formats: []events.ManifestFormat{{Format: "rootfs.squashfs", Digest: format.Digest, Size: format.Size}}}},
		Attachments: []events.ManifestAttachment{{Name: "SHA256SUMS", Digest: attachment.Digest, Size: attachment.Size}}}}
	y.Append(events.VersionPublished{Version: version})
	y.now = time.Now().Add(30 * 24 * time.Hour)
	y.collect(y.collector(nil), false)
	y.wantStored("a month later", format.Digest, attachment.Digest)
}

// Files without a fact, sessions that are over and the ingress of jobs that have ended are what crashes leave.
func TestWhatCrashesLeftGoes(t *testing.T) {
	t.Parallel()
	y := newYard(t)
	data := []byte("nobody's")
	if err := errors.Join(y.Store.WriteIngress("orphan", "file", data), y.Store.Admit(t.Context(), "orphan", "file", eventstest.Digest(data).Hex(), int64(len(data)))); err != nil {
		t.Fatal(err)
	}
	if err := y.Store.CreateSession("019aba40-0000-7000-8000-00000000000a"); err != nil {
		t.Fatal(err)
	}
	c := y.collector(nil)
	if result := y.collect(c, false); len(result.Items) != 0 {
		t.Errorf("at once: %+v", result.Items)
	}
	y.now = time.Now().Add(25 * time.Hour)
	// The ingress has the same bytes under another name, which go last.
	result := y.collect(c, false)
	if result.Blobs != 1 || result.Sessions != 1 || result.Ingress != 1 || result.Bytes != int64(len(data)) {
		t.Errorf("a day later: %+v", result)
	}
	y.wantStored("a day later")
	for _, dir := range []string{"uploads", "ingress/jobs"} {
		if left, err := os.ReadDir(filepath.Join(y.Root, dir)); err != nil || len(left) != 0 {
			t.Errorf("%s: %v %v", dir, left, err)
		}
	}
}

// A file that can't be removed is told, and keeps nothing else from being collected.
func TestABlobThatResistsKeepsNoOther(t *testing.T) {
	t.Parallel()
	y := newYard(t)
	var digests []events.Digest
	for i := range 4 {
		digests = append(digests, y.Put(fmt.Appendf(nil, "nobody's %d", i)))
	}
	slices.Sort(digests)
	if err := os.MkdirAll(filepath.Join(y.Root, "cas", "trash", digests[0].Hex(), "in the way"), 0o750); err != nil {
		t.Fatal(err)
	}
	c := y.collector(nil)
	if err := c.Recover(t.Context()); err == nil {
		t.Error("nothing is said of what lies in the way")
	}
	y.now = time.Now().Add(25 * time.Hour)
	for run, blobs := range []int{3, 0} {
		result, err := c.Collect(t.Context(), garbage.Request{}, func(operations.Progress) {})
		if err == nil || result.Blobs != blobs {
			t.Errorf("run %d: %+v, %v", run, result, err)
		}
		y.wantStored("a day later", digests[0])
	}
	if err := os.RemoveAll(filepath.Join(y.Root, "cas", "trash", digests[0].Hex())); err != nil {
		t.Fatal(err)
	}
	y.now = y.now.Add(2 * time.Hour)
	if result := y.collect(c, false); result.Blobs != 1 {
		t.Errorf("once nothing is in the way: %+v", result)
	}
	y.wantStored("once nothing is in the way")
}

func TestAGraceOfLessThanAnHourIsRefused(t *testing.T) {
	t.Parallel()
	y := newYard(t)
	c := y.collector(nil)
	for _, r := range []garbage.Request{{Grace: 59 * time.Minute}, {Grace: -time.Hour}, {KeepWithdrawn: time.Minute}, {Grace: 8 * 24 * time.Hour}} {
		if _, err := c.Collect(t.Context(), r, func(operations.Progress) {}); !events.IsCode(err, events.CodeInvalid) {
			t.Errorf("%+v: %v", r, err)
		}
	}
}

// Two collections at once are one and a refusal, on one node and on two that share a storage.
func TestASecondCollectionIsRefused(t *testing.T) {
	t.Parallel()
	y := newYard(t)
	other, err := blob.Open(y.Root)
	if err != nil {
		t.Fatal(err)
	}
	unlock, err := other.LockTrash()
	if err != nil {
		t.Fatal(err)
	}
	c := y.collector(nil)
	if _, err := c.Collect(t.Context(), garbage.Request{}, func(operations.Progress) {}); !errors.Is(err, garbage.ErrRunning) {
		t.Errorf("error %v", err)
	}
	if err := unlock(); err != nil {
		t.Fatal(err)
	}
	y.collect(c, false)
}

// Wherever the process ends in the middle of a blob, the next start makes the blob what its last fact says; and where somebody
// begins to need it in that moment, its bytes are there in the end.
func TestACollectionThatWasCutIsEndedOrUndone(t *testing.T) {
	t.Parallel()
	for _, place := range []string{"begin", "collecting", "discarded", "collected"} {
		for _, needed := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s needed=%v", place, needed), func(t *testing.T) {
				t.Parallel()
				y := newYard(t)
				data := workstest.Root("x")
				if err := y.Store.WriteIngress("job", "file", data); err != nil {
					t.Fatal(err)
				}
				need := func() {
					err := y.Decide(func(ctx context.Context) ([]events.Change, error) {
						current, err := y.Log.Blob(ctx, eventstest.Digest(data)) // who was patient for long enough
						if err != nil {
							return nil, err
						}
						if err := y.Store.Admit(ctx, "job", "file", eventstest.Digest(data).Hex(), int64(len(data))); err != nil {
							return nil, err
						}
						return events.PromoteBlob(events.Blob{Digest: eventstest.Digest(data), Size: int64(len(data)), MediaType: "text/plain"}, current), nil
					})
					if err != nil {
						t.Error(err)
					}
				}
				need()
				y.now = time.Now().Add(2 * time.Hour)
				c := y.collector(func(cfg *garbage.Config) {
					cfg.Reached = func(at string, _ events.Digest) {
						if at == place {
							runtime.Goexit() // as much of an end as a test can make and see what is left
						}
					}
				})
				var cut sync.WaitGroup
				cut.Go(func() {
					_, err := c.Collect(context.Background(), garbage.Request{}, func(operations.Progress) {})
					t.Errorf("the collection went on to its end: %v", err)
				})
				cut.Wait()
				if needed {
					need()
				}
				next := y.collector(nil)
				if err := next.Recover(t.Context()); err != nil {
					t.Fatal(err)
				}
				if left, err := y.Store.Discarded(); err != nil || len(left) != 0 {
					t.Errorf("in the trash: %v, %v", left, err)
				}
				current, err := y.Log.Blob(t.Context(), eventstest.Digest(data))
				if err != nil {
					t.Fatal(err)
				}
				want, state := []events.Digest{}, events.BlobIsCollected
				if needed || place == "begin" {
					want, state = []events.Digest{eventstest.Digest(data)}, events.BlobIsPresent
				}
				y.wantStored("after the start", want...)
				if current.State.State != state {
					t.Errorf("the blob is %q, want %q", current.State.State, state)
				}
			})
		}
	}
}

// Wherever in the middle of its collection somebody begins to need a blob, in each way that there is, the blob is there in the end.
func TestWhoBeginsToNeedABlobInTheMiddleOfItsCollectionHasIt(t *testing.T) {
	t.Parallel()
	for _, place := range []string{"begin", "collecting", "discarded", "collected"} {
		for _, way := range []string{"session", "publication", "derived"} {
			t.Run(place+" "+way, func(t *testing.T) {
				t.Parallel()
				y := newYard(t)
				y.publications()
				data := workstest.Root("x")
				y.publish("1", workstest.Root("other"))
				y.publish("2", data)
				if err := y.withdraw("2"); err != nil {
					t.Fatal(err)
				}
				var uploads []string
				var pending sync.WaitGroup
				once := sync.Once{}
				need := func() {
					switch way {
					case "derived":
						// It waits for the collection's end, past "begin".
						pending.Go(func() {
							if err := y.derive("1", "file.txt", "", data); err != nil {
								t.Error(err)
							}
						})
						if place == "begin" {
							pending.Wait()
						}
						return
					default:
						id, present, err := y.upload("3", data, way == "session")
						if err != nil {
							t.Error(err)
						}
						if present != (way == "session" && place == "begin") {
							t.Errorf("told that the blob is there: %v", present)
						}
						uploads = append(uploads, id)
						if place == "begin" {
							if _, err := y.ended(id); err != nil {
								t.Error(err)
							}
						}
					}
				}
				c := y.collector(func(cfg *garbage.Config) {
					cfg.ShortGrace = true
					cfg.Reached = func(at string, digest events.Digest) {
						if at == place && digest == eventstest.Digest(data) {
							once.Do(need)
						}
					}
				})
				result := y.collect(c, false)
				pending.Wait()
				for _, id := range uploads {
					if job, err := y.ended(id); err != nil || job.State != events.JobStateSucceeded {
						t.Errorf("job %s %+v %v", job.State, job.Problem, err)
					}
				}
				if place == "begin" && result.Kept != 1 {
					t.Errorf("collected over a need: %+v", result)
				}
				y.wantStored("in the end", eventstest.Digest(workstest.Metadata), eventstest.Digest(workstest.Root("other")), eventstest.Digest(data))
			})
		}
	}
}
