package blob

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// stores runs one suite over one file system and over two, divided where links and renames have to cross.
func stores(t *testing.T, test func(t *testing.T, s *Store)) {
	t.Run("one file system", func(t *testing.T) {
		t.Parallel()
		test(t, openStore(t))
	})
	t.Run("cas on another", func(t *testing.T) {
		t.Parallel()
		test(t, openStoreAcross(t, "cas"))
	})
	t.Run("ingress on another", func(t *testing.T) {
		t.Parallel()
		test(t, openStoreAcross(t, "ingress"))
	})
}

func casFile(sha256hex string) string { return "cas/sha256/" + sha256hex[:2] + "/" + sha256hex }

func wantBlob(t *testing.T, s *Store, data []byte) {
	t.Helper()
	f, info, err := s.OpenBlob(sumOf(data))
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(f)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	if info.Size() != int64(len(data)) || !bytes.Equal(got, data) {
		t.Errorf("the blob has other bytes (%d, expected %d)", info.Size(), len(data))
	}
}

func TestAnUploadBecomesABlob(t *testing.T) {
	t.Parallel()
	stores(t, func(t *testing.T, s *Store) {
		data := randomBytes(3<<20 + 1)
		in := newIntake(t, s, 0, IntakeSpec{SizeBytes: int64(len(data))})
		mustAppend(t, in, data[:1000])
		if err := s.LinkToIngress(t.Context(), "s", 0, "j", "disk.raw"); !errors.Is(err, ErrIncomplete) {
			t.Fatalf("LinkToIngress before the last byte = %v, want ErrIncomplete", err)
		}
		mustAppend(t, in, data[1000:])
		for range 2 { // each step twice, as after a crash before it was recorded
			if err := s.LinkToIngress(t.Context(), "s", 0, "j", "disk.raw"); err != nil {
				t.Fatal(err)
			}
		}
		for range 2 {
			if err := s.DropIntake("s", 0); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.LinkToIngress(t.Context(), "s", 0, "j", "disk.raw"); err != nil {
			t.Errorf("LinkToIngress after the intake was dropped = %v", err)
		}
		for range 2 {
			if err := s.Admit(t.Context(), "j", "disk.raw", sumOf(data), int64(len(data))); err != nil {
				t.Fatal(err)
			}
		}
		wantFiles(t, s, map[string]fs.FileMode{"uploads/s/session": 0o600, "ingress/jobs/j/disk.raw": 0o444, casFile(sumOf(data)): 0o444})
		if err := s.RemoveIngress("j"); err != nil {
			t.Fatal(err)
		}
		if err := s.Admit(t.Context(), "j", "disk.raw", sumOf(data), int64(len(data))); err != nil {
			t.Errorf("Admit after the job's files were removed = %v", err)
		}
		wantBlob(t, s, data)
		wantFiles(t, s, map[string]fs.FileMode{"uploads/s/session": 0o600, casFile(sumOf(data)): 0o444})
	})
}

func TestAdmitLeavesAnExistingBlobAlone(t *testing.T) {
	t.Parallel()
	stores(t, func(t *testing.T, s *Store) {
		data := []byte("the same bytes")
		var first fs.FileInfo
		for _, job := range []string{"j1", "j2"} {
			if err := s.WriteIngress(job, "f", data); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(s.Admit(t.Context(), job, "f", sumOf(data), int64(len(data))), s.RemoveIngress(job)); err != nil {
				t.Fatal(err)
			}
			f, info, err := s.OpenBlob(sumOf(data))
			if err != nil {
				t.Fatal(err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			if first == nil {
				first = info
			} else if !os.SameFile(first, info) {
				t.Error("the blob was replaced")
			}
		}
		wantFiles(t, s, map[string]fs.FileMode{casFile(sumOf(data)): 0o444})
	})
}

func TestManyJobsAdmitOneDigestAtOnce(t *testing.T) {
	t.Parallel()
	stores(t, func(t *testing.T, s *Store) {
		data := randomBytes(300_000)
		var jobs sync.WaitGroup
		start := make(chan struct{})
		for i := range 8 {
			job := string(rune('a' + i/2)) // two runs of each job, as after a redelivery
			if err := s.WriteIngress(job, "f", data); err != nil {
				t.Fatal(err)
			}
			jobs.Go(func() {
				<-start
				if err := s.Admit(context.Background(), job, "f", sumOf(data), int64(len(data))); err != nil {
					t.Errorf("Admit: %v", err)
				}
				if err := s.RemoveIngress(job); err != nil { // also under the other run
					t.Errorf("RemoveIngress: %v", err)
				}
			})
		}
		close(start)
		jobs.Wait()
		wantBlob(t, s, data)
		wantFiles(t, s, map[string]fs.FileMode{casFile(sumOf(data)): 0o444})
	})
}

func TestAdmitRefusesAWrongSize(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	data := []byte("twelve bytes")
	if err := s.WriteIngress("j", "f", data); err != nil {
		t.Fatal(err)
	}
	var wrong *SizeMismatchError
	err := s.Admit(t.Context(), "j", "f", sumOf(data), 11)
	if !errors.As(err, &wrong) || wrong.WantBytes != 11 || wrong.GotBytes != 12 {
		t.Errorf("Admit = %v, want a size mismatch of 12 and 11", err)
	}
	wantFiles(t, s, map[string]fs.FileMode{"ingress/jobs/j/f": 0o600})
	if err := s.Admit(t.Context(), "j", "f", sumOf(data), 12); err != nil {
		t.Fatal(err)
	}
	if _, err := s.HasBlob(sumOf(data), 11); !errors.As(err, &wrong) {
		t.Errorf("HasBlob with another size = %v, want a size mismatch", err)
	}
	if err := s.Admit(t.Context(), "j", "f", sumOf(data), 11); !errors.As(err, &wrong) {
		t.Errorf("Admit onto a blob of another size = %v, want a size mismatch", err)
	}
}

// linkedBefore is a disk on which somebody makes the blob before us, and somebody else takes it away again.
type linkedBefore struct{ Disk }

func (linkedBefore) Link(string, string) error { return fs.ErrExist }

func TestAdmitDoesNotTakeAVanishedBlobForMade(t *testing.T) {
	t.Parallel()
	s, err := OpenOver(t.TempDir(), func(real Disk) Disk { return linkedBefore{real} })
	if err != nil {
		t.Fatal(err)
	}
	if err := s.WriteIngress("j", "f", []byte("bytes")); err != nil {
		t.Fatal(err)
	}
	if err := s.Admit(t.Context(), "j", "f", sumOf([]byte("bytes")), 5); !errors.Is(err, fs.ErrExist) {
		t.Errorf("Admit = %v, want fs.ErrExist", err)
	}
}

func TestAdmitOfNothingIsNotFound(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	if err := s.Admit(t.Context(), "j", "f", sumOf(), 0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Admit = %v, want fs.ErrNotExist", err)
	}
}

func TestAdmitAcrossFileSystemsVerifiesTheDigest(t *testing.T) {
	t.Parallel()
	s := openStoreAcross(t, "cas")
	if err := s.WriteIngress("j", "f", []byte("rotten")); err != nil {
		t.Fatal(err)
	}
	var wrong *DigestMismatchError
	err := s.Admit(t.Context(), "j", "f", sumOf([]byte("fresh!")), 6)
	if !errors.As(err, &wrong) || wrong.Got != sumOf([]byte("rotten")) {
		t.Errorf("Admit = %v, want a digest mismatch", err)
	}
	wantFiles(t, s, map[string]fs.FileMode{"ingress/jobs/j/f": 0o444})
}

func TestAdmitAcrossFileSystemsEndsWithItsContext(t *testing.T) {
	t.Parallel()
	s := openStoreAcross(t, "cas")
	if err := s.WriteIngress("j", "f", []byte("bytes")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Admit(ctx, "j", "f", sumOf([]byte("bytes")), 5); !errors.Is(err, context.Canceled) {
		t.Errorf("Admit = %v, want context.Canceled", err)
	}
	wantFiles(t, s, map[string]fs.FileMode{"ingress/jobs/j/f": 0o444})
	if err := s.Admit(t.Context(), "j", "f", sumOf([]byte("bytes")), 5); err != nil {
		t.Errorf("Admit again = %v", err)
	}
	wantBlob(t, s, []byte("bytes"))
}

func TestMovesNeverReplace(t *testing.T) {
	t.Parallel()
	for name, move := range map[string]func(from, to string) error{"in one step": (&Store{disk: osDisk{}}).moveNoReplace, "by a link": (&Store{disk: osDisk{}}).moveByLink} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
			if err := errors.Join(os.WriteFile(from, []byte("new"), 0o600), os.WriteFile(to, []byte("old"), 0o600)); err != nil {
				t.Fatal(err)
			}
			if err := move(from, to); !errors.Is(err, fs.ErrExist) {
				t.Errorf("move onto a file = %v, want fs.ErrExist", err)
			}
			if got, err := os.ReadFile(to); err != nil || string(got) != "old" {
				t.Errorf("target has %q, %v", got, err)
			}
			if err := errors.Join(os.Remove(to), move(from, to)); err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(to); err != nil || string(got) != "new" {
				t.Errorf("target has %q, %v", got, err)
			}
			if _, err := os.Lstat(from); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the old name is still there: %v", err)
			}
			if err := move(from, to); !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrExist) {
				t.Errorf("move of nothing = %v", err)
			}
		})
	}
}

