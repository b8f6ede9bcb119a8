package tus_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/limits"
	"github.com/imgsrv/imgsrv/handlers/tus"
	"github.com/imgsrv/imgsrv/internal/natstest"
	"github.com/imgsrv/imgsrv/store/blob"
)

// Others fill the disk under an upload: it is told so, keeps what arrived, and goes on when there is room.
// Not parallel: a child process that another test starts would hold the mount busy until its exec.
func TestADiskThatOthersFillEndsAnUploadWhereItCanBeResumed(t *testing.T) {
	root := t.TempDir()
	if err := unix.Mount("tmpfs", root, "tmpfs", 0, "size=4m"); err != nil {
		t.Skipf("needs the right to mount a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(root, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	store, err := blob.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	in := &intake{t: t, root: root, log: natstest.Log(t), store: store, now: time.Now()}
	in.restart(func(c *tus.Config) {
		c.Intake = limits.NewIntake(limits.IntakeConfig{Events: in.log, Store: store, Reserve: limits.AutoReserve})
	})

	data := randomBytes(2_000_000)
	session := in.session(nil, events.UploadFile{Format: "a", Size: int64(len(data))}, events.UploadFile{Format: "b", Size: 2_000_000})
	if a := in.create(session, "a", len(data)); a.status != 201 {
		t.Fatalf("creation: %d %s", a.status, a.detail)
	}
	if a := in.patch(in.url(session, 0), 0, data[:500_000]); a.status != 204 {
		t.Fatalf("PATCH: %d %s", a.status, a.detail)
	}
	ballast := filepath.Join(root, "ballast")
	free, err := store.Free()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(ballast, make([]byte, free-600_000), 0o600); err != nil {
		t.Fatal(err)
	}
	if a := in.create(session, "b", 2_000_000); a.status != 507 || a.code != "storage-full" {
		t.Errorf("another creation: %d %s, want 507", a.status, a.code)
	}
	if a := in.patch(in.url(session, 0), 500_000, data[500_000:]); a.status != 507 || a.code != "storage-full" {
		t.Errorf("PATCH on a full disk: %d %s, want 507", a.status, a.code)
	}
	offset := in.offset(in.url(session, 0))
	if offset < 500_000 || offset >= len(data) {
		t.Fatalf("offset %d, want what had arrived and could be kept", offset)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	if a := in.patch(in.url(session, 0), offset, data[offset:]); a.status != 204 {
		t.Fatalf("after room was made: %d %s", a.status, a.detail)
	}
	if f := in.file(session, "a"); f.State != events.FileComplete || f.Digest.Hex() != sum(data) {
		t.Errorf("the file is %+v", f)
	}
}
