package blob

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Not parallel: a child process that another test starts would hold the mount busy until its exec.
func TestAFullFileSystemIsRecognisedAndSurvived(t *testing.T) {
	root := t.TempDir()
	const capacity = 2 << 20
	if err := unix.Mount("tmpfs", root, "tmpfs", 0, "size=2m"); err != nil {
		t.Skipf("needs the right to mount a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(root, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	s, err := Open(root)
	if err != nil {
		t.Fatal(err)
	}
	ballast := filepath.Join(root, "ballast")
	if err := os.WriteFile(ballast, make([]byte, capacity/2), 0o600); err != nil {
		t.Fatal(err)
	}
	data := randomBytes(capacity * 3 / 4)
	in := newIntake(t, s, 0, IntakeSpec{SizeBytes: int64(len(data))})
	mustAppend(t, in, data[:1000])
	if n, err := in.Append(t.Context(), bytes.NewReader(data[1000:])); !IsFull(err) || in.Offset() != 1000+n {
		t.Errorf("Append = %d, %v, then at %d; want an error that IsFull", n, err, in.Offset())
	}
	if err := s.Check(t.Context()); !IsFull(err) {
		t.Errorf("Check = %v, want an error that IsFull", err)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	if in, err = s.OpenIntake("s", 0); err != nil {
		t.Fatal(err)
	}
	mustAppend(t, in, data[in.Offset():])
	wantSums(t, in, sumOf(data), "")

	if err := unix.Mount("", root, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	if err := s.Check(t.Context()); !IsReadOnly(err) {
		t.Errorf("Check of a read-only file system = %v, want an error that IsReadOnly", err)
	}
}
