package blob

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

var errBroken = errors.New("connection reset")

// brokenAfter is a reader that gives data and then fails.
func brokenAfter(data []byte) io.Reader {
	return io.MultiReader(bytes.NewReader(data), iotest.ErrReader(errBroken))
}

func newIntake(t testing.TB, s *Store, n int, spec IntakeSpec) *Intake {
	t.Helper()
	if err := s.CreateSession("s"); err != nil {
		t.Fatal(err)
	}
	in, err := s.CreateIntake(t.Context(), "s", n, spec)
	if err != nil {
		t.Fatal(err)
	}
	return in
}

func mustAppend(t testing.TB, in *Intake, data []byte) {
	t.Helper()
	if n, err := in.Append(context.Background(), bytes.NewReader(data)); err != nil || n != int64(len(data)) {
		t.Fatalf("Append = %d, %v, want %d", n, err, len(data))
	}
}

func wantSums(t testing.TB, in *Intake, plain, combined string) {
	t.Helper()
	gotPlain, gotCombined, err := in.Sums()
	if err != nil {
		t.Fatal(err)
	}
	if gotPlain != plain || gotCombined != combined {
		t.Errorf("Sums = %s, %s, want %s, %s", gotPlain, gotCombined, plain, combined)
	}
}

func scribble(path string, junk []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(junk)
	return errors.Join(err, f.Close())
}

