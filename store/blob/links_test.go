package blob

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// treeOf is what is in a folder: names with mode and content.
func treeOf(t *testing.T, dir string) map[string]string {
	t.Helper()
	found := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		data, err := os.ReadFile(path)
		found[path] = info.Mode().String() + " " + string(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// TestNoPlantedLinkLeadsOutside: whoever can write in the storage puts links to a folder outside in place of what the store has
// made. Whatever is then asked of the store, it says so, and neither reads nor changes what is there.
func TestNoPlantedLinkLeadsOutside(t *testing.T) {
	t.Parallel()
	data := []byte("somebody else's")
	digest := sumOf(data)
	outside := t.TempDir()
	// What the store would find there, if it went: an intake that could go on, a job's file, a blob.
	real := openStore(t)
	if err := real.CreateSession("s"); err != nil {
		t.Fatal(err)
	}
	half, err := real.CreateIntake(t.Context(), "s", 0, IntakeSpec{SizeBytes: 100})
	if err != nil {
		t.Fatal(err)
	}
	mustAppend(t, half, data)
	for name, from := range map[string]string{"0": real.dataPath("s", 0), "0.state": real.statePath("s", 0)} {
		body, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(outside, name), body, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{digest, "f", "session"} {
		if err := os.WriteFile(filepath.Join(outside, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	before := treeOf(t, outside)

	s := openStore(t)
	for _, path := range []string{s.sessionFolder("s"), s.jobFolder("j"), filepath.Dir(s.blobPath(digest))} {
		if err := os.Symlink(outside, path); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.CreateSession("whole"); err != nil {
		t.Fatal(err)
	}
	whole, err := s.CreateIntake(t.Context(), "whole", 0, IntakeSpec{SizeBytes: 3})
	if err != nil {
		t.Fatal(err)
	}
	mustAppend(t, whole, []byte("abc"))
	if err := s.LinkToIngress(t.Context(), "whole", 0, "fine", "f"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(outside, "0.state"), s.statePath("whole", 1)); err != nil {
		t.Fatal(err)
	}

	intake := &Intake{store: s, session: "s", n: 0, state: half.current()}
	_, appendErr := intake.Append(t.Context(), bytes.NewReader(data))
	_, createErr := s.CreateIntake(t.Context(), "s", 0, IntakeSpec{SizeBytes: 100})
	_, freshErr := s.CreateIntake(t.Context(), "s", 7, IntakeSpec{SizeBytes: 100})
	_, openErr := s.OpenIntake("s", 0)
	_, stateErr := s.OpenIntake("whole", 1)
	_, activityErr := s.SessionActivity("s")
	_, ingressErr := s.OpenIngress("j", "f")
	_, _, blobErr := s.OpenBlob(digest)
	_, hasErr := s.HasBlob(digest, int64(len(data)))
	for what, err := range map[string]error{
		"Append": appendErr, "CreateIntake": createErr, "CreateIntake of a new file": freshErr, "OpenIntake": openErr, "OpenIntake by a linked state": stateErr,
		"SessionActivity": activityErr, "OpenIngress": ingressErr, "OpenBlob": blobErr, "HasBlob": hasErr,
		"CreateSession": s.CreateSession("s"), "DropIntake": s.DropIntake("s", 0),
		"LinkToIngress from a link": s.LinkToIngress(t.Context(), "s", 0, "fine", "g"), "LinkToIngress into a link": s.LinkToIngress(t.Context(), "whole", 0, "j", "g"),
		"WriteIngress": s.WriteIngress("j", "f", []byte("ours")), "Admit from a link": s.Admit(t.Context(), "j", "f", sumOf([]byte("x")), int64(len(data))),
		"Admit into a link": s.Admit(t.Context(), "fine", "f", digest[:2]+sumOf([]byte("abc"))[2:], 3),
	} {
		if !errors.Is(err, ErrNotRegular) {
			t.Errorf("%s = %v, want ErrNotRegular", what, err)
		}
	}
	// A removal takes the link away, and an opening passes it by.
	if err := errors.Join(s.RemoveSession("s"), s.RemoveIngress("j")); err != nil {
		t.Error(err)
	}
	if err := os.Symlink(outside, filepath.Join(s.uploads(), "t")); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(s.root); err != nil {
		t.Error(err)
	}
	if entries, err := s.Sessions(); err != nil || len(entries) != 1 {
		t.Errorf("Sessions = %+v, %v", entries, err)
	}
	if diff := cmp.Diff(before, treeOf(t, outside)); diff != "" {
		t.Errorf("the folder outside (-before +after):\n%s", diff)
	}
}