func TestRecoverFinishesAMoveThatWasCutShort(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	data := []byte("both names")
	path := putBlob(t, s, data)
	if err := errors.Join(os.Mkdir(s.trash(), folderMode), os.Link(path, s.trashPath(sumOf(data))), s.Recover(sumOf(data))); err != nil {
		t.Fatal(err)
	}
	wantBlob(t, s, data)
	if left, err := s.Discarded(); err != nil || len(left) != 0 {
		t.Errorf("in the trash there is still %v (%v)", left, err)
	}
}

func TestOnlyRegularFilesAreOpened(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, plant := range map[string]func(path string) error{
		"link":   func(path string) error { return os.Symlink(secret, path) },
		"folder": func(path string) error { return os.Mkdir(path, 0o700) },
		"pipe":   func(path string) error { return syscall.Mkfifo(path, 0o600) },
	} {
		digest := sumOf([]byte(name))
		path := s.blobPath(digest)
		err := errors.Join(
			os.MkdirAll(filepath.Dir(path), 0o700), os.MkdirAll(s.jobFolder("j"), 0o700),
			plant(path), plant(filepath.Join(s.jobFolder("j"), name)),
		)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := s.OpenBlob(digest); !errors.Is(err, ErrNotRegular) {
			t.Errorf("%s: OpenBlob = %v, want ErrNotRegular", name, err)
		}
		if _, err := s.HasBlob(digest, 6); !errors.Is(err, ErrNotRegular) {
			t.Errorf("%s: HasBlob = %v, want ErrNotRegular", name, err)
		}
		if _, err := s.OpenIngress("j", name); !errors.Is(err, ErrNotRegular) {
			t.Errorf("%s: OpenIngress = %v, want ErrNotRegular", name, err)
		}
		if err := s.Admit(t.Context(), "j", name, sumOf([]byte("other "+name)), 6); !errors.Is(err, ErrNotRegular) {
			t.Errorf("%s: Admit = %v, want ErrNotRegular", name, err)
		}
	}
}