// Whatever way the bytes take through broken readers, ended contexts, kills that leave an unsynced tail, lost states
// and new handles: the file and both digests come out as if they had arrived at once.
func TestDigestsSurviveEveryInterruption(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	s.checkpoint = 10_000 // several per Append
	if err := s.CreateSession("s"); err != nil {
		t.Fatal(err)
	}
	file := 0
	rapid.Check(t, func(t *rapid.T) {
		file++
		data := randomBytes(rapid.IntRange(0, 60_000).Draw(t, "size"))
		spec := IntakeSpec{SizeBytes: int64(len(data))}
		wantCombined := ""
		if rapid.Bool().Draw(t, "has prefix") {
			spec.Prefix = rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(t, "prefix")
			wantCombined = sumOf(spec.Prefix, data)
		}
		in, err := s.CreateIntake(context.Background(), "s", file, spec)
		if err != nil {
			t.Fatal(err)
		}
		for in.Offset() < int64(len(data)) {
			offset := in.Offset()
			rest := data[offset:]
			part := rest[:rapid.IntRange(0, len(rest)).Draw(t, "part")]
			switch rapid.SampledFrom([]string{"good", "broken", "ended", "killed", "state lost", "reopened"}).Draw(t, "what") {
			case "good":
				if n, err := in.Append(context.Background(), bytes.NewReader(part)); err != nil || n != int64(len(part)) {
					t.Fatalf("Append = %d, %v, want %d", n, err, len(part))
				}
			case "broken":
				n, err := in.Append(context.Background(), brokenAfter(part))
				if n != int64(len(part)) || (len(part) < len(rest)) != errors.Is(err, errBroken) {
					t.Fatalf("Append of %d of %d from a broken reader = %d, %v", len(part), len(rest), n, err)
				}
			case "ended":
				ctx, cancel := context.WithCancelCause(context.Background())
				ends := readerFunc(func([]byte) (int, error) { cancel(errBroken); return 0, nil })
				n, err := in.Append(ctx, io.MultiReader(bytes.NewReader(part), ends))
				cancel(nil)
				if n != int64(len(part)) || (len(part) < len(rest)) != errors.Is(err, errBroken) {
					t.Fatalf("Append of %d of %d in a context that ends = %d, %v", len(part), len(rest), n, err)
				}
			case "killed": // after data that no state covers
				junk := rapid.SliceOfN(rapid.Byte(), 1, 200).Draw(t, "junk")
				if err := scribble(s.dataPath("s", file), junk); err != nil {
					t.Fatal(err)
				}
				if in, err = s.OpenIntake("s", file); err != nil {
					t.Fatal(err)
				}
				if in.Offset() != offset {
					t.Fatalf("offset after a kill = %d, want %d", in.Offset(), offset)
				}
			case "state lost":
				// A clean tail only: with its state lost, an intake can't tell junk from data.
				if err := errors.Join(os.Truncate(s.dataPath("s", file), offset), os.Remove(s.statePath("s", file))); err != nil {
					t.Fatal(err)
				}
				if in, err = s.CreateIntake(context.Background(), "s", file, spec); err != nil {
					t.Fatal(err)
				}
				if in.Offset() != offset {
					t.Fatalf("offset after hashing again = %d, want %d", in.Offset(), offset)
				}
			case "reopened":
				if in, err = s.OpenIntake("s", file); err != nil {
					t.Fatal(err)
				}
			}
		}
		got, err := os.ReadFile(s.dataPath("s", file))
		if err != nil || !bytes.Equal(got, data) {
			t.Fatalf("the data differs (%v)", err)
		}
		plain, combined, err := in.Sums()
		if err != nil || plain != sumOf(data) || combined != wantCombined {
			t.Fatalf("Sums = %s, %s, %v, want %s, %s", plain, combined, err, sumOf(data), wantCombined)
		}
	})
	for path := range filesIn(t, s) {
		if strings.Contains(path, tempPrefix) {
			t.Errorf("stray temporary file %s", path)
		}
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestAppendReadsNoMoreThanIsMissing(t *testing.T) {
	t.Parallel()
	in := newIntake(t, openStore(t), 0, IntakeSpec{SizeBytes: 5})
	r := strings.NewReader("hello world")
	if n, err := in.Append(t.Context(), r); n != 5 || err != nil {
		t.Fatalf("Append = %d, %v, want 5", n, err)
	}
	if n, err := in.Append(t.Context(), r); n != 0 || err != nil {
		t.Fatalf("Append to a complete intake = %d, %v, want 0", n, err)
	}
	if r.Len() != 6 {
		t.Errorf("%d bytes left in the reader, want 6", r.Len())
	}
	wantSums(t, in, sumOf([]byte("hello")), "")
}

func TestAppendLargerThanAllBuffers(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	data, prefix := randomBytes(70<<20+12345), []byte("metadata")
	in := newIntake(t, s, 0, IntakeSpec{SizeBytes: int64(len(data)), Prefix: prefix})
	mustAppend(t, in, data)
	wantSums(t, in, sumOf(data), sumOf(prefix, data))
}

func TestAnEmptyFileIsCompleteAtOnce(t *testing.T) {
	t.Parallel()
	in := newIntake(t, openStore(t), 0, IntakeSpec{SizeBytes: 0, Prefix: []byte{}})
	wantSums(t, in, sumOf(), sumOf())
}

func TestACompletedFilesHashStateIsAnothersPrefix(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	meta, disk := []byte("the metadata tarball"), randomBytes(5000)
	first := newIntake(t, s, 0, IntakeSpec{SizeBytes: int64(len(meta))})
	if _, err := first.HashState(); !errors.Is(err, ErrIncomplete) {
		t.Errorf("HashState before the last byte = %v, want ErrIncomplete", err)
	}
	if _, _, err := first.Sums(); !errors.Is(err, ErrIncomplete) {
		t.Errorf("Sums before the last byte = %v, want ErrIncomplete", err)
	}
	mustAppend(t, first, meta)
	state, err := first.HashState()
	if err != nil {
		t.Fatal(err)
	}
	second := newIntake(t, s, 1, IntakeSpec{SizeBytes: int64(len(disk)), PrefixState: state})
	mustAppend(t, second, disk)
	wantSums(t, second, sumOf(disk), sumOf(meta, disk))
	// The bytes and their state are one specification.
	if _, err := s.CreateIntake(t.Context(), "s", 1, IntakeSpec{SizeBytes: int64(len(disk)), Prefix: meta}); err != nil {
		t.Errorf("CreateIntake with the prefix itself = %v", err)
	}
}

func TestCreateIntakeKeepsWhatIsThereAndRefusesAnotherSpecification(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	spec := IntakeSpec{SizeBytes: 10, Prefix: []byte("p")}
	mustAppend(t, newIntake(t, s, 0, spec), []byte("abc"))
	if again := newIntake(t, s, 0, spec); again.Offset() != 3 || again.Size() != 10 {
		t.Errorf("created again: offset %d of %d, want 3 of 10", again.Offset(), again.Size())
	}
	state, err := marshalHash(sumHash([]byte("q")))
	if err != nil {
		t.Fatal(err)
	}
	for name, other := range map[string]IntakeSpec{
		"size":         {SizeBytes: 11, Prefix: []byte("p")},
		"no prefix":    {SizeBytes: 10},
		"other prefix": {SizeBytes: 10, Prefix: []byte("q")},
		"other state":  {SizeBytes: 10, PrefixState: state},
	} {
		if _, err := s.CreateIntake(t.Context(), "s", 0, other); !errors.Is(err, ErrSpec) {
			t.Errorf("%s: CreateIntake = %v, want ErrSpec", name, err)
		}
	}
	for name, bad := range map[string]IntakeSpec{
		"negative size":    {SizeBytes: -1},
		"prefix and state": {Prefix: []byte("q"), PrefixState: state},
		"foreign state":    {PrefixState: []byte("nonsense")},
	} {
		if _, err := s.CreateIntake(t.Context(), "s", 7, bad); err == nil {
			t.Errorf("%s: CreateIntake succeeded", name)
		}
	}
	if _, err := s.OpenIntake("s", 7); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a refused CreateIntake left an intake: %v", err)
	}
	if _, err := s.CreateIntake(t.Context(), "no-session", 0, spec); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("CreateIntake without its session = %v, want fs.ErrNotExist", err)
	}
}

