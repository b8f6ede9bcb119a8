package blob

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func freely(ctx context.Context, _ int) error { return ctx.Err() }

// putBlob makes data a blob and gives the path of its file.
func putBlob(t testing.TB, s *Store, data []byte) (path string) {
	t.Helper()
	if err := s.Fill().Put(t.Context(), sumOf(data), int64(len(data)), bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	return s.blobPath(sumOf(data))
}

// flipBit changes one bit of a file, where it is.
func flipBit(t testing.TB, path string, offset int64) {
	t.Helper()
	f := writable(t, path)
	defer f.Close() //nolint:errcheck // closed by who looks at the error of the write
	one := make([]byte, 1)
	if _, err := f.ReadAt(one, offset); err != nil {
		t.Fatal(err)
	}
	one[0] ^= 4
	if _, err := f.WriteAt(one, offset); err != nil {
		t.Fatal(err)
	}
}

func writable(t testing.TB, path string) *os.File {
	t.Helper()
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestVerifyBlobFindsWhatIsWrong(t *testing.T) {
	t.Parallel()
	// Shorter and longer than what is read at once, and just as long; and lengths that O_DIRECT can't ask for.
	for _, size := range []int{1, 4096, 5000, verifyBytes, verifyBytes + directAlign, 2*verifyBytes + 17} {
		s := openStore(t)
		data := randomBytes(size)
		sum := sumOf(data)
		path := putBlob(t, s, data)
		verify := func() (int64, *Rot) {
			t.Helper()
			read, rot, err := s.VerifyBlob(t.Context(), sum, int64(size), freely)
			if err != nil {
				t.Fatalf("%d bytes: %v", size, err)
			}
			return read, rot
		}
		if read, rot := verify(); rot != nil || read != int64(size) {
			t.Errorf("%d bytes, untouched: %d bytes read, %+v", size, read, rot)
		}
		for _, offset := range []int64{0, int64(size) / 2, int64(size) - 1} {
			flipBit(t, path, offset)
			if _, rot := verify(); rot == nil || rot.Kind != RotDigest {
				t.Errorf("%d bytes, a bit at %d flipped: %+v", size, offset, rot)
			}
			flipBit(t, path, offset)
		}
		if err := os.Truncate(path, int64(size)-1); err != nil {
			t.Fatal(err)
		}
		if read, rot := verify(); rot == nil || rot.Kind != RotSize || read != 0 {
			t.Errorf("%d bytes, cut by one: %d bytes read, %+v", size, read, rot)
		}
		name, err := s.Quarantine(sum, nil)
		if err != nil || !strings.HasPrefix(name, sum+"-") {
			t.Errorf("quarantine: %q, %v", name, err)
		}
		if info, err := os.Stat(filepath.Join(s.quarantineFolder(), name)); err != nil || info.Size() != int64(size)-1 {
			t.Errorf("the quarantined file: %v", err)
		}
		if _, rot := verify(); rot == nil || rot.Kind != RotMissing {
			t.Errorf("%d bytes, gone: %+v", size, rot)
		}
		if err := os.Mkdir(path, 0o700); err != nil {
			t.Fatal(err)
		}
		if _, rot := verify(); rot == nil || rot.Kind != RotUnreadable || rot.Failing {
			t.Errorf("a folder in place of the file: %+v", rot)
		}
	}
}

// A store whose file system isn't there has no rotten blobs; nor has one that refuses this process.
func TestVerifyBlobTellsRotFromAStoreThatIsAway(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	if _, rot, err := s.VerifyBlob(t.Context(), sumOf(nil), 0, freely); rot != nil || !errors.Is(err, ErrNoBlobs) {
		t.Errorf("no blobs at all: %+v, %v", rot, err)
	}
	data := randomBytes(100)
	putBlob(t, s, data)
	s.pread = func(int, []byte, int64) (int, error) { return 0, unix.ESTALE }
	if _, rot, err := s.VerifyBlob(t.Context(), sumOf(data), 100, freely); rot != nil || !errors.Is(err, unix.ESTALE) {
		t.Errorf("a stale handle: %+v, %v", rot, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, rot, err := s.VerifyBlob(ctx, sumOf(data), 100, freely); rot != nil || !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled context: %+v, %v", rot, err)
	}
}

// The disk's own errors can't be had from a real disk that is well.
func TestVerifyBlobOfAFailingDisk(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	data := randomBytes(verifyBytes + 5)
	putBlob(t, s, data)
	reads := 0
	s.pread = func(fd int, p []byte, offset int64) (int, error) {
		if reads++; offset > 0 {
			return 0, unix.EIO
		}
		return unix.Pread(fd, p, offset)
	}
	_, rot, err := s.VerifyBlob(t.Context(), sumOf(data), int64(len(data)), freely)
	if err != nil || rot == nil || rot.Kind != RotUnreadable || !rot.Failing {
		t.Errorf("a bad sector: %+v, %v", rot, err)
	}
	if reads != 4 {
		t.Errorf("%d reads, want both pieces tried twice", reads)
	}
	direct := true
	s.pread = func(fd int, p []byte, offset int64) (int, error) {
		if direct {
			direct = false
			return 0, unix.EINVAL
		}
		return unix.Pread(fd, p, offset)
	}
	if _, rot, err := s.VerifyBlob(t.Context(), sumOf(data), int64(len(data)), freely); err != nil || rot != nil {
		t.Errorf("a file system without direct reads: %+v, %v", rot, err)
	}
}

func TestDamagedBlobsAreRefusedUntilTheirBytesAreThereAgain(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	data := randomBytes(5000)
	sum := sumOf(data)
	path := putBlob(t, s, data)
	flipBit(t, path, 7)
	s.SetDamage(sum, 8, RotDigest)
	s.SetDamage(sum, 7, "") // an older fact
	s.SetDamage(sum, 8, "") // the fact before ours, with our number
	var damaged *DamagedError
	_, _, openErr := s.OpenBlob(sum)
	_, pathErr := s.BlobPath(sum)
	for what, err := range map[string]error{"OpenBlob": openErr, "BlobPath": pathErr} {
		if !errors.As(err, &damaged) || damaged.Digest != sum || damaged.Reason != RotDigest {
			t.Errorf("%s of a damaged blob: %v", what, err)
		}
	}
	if there, err := s.HasBlob(sum, 5000); there || err != nil {
		t.Errorf("HasBlob of a damaged blob: %t, %v", there, err)
	}
	if err := s.Admit(t.Context(), "j", "f", sum, 5000); !errors.As(err, &damaged) {
		t.Errorf("without a file, of a bad blob: %v", err)
	}
	if err := s.WriteIngress("j", "f", data); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time the file is the blob's
		if err := s.Admit(t.Context(), "j", "f", sum, 5000); err != nil {
			t.Fatal(err)
		}
	}
	// Without it, the blob's bytes are right.
	if err := errors.Join(s.RemoveIngress("j"), s.Admit(t.Context(), "j", "f", sum, 5000)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.OpenBlob(sum); !errors.As(err, &damaged) {
		t.Errorf("before the store hears of the repair: %v", err)
	}
	s.SetDamage(sum, 9, "")
	wantBlob(t, s, data)
	entries, err := os.ReadDir(s.quarantineFolder())
	if err != nil || len(entries) != 1 {
		t.Errorf("%d files in the quarantine, %v", len(entries), err)
	}
}

func TestAdmitSaysThatABlobHasLostItsLength(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	data := randomBytes(5000)
	path := putBlob(t, s, data)
	if err := os.Truncate(path, 4999); err != nil {
		t.Fatal(err)
	}
	if err := s.WriteIngress("j", "f", data); err != nil {
		t.Fatal(err)
	}
	var damaged *DamagedError
	if err := s.Admit(t.Context(), "j", "f", sumOf(data), 5000); !errors.As(err, &damaged) {
		t.Errorf("Admit = %v, want damage", err)
	}
	if _, err := s.OpenIngress("j", "f"); err != nil {
		t.Errorf("the job's file: %v", err)
	}
}

// Between the reading and the quarantine somebody brings the right bytes.
func TestQuarantineLeavesAFileAloneThatCameMeanwhile(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	data := randomBytes(5000)
	sum := sumOf(data)
	path := putBlob(t, s, data)
	flipBit(t, path, 0)
	_, rot, err := s.VerifyBlob(t.Context(), sum, 5000, freely)
	if err != nil || rot == nil {
		t.Fatalf("%+v, %v", rot, err)
	}
	if err := os.Rename(path, path+".old"); err != nil { // its inode stays in use, and isn't the next file's
		t.Fatal(err)
	}
	putBlob(t, s, data)
	if name, err := s.Quarantine(sum, rot); name != "" || !errors.Is(err, ErrReplaced) {
		t.Errorf("quarantine = %q, %v", name, err)
	}
	wantBlob(t, s, data)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if name, err := s.Quarantine(sum, rot); name != "" || err != nil {
		t.Errorf("quarantine of nothing = %q, %v", name, err)
	}
}

// BenchmarkVerifyBlob is the rate of a scrub without a limit: reads past the page cache, and SHA-256.
func BenchmarkVerifyBlob(b *testing.B) {
	s := openStore(b)
	data := randomBytes(256 << 20)
	sum := sumOf(data)
	putBlob(b, s, data)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if _, rot, err := s.VerifyBlob(b.Context(), sum, int64(len(data)), freely); rot != nil || err != nil {
			b.Fatal(rot, err)
		}
	}
}

// Where it can't be found out whether a blob is damaged, it is neither given out nor taken for damaged: that would cost its bytes.
func TestABlobOfWhichNothingIsToldYet(t *testing.T) {
	t.Parallel()
	s, data := openStore(t), []byte("bytes")
	sum := sumOf(data)
	putBlob(t, s, data)
	asked, away := 0, errors.New("the log is away")
	s.AskDamage(func(string) error { asked++; return away })
	if _, _, err := s.OpenBlob(sum); !errors.Is(err, away) {
		t.Errorf("opened: %v", err)
	}
	if has, err := s.HasBlob(sum, int64(len(data))); has || !errors.Is(err, away) {
		t.Errorf("there: %v, %v", has, err)
	}
	if err := s.WriteIngress("job", "f", data); err != nil {
		t.Fatal(err)
	}
	if err := s.Admit(t.Context(), "job", "f", sum, int64(len(data))); !errors.Is(err, away) {
		t.Errorf("admitted: %v", err)
	}
	s.AskDamage(nil)
	if has, err := s.HasBlob(sum, int64(len(data))); !has || err != nil {
		t.Errorf("there, once all is told: %v, %v", has, err)
	}
	if asked != 3 {
		t.Errorf("asked %d times", asked)
	}
}