func TestBlobsAreAskedForByDigestOnly(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	good := sumOf([]byte("x"))
	for _, bad := range []string{
		"", "sha256:" + good, strings.ToUpper(good), good[:63], good + "0", "../" + good[3:], strings.Repeat("g", 64),
		strings.Repeat("/", 64), good[:63] + "\x00",
	} {
		_, _, openErr := s.OpenBlob(bad)
		_, hasErr := s.HasBlob(bad, 1)
		admitErr := s.Admit(t.Context(), "j", "f", bad, 1)
		for what, err := range map[string]error{"OpenBlob": openErr, "HasBlob": hasErr, "Admit": admitErr} {
			if !errors.Is(err, ErrDigest) {
				t.Errorf("%s(%q) = %v, want ErrDigest", what, bad, err)
			}
		}
	}
	if _, _, err := s.OpenBlob(good); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("OpenBlob of an absent blob = %v, want fs.ErrNotExist", err)
	}
	if has, err := s.HasBlob(good, 1); has || err != nil {
		t.Errorf("HasBlob of an absent blob = %v, %v", has, err)
	}
}

func TestIngressHoldsAJobsFilesUntilItIsRemoved(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	for _, text := range []string{"first", "second", "second"} {
		if err := s.WriteIngress("j", "incus.tar.xz", []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	f, err := s.OpenIngress("j", "incus.tar.xz")
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(f)
	if err := errors.Join(err, f.Close()); err != nil || string(got) != "second" {
		t.Errorf("ingress file has %q, %v", got, err)
	}
	wantFiles(t, s, map[string]fs.FileMode{"ingress/jobs/j/incus.tar.xz": 0o600})
	when := time.Now().Add(time.Hour).Truncate(time.Second)
	if err := os.Chtimes(filepath.Join(s.jobFolder("j"), "incus.tar.xz"), when, when); err != nil {
		t.Fatal(err)
	}
	jobs, err := s.IngressJobs()
	if diff := cmp.Diff([]Entry{{ID: "j", LastActivity: when.UTC()}}, jobs); err != nil || diff != "" {
		t.Errorf("jobs (%v, -want +got):\n%s", err, diff)
	}
	for range 2 {
		if err := s.RemoveIngress("j"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.OpenIngress("j", "incus.tar.xz"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("OpenIngress after removal = %v, want fs.ErrNotExist", err)
	}
	wantFiles(t, s, map[string]fs.FileMode{})
}

func TestLinkToIngressRefusesANameThatAnotherFileHas(t *testing.T) {
	t.Parallel()
	stores(t, func(t *testing.T, s *Store) {
		mustAppend(t, newIntake(t, s, 0, IntakeSpec{SizeBytes: 3}), []byte("abc"))
		if err := s.WriteIngress("j", "f", []byte("other")); err != nil {
			t.Fatal(err)
		}
		var wrong *SizeMismatchError
		if err := s.LinkToIngress(t.Context(), "s", 0, "j", "f"); !errors.As(err, &wrong) {
			t.Errorf("LinkToIngress = %v, want a size mismatch", err)
		}
	})
}

func TestHashCombinedReadsThePrefixFirst(t *testing.T) {
	t.Parallel()
	data := randomBytes(2<<20 + 3)
	got, n, err := HashCombined(t.Context(), []byte("meta"), bytes.NewReader(data))
	if err != nil || n != int64(len(data)) || got != sumOf([]byte("meta"), data) {
		t.Errorf("HashCombined = %s, %d, %v", got, n, err)
	}
	if _, _, err := HashCombined(t.Context(), nil, iotest.ErrReader(errBroken)); !errors.Is(err, errBroken) {
		t.Errorf("HashCombined of a broken reader = %v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errBroken)
	if _, _, err := HashCombined(ctx, nil, bytes.NewReader(data)); !errors.Is(err, errBroken) {
		t.Errorf("HashCombined in an ended context = %v, want its cause", err)
	}
}