func TestOneWriterAtATime(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	in := newIntake(t, s, 0, IntakeSpec{SizeBytes: 6})
	other, err := s.OpenIntake("s", 0)
	if err != nil {
		t.Fatal(err)
	}
	pr, pw := io.Pipe()
	done := make(chan error, 1)
	go func() {
		_, err := in.Append(context.Background(), pr)
		done <- err
	}()
	if _, err := pw.Write([]byte("abc")); err != nil { // returns when Append is reading, under its lock
		t.Fatal(err)
	}
	for name, handle := range map[string]*Intake{"same handle": in, "other handle": other} {
		if n, err := handle.Append(t.Context(), strings.NewReader("XXXXXX")); n != 0 || !errors.Is(err, ErrBusy) {
			t.Errorf("%s: Append beside another = %d, %v, want ErrBusy", name, n, err)
		}
	}
	if err := s.DropIntake("s", 0); !errors.Is(err, ErrBusy) {
		t.Errorf("DropIntake beside an Append = %v, want ErrBusy", err)
	}
	if err := errors.Join(pw.Close(), <-done); err != nil {
		t.Fatal(err)
	}
	if n, err := other.Append(t.Context(), strings.NewReader("XXXXXX")); n != 0 || !errors.Is(err, ErrMoved) {
		t.Errorf("Append on an overtaken handle = %d, %v, want ErrMoved", n, err)
	}
	mustAppend(t, in, []byte("def"))
	wantSums(t, in, sumOf([]byte("abcdef")), "")
}

func TestALostStateIsReportedAndRepairedByCreateIntake(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(path string) error{
		"missing": os.Remove,
		"empty":   func(path string) error { return os.Truncate(path, 0) },
		"cut":     func(path string) error { return os.Truncate(path, 40) },
		"one bit": func(path string) error {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			b[20] ^= 1
			return os.WriteFile(path, b, 0o600)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := openStore(t)
			data, spec := randomBytes(3000), IntakeSpec{SizeBytes: 3000, Prefix: []byte("meta")}
			stale := newIntake(t, s, 0, spec)
			mustAppend(t, stale, data[:1000])
			if err := damage(s.statePath("s", 0)); err != nil {
				t.Fatal(err)
			}
			if _, err := s.OpenIntake("s", 0); !errors.Is(err, ErrStateLost) {
				t.Fatalf("OpenIntake = %v, want ErrStateLost", err)
			}
			ended, cancel := context.WithCancel(t.Context())
			cancel()
			if _, err := s.CreateIntake(ended, "s", 0, spec); !errors.Is(err, context.Canceled) {
				t.Errorf("CreateIntake in an ended context = %v", err)
			}
			in := newIntake(t, s, 0, spec)
			if in.Offset() != 1000 {
				t.Errorf("offset = %d, want 1000", in.Offset())
			}
			mustAppend(t, in, data[1000:])
			wantSums(t, in, sumOf(data), sumOf(spec.Prefix, data))
		})
	}
}

func TestDataShorterThanItsStateIsAnError(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	spec := IntakeSpec{SizeBytes: 10}
	in := newIntake(t, s, 0, spec)
	mustAppend(t, in, []byte("hello"))
	if err := os.Truncate(s.dataPath("s", 0), 4); err != nil {
		t.Fatal(err)
	}
	_, openErr := s.OpenIntake("s", 0)
	_, createErr := s.CreateIntake(t.Context(), "s", 0, spec)
	_, appendErr := in.Append(t.Context(), strings.NewReader("world"))
	linkErr := s.LinkToIngress(t.Context(), "s", 0, "j", "f")
	for what, err := range map[string]error{"open": openErr, "create": createErr, "append": appendErr, "link": linkErr} {
		if !errors.Is(err, ErrDataLost) {
			t.Errorf("%s = %v, want ErrDataLost", what, err)
		}
	}
	if err := s.DropIntake("s", 0); err != nil {
		t.Fatal(err)
	}
	if again := newIntake(t, s, 0, spec); again.Offset() != 0 {
		t.Errorf("begun again at %d", again.Offset())
	}
}

