package publication_test

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/publication"
	"github.com/imgsrv/imgsrv/internal/eventstest"
	"github.com/imgsrv/imgsrv/internal/workstest"
)

// waits tells of each time that a job waits for the storage.
type waits struct {
	slog.Handler
	heard chan string
}

func (w waits) Enabled(context.Context, slog.Level) bool { return true }

func (w waits) Handle(_ context.Context, r slog.Record) error {
	if r.Message == "job waits for the storage" || r.Message == "step failed, will be tried again" || r.Message == "job failed" {
		select {
		case w.heard <- r.Message:
		default: // nobody wants to hear it again
		}
	}
	return nil
}

func mountTmpfs(t *testing.T, dir, options string) {
	t.Helper()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		t.Skipf("needs the right to mount a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
}

// A storage that is full or read-only is no fault of a job: it waits for longer than its attempts would last, and then
// goes on as if nothing had been.
// Not parallel: a child process that another test starts would hold the mount busy until its exec.
func TestAJobWaitsForAStorageThatTakesNoBytes(t *testing.T) {
	for name, trouble := range map[string]struct {
		mount   string // below the storage; "": all of it
		options string
		begin   func(root string) error
		end     func(root string) error
	}{
		"read-only": {"", "size=8m",
			func(root string) error { return unix.Mount("", root, "", unix.MS_REMOUNT|unix.MS_RDONLY, "") },
			func(root string) error { return unix.Mount("", root, "", unix.MS_REMOUNT, "") }},
		"full": {"cas", "size=1m",
			func(root string) error {
				_ = os.WriteFile(filepath.Join(root, "cas", "ballast"), make([]byte, 2<<20), 0o600) // as much as there is room for
				return nil
			},
			func(root string) error { return os.Remove(filepath.Join(root, "cas", "ballast")) }},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			where := filepath.Join(root, trouble.mount)
			if err := os.MkdirAll(where, 0o750); err != nil {
				t.Fatal(err)
			}
			mountTmpfs(t, where, trouble.options)
			w := &works{workstest.At(t, root)}
			var once sync.Once // each further try starts the step's work again
			heard := waits{slog.DiscardHandler, make(chan string)}
			w.run(func(c *publication.Config) {
				c.Attempts, c.Pause, c.Logger = 1, time.Millisecond, slog.New(heard)
				c.StepStarted = func(_ string, step events.Step) {
					if step != events.StepPromote {
						return
					}
					once.Do(func() {
						if err := trouble.begin(root); err != nil {
							t.Errorf("begin the trouble: %v", err)
						}
					})
				}
			})
			data := workstest.Root(string(bytes.Repeat([]byte("x"), 300_000)))
			upload := w.upload("1", []string{"latest"}, data, nil)
			select {
			case said := <-heard.heard:
				if said != "job waits for the storage" {
					t.Fatalf("the job says %q", said)
				}
			case <-time.After(time.Minute):
				t.Fatal("the job doesn't wait for the storage")
			}
			if err := trouble.end(root); err != nil {
				t.Fatal(err)
			}
			job := w.await(upload, "succeeded", ended(events.JobStateSucceeded))
			if promote := job.Step(events.StepPromote); promote.Attempt != 1 || promote.Error != "" {
				t.Errorf("the step says %+v, want one attempt without an error", promote)
			}
			if _, info, err := w.Store.OpenBlob(eventstest.Digest(data).Hex()); err != nil || info.Size() != int64(len(data)) {
				t.Errorf("the blob is %v (%v)", info, err)
			}
		})
	}
}
