package blob

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func openStore(t testing.TB) *Store {
	t.Helper()
	s, err := Open(filepath.Join(t.TempDir(), "storage"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// randomBytes are the same for the same size.
func randomBytes(size int) []byte {
	b := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

func sumOf(parts ...[]byte) string {
	h := sha256.New()
	for _, p := range parts {
		h.Write(p)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// filesIn lists every file under the root by its relative path and mode; folders that hold none don't show.
func filesIn(t testing.TB, s *Store) map[string]fs.FileMode {
	t.Helper()
	files := map[string]fs.FileMode{}
	for _, dir := range []string{"uploads", "ingress", "cas"} {
		real, err := filepath.EvalSymlinks(filepath.Join(s.root, dir))
		if err != nil {
			t.Fatal(err)
		}
		err = filepath.WalkDir(real, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			info, err := d.Info()
			files[dir+strings.TrimPrefix(path, real)] = info.Mode()
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return files
}

func wantFiles(t testing.TB, s *Store, want map[string]fs.FileMode) {
	t.Helper()
	if diff := cmp.Diff(want, filesIn(t, s)); diff != "" {
		t.Errorf("files under the root (-want +got):\n%s", diff)
	}
}

// otherFileSystem returns a temporary folder on another file system than the test's own, or skips.
func otherFileSystem(t testing.TB) string {
	t.Helper()
	const shm = "/dev/shm"
	dir, err := os.MkdirTemp(shm, "imgsrv-blob-test-*")
	if err != nil {
		t.Skipf("needs %s as a second file system: %v", shm, err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	probe := filepath.Join(t.TempDir(), "probe")
	if err := os.WriteFile(probe, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(probe, filepath.Join(dir, "probe")); !errors.Is(err, syscall.EXDEV) {
		t.Skipf("needs %s on another file system than %s: link gave %v", shm, probe, err)
	}
	return dir
}

func openStoreAcross(t testing.TB, dir string) *Store {
	t.Helper()
	other, root := otherFileSystem(t), t.TempDir()
	if err := os.Symlink(other, filepath.Join(root, dir)); err != nil {
		t.Fatal(err)
	}
	s, err := Open(root)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestOpenMakesPrivateFoldersAndIsReady(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	for _, dir := range []string{"uploads", "ingress/jobs", "cas/sha256", "cas/tmp"} {
		info, err := os.Stat(filepath.Join(s.root, dir))
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got&0o007 != 0 || got&0o700 != 0o700 {
			t.Errorf("%s has mode %v", dir, got)
		}
	}
	if err := s.Check(t.Context()); err != nil {
		t.Errorf("Check: %v", err)
	}
	if free, err := s.Free(); err != nil || free <= 0 {
		t.Errorf("Free = %d, %v", free, err)
	}
	wantFiles(t, s, map[string]fs.FileMode{})
}

func TestOpenNamesTheFolderItCannotUse(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	taken := filepath.Join(root, "cas")
	if err := os.WriteFile(taken, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(root); err == nil || !strings.Contains(err.Error(), taken) {
		t.Errorf("Open over a file = %v, want an error that names %s", err, taken)
	}
	if _, err := Open(""); err == nil {
		t.Error("Open without a folder succeeded")
	}
	// procfs refuses new folders even to root.
	if _, err := Open("/proc/imgsrv"); err == nil {
		t.Error("Open under /proc succeeded")
	}
}

func TestCheckFailsWhenAFolderIsGone(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	if err := os.RemoveAll(s.casTemp()); err != nil {
		t.Fatal(err)
	}
	if err := s.Check(t.Context()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Check = %v, want fs.ErrNotExist", err)
	}
}

func TestOpenRemovesLeftoversOfDeadProcessesOnly(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	if err := errors.Join(s.CreateSession("s1"), s.WriteIngress("j1", "disk", []byte("x"))); err != nil {
		t.Fatal(err)
	}
	before := filesIn(t, s)
	for _, dir := range []string{s.sessionFolder("s1"), s.jobFolder("j1"), s.casTemp(), s.uploads()} {
		if err := os.WriteFile(filepath.Join(dir, tempPrefix+"1"), nil, 0o400); err != nil {
			t.Fatal(err)
		}
	}
	running, err := s.createTemp(s.casTemp()) // as another node would hold it
	if err != nil {
		t.Fatal(err)
	}
	defer running.Close() //nolint:errcheck // nothing was written
	gone := filepath.Join(s.uploads(), gonePrefix+"s0")
	err = errors.Join(
		os.Mkdir(gone, 0o700), os.WriteFile(filepath.Join(gone, "0"), nil, 0o600),
	)
	if err != nil {
		t.Fatal(err)
	}
	if s, err = Open(s.root); err != nil {
		t.Fatal(err)
	}
	before["cas/tmp/"+filepath.Base(running.Name())] = 0o600
	wantFiles(t, s, before)
	if _, err := os.Stat(gone); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("half-removed folder is still there: %v", err)
	}
}

func TestNamesThatAreNotOneCleanSegmentAreRefused(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	for _, bad := range []string{
		"", ".", "..", "../x", "a/b", `a\b`, "/etc/passwd", ".tmp-1", "a\x00b", "a\nb", "\xff", strings.Repeat("a", 201),
	} {
		t.Run(fmt.Sprintf("%.12q", bad), func(t *testing.T) {
			t.Parallel()
			_, createErr := s.CreateIntake(t.Context(), bad, 0, IntakeSpec{})
			_, openErr := s.OpenIntake(bad, 0)
			_, jobErr := s.OpenIngress(bad, "f")
			_, fileErr := s.OpenIngress("j", bad)
			for what, err := range map[string]error{
				"CreateSession":      s.CreateSession(bad),
				"RemoveSession":      s.RemoveSession(bad),
				"CreateIntake":       createErr,
				"OpenIntake":         openErr,
				"DropIntake":         s.DropIntake(bad, 0),
				"LinkToIngress":      s.LinkToIngress(t.Context(), bad, 0, "j", "f"),
				"LinkToIngress job":  s.LinkToIngress(t.Context(), "s", 0, bad, "f"),
				"LinkToIngress file": s.LinkToIngress(t.Context(), "s", 0, "j", bad),
				"WriteIngress job":   s.WriteIngress(bad, "f", nil),
				"WriteIngress file":  s.WriteIngress("j", bad, nil),
				"OpenIngress job":    jobErr,
				"OpenIngress file":   fileErr,
				"RemoveIngress":      s.RemoveIngress(bad),
				"Admit job":          s.Admit(t.Context(), bad, "f", sumOf(), 0),
				"Admit file":         s.Admit(t.Context(), "j", bad, sumOf(), 0),
			} {
				if !errors.Is(err, ErrName) {
					t.Errorf("%s = %v, want ErrName", what, err)
				}
			}
		})
	}
	if _, err := s.OpenIntake("s", -1); !errors.Is(err, ErrName) {
		t.Errorf("OpenIntake with a negative number = %v, want ErrName", err)
	}
	for _, good := range []string{"0199c0de-0000-7000-8000-000000000000", "amd64.virtual-machine.default~disk.qcow2", "ä", strings.Repeat("a", 200)} {
		if err := s.CreateSession(good); err != nil {
			t.Errorf("CreateSession(%q) = %v", good, err)
		}
	}
}

func TestSessionsAreListedWithTheirLastActivityAndRemovedForGood(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	for _, id := range []string{"s2", "s1", "s1"} {
		if err := s.CreateSession(id); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.CreateIntake(t.Context(), "s1", 0, IntakeSpec{SizeBytes: 3}); err != nil {
		t.Fatal(err)
	}
	old, newest := time.Now().Add(-time.Hour).Truncate(time.Second), time.Now().Add(time.Hour).Truncate(time.Second)
	err := errors.Join(
		os.Chtimes(filepath.Join(s.sessionFolder("s2"), sessionMarker), old, old),
		os.Chtimes(s.sessionFolder("s2"), old, old),
		os.Chtimes(s.dataPath("s1", 0), newest, newest),
	)
	if err != nil {
		t.Fatal(err)
	}
	got, err := s.Sessions()
	if err != nil {
		t.Fatal(err)
	}
	want := []Entry{{ID: "s1", LastActivity: newest.UTC()}, {ID: "s2", LastActivity: old.UTC()}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("sessions (-want +got):\n%s", diff)
	}
	for _, entry := range want {
		if got, err := s.SessionActivity(entry.ID); err != nil || !got.Equal(entry.LastActivity) {
			t.Errorf("activity of %s = %v, %v, want %v", entry.ID, got, err, entry.LastActivity)
		}
	}
	for range 2 {
		if err := errors.Join(s.RemoveSession("s1"), s.RemoveSession("s2")); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.SessionActivity("s1"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("activity of a removed session: %v, want fs.ErrNotExist", err)
	}
	if got, err := s.Sessions(); err != nil || len(got) != 0 {
		t.Errorf("sessions after removal = %v, %v", got, err)
	}
	wantFiles(t, s, map[string]fs.FileMode{})
}

func TestFullAndReadOnlyAreRecognisedThroughWraps(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		errno          syscall.Errno
		full, readOnly bool
	}{
		{syscall.ENOSPC, true, false},
		{syscall.EDQUOT, true, false},
		{syscall.EROFS, false, true},
		{syscall.EIO, false, false},
	} {
		err := fmt.Errorf("append: %w", errors.Join(errors.New("x"), &fs.PathError{Op: "write", Path: "p", Err: c.errno}))
		if IsFull(err) != c.full || IsReadOnly(err) != c.readOnly {
			t.Errorf("%v: IsFull = %v, IsReadOnly = %v", c.errno, IsFull(err), IsReadOnly(err))
		}
	}
}

func sumHash(data []byte) hash.Hash {
	h := sha256.New()
	_, _ = h.Write(data)
	return h
}