func TestACheckpointOutlivesAKillWithinAnAppend(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	s.checkpoint = 1000
	in := newIntake(t, s, 0, IntakeSpec{SizeBytes: 2500})
	data := randomBytes(2500)
	// The reader looks at the disk as a next process would: at the time of the third checkpoint's first byte.
	var seen int64
	spy := readerFunc(func([]byte) (int, error) {
		next, err := s.OpenIntake("s", 0)
		if err == nil {
			seen = next.Offset()
		}
		return 0, errBroken
	})
	if n, err := in.Append(t.Context(), io.MultiReader(bytes.NewReader(data[:2000]), spy)); n != 2000 || !errors.Is(err, errBroken) {
		t.Fatalf("Append = %d, %v", n, err)
	}
	if seen != 2000 {
		t.Errorf("within the Append the disk says %d, want 2000", seen)
	}
}

func TestRemovingTheSessionEndsARunningAppend(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	in := newIntake(t, s, 0, IntakeSpec{SizeBytes: 6})
	abort := readerFunc(func([]byte) (int, error) { return 0, errors.Join(io.EOF, s.RemoveSession("s")) })
	n, err := in.Append(t.Context(), io.MultiReader(strings.NewReader("abc"), abort))
	if n != 0 || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Append = %d, %v, want fs.ErrNotExist", n, err)
	}
	wantFiles(t, s, map[string]fs.FileMode{})
}

func TestDropIntakeRemovesOnlyThatFile(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	newIntake(t, s, 0, IntakeSpec{SizeBytes: 1})
	newIntake(t, s, 1, IntakeSpec{SizeBytes: 1})
	for range 2 {
		if err := s.DropIntake("s", 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.DropIntake("no-session", 0); err != nil {
		t.Errorf("DropIntake without a session = %v", err)
	}
	wantFiles(t, s, map[string]fs.FileMode{"uploads/s/session": 0o600, "uploads/s/1": 0o600, "uploads/s/1.state": 0o600})
}

func TestAnUnfinishedCreationIsNoIntake(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	newIntake(t, s, 0, IntakeSpec{SizeBytes: 1})
	if err := os.Remove(s.statePath("s", 0)); err != nil { // as killed between data and state
		t.Fatal(err)
	}
	if _, err := s.OpenIntake("s", 0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("OpenIntake = %v, want fs.ErrNotExist", err)
	}
	mustAppend(t, newIntake(t, s, 0, IntakeSpec{SizeBytes: 1}), []byte("x"))
}

func TestAppendGivesUpOnAReaderThatNeverGivesAnything(t *testing.T) {
	t.Parallel()
	in := newIntake(t, openStore(t), 0, IntakeSpec{SizeBytes: 1})
	idle := readerFunc(func([]byte) (int, error) { return 0, nil })
	if _, err := in.Append(t.Context(), idle); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("Append = %v, want io.ErrNoProgress", err)
	}
}

func FuzzDecodeState(f *testing.F) {
	for _, spec := range []IntakeSpec{{SizeBytes: 0}, {SizeBytes: 1 << 40, Prefix: []byte("metadata")}} {
		st, err := newState(spec)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(st.encode(), false)
		f.Add(st.encode()[:60], true)
	}
	f.Fuzz(func(t *testing.T, b []byte, reseal bool) {
		if reseal { // past the checksum
			sum := sumHash(b)
			b = sum.Sum(b)
		}
		st, err := decodeState(b)
		if err != nil {
			if !errors.Is(err, ErrStateLost) {
				t.Errorf("decodeState = %v, want ErrStateLost", err)
			}
			return
		}
		if st.offset < 0 || st.offset > st.size {
			t.Errorf("offset %d of %d was accepted", st.offset, st.size)
		}
		if _, err := st.hashes(); err != nil {
			t.Errorf("accepted state has no hashes: %v", err)
		}
		if diff := cmp.Diff(b, st.encode()); diff != "" {
			t.Errorf("encoded again (-in +out):\n%s", diff)
		}
	})
}
