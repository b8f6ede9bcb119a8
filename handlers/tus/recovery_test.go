package tus_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/store/blob"
)

// A damaged disk took an upload's bytes: its client is sent back to the beginning, not into a dead end.
func TestAnUploadWhoseBytesAreLostIsBegunAgain(t *testing.T) {
	t.Parallel()
	in := newIntake(t, nil)
	session := in.session(nil, events.UploadFile{Format: "a", Size: 10})
	in.create(session, "a", 10)
	in.patch(in.url(session, 0), 0, []byte("01234"))
	if err := os.Remove(filepath.Join(in.root, "uploads", session, "0")); err != nil {
		t.Fatal(err)
	}
	if a := in.do("HEAD", in.url(session, 0), nil); a.status != 404 {
		t.Errorf("HEAD: %d, want 404", a.status)
	}
	if _, err := in.handler.Offset(session, 0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Offset: %v, want fs.ErrNotExist", err)
	}
	if a := in.create(session, "a", 10); a.status != 201 {
		t.Fatalf("created again: %d %s", a.status, a.detail)
	}
	if a := in.patch(in.url(session, 0), 0, []byte("0123456789")); a.status != 204 {
		t.Errorf("uploaded again: %d %s", a.status, a.detail)
	}
}

// The process died after the last byte was synced and before the fact was appended.
func TestAFullFileWithoutItsFactIsPickedUp(t *testing.T) {
	t.Parallel()
	in := newIntake(t, nil)
	fill := func() string {
		session := in.session(nil, events.UploadFile{Format: "a", Size: 3})
		file, err := in.store.CreateIntake(t.Context(), session, 0, blob.IntakeSpec{SizeBytes: 3})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := file.Append(t.Context(), strings.NewReader("abc")); err != nil {
			t.Fatal(err)
		}
		return session
	}
	byStart, byHead, byPatch := fill(), fill(), fill()
	if got := in.offset(in.url(byHead, 0)); got != 3 {
		t.Errorf("offset %d", got)
	}
	if a := in.patch(in.url(byPatch, 0), 3, nil); a.status != 204 {
		t.Errorf("PATCH: %d %s", a.status, a.detail)
	}
	if f := in.file(byStart, "a"); f.State != events.FilePending {
		t.Fatalf("file is %s before recovery", f.State)
	}
	if err := in.handler.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, session := range []string{byStart, byHead, byPatch} {
		if f := in.file(session, "a"); f.State != events.FileComplete || f.Digest.Hex() != sum([]byte("abc")) {
			t.Errorf("file %+v, want it complete", f)
		}
		if _, err := in.handler.Offset(session, 0); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the intake is still there: %v", err)
		}
	}
}

// A crash while a complete file's intake is removed leaves its state without its data. The file is complete all the same.
func TestACompleteFileStaysCompleteWhenItsIntakeIsHalfRemoved(t *testing.T) {
	t.Parallel()
	in := newIntake(t, nil)
	session := in.session(nil, events.UploadFile{Format: "a", Size: 4}, events.UploadFile{Format: "b", Size: 4})
	in.create(session, "a", 4)
	in.patch(in.url(session, 0), 0, []byte("01"))
	state, err := os.ReadFile(filepath.Join(in.root, "uploads", session, "0.state"))
	if err != nil {
		t.Fatal(err)
	}
	in.patch(in.url(session, 0), 2, []byte("23"))
	if err := os.WriteFile(filepath.Join(in.root, "uploads", session, "0.state"), state, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := in.offset(in.url(session, 0)); got != 4 {
		t.Errorf("offset %d, want all 4 bytes", got)
	}
}
