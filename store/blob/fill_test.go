package blob

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"testing"
)

func TestAFillKeepsOnlyWhatHasItsDigest(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	f := s.Fill()
	data := randomBytes(300_000)
	for range 2 { // the second finds it there
		if err := f.Put(t.Context(), sumOf(data), int64(len(data)), bytes.NewReader(data)); err != nil {
			t.Fatal(err)
		}
	}
	var size *SizeMismatchError
	var digest *DigestMismatchError
	other := randomBytes(1000)
	if err := f.Put(t.Context(), sumOf(other), 999, bytes.NewReader(other)); !errors.As(err, &size) {
		t.Errorf("more than announced: %v", err)
	}
	if err := f.Put(t.Context(), sumOf(other), 1001, bytes.NewReader(other)); !errors.As(err, &size) {
		t.Errorf("less than announced: %v", err)
	}
	if err := f.Put(t.Context(), sumOf(other), 1000, bytes.NewReader(make([]byte, 1000))); !errors.As(err, &digest) {
		t.Errorf("other bytes: %v", err)
	}
	if err := f.Put(t.Context(), "../x", 0, bytes.NewReader(nil)); !errors.Is(err, ErrDigest) {
		t.Errorf("no digest: %v", err)
	}
	if err := f.Settle(); err != nil {
		t.Fatal(err)
	}
	wantFiles(t, s, map[string]fs.FileMode{"cas/sha256/" + sumOf(data)[:2] + "/" + sumOf(data): blobMode})
	file, _, err := s.OpenBlob(sumOf(data))
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(file)
	if err = errors.Join(err, file.Close()); err != nil || !bytes.Equal(got, data) {
		t.Errorf("the blob has %d bytes (%v)", len(got), err)
	}
}
