package postgres

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// fakePrograms makes a folder with programs that say they are of a version.
func fakePrograms(t *testing.T, folder, version string) {
	t.Helper()
	if err := os.MkdirAll(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	script := fmt.Sprintf("#!/bin/sh\necho 'postgres (PostgreSQL) %s'\n", version)
	for _, name := range []string{"postgres", "initdb"} {
		if err := os.WriteFile(filepath.Join(folder, name), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

func TestProgramsOfThePathComeFirstThenTheNewest(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	at := func(name string) string { return filepath.Join(root, name) }
	fakePrograms(t, at("pkg/9/bin"), "9.6.24")
	fakePrograms(t, at("pkg/14/bin"), "14.12")
	fakePrograms(t, at("pkg/17/bin"), "17.2 (Debian 17.2-1)")
	fakePrograms(t, at("pkg/18/bin"), "18beta1")
	fakePrograms(t, at("pkg/broken/bin"), "unknown")
	if err := os.Mkdir(at("local"), 0o755); err != nil { // a folder of links, with postgres alone
		t.Fatal(err)
	}
	if err := os.Symlink(at("pkg/14/bin/postgres"), at("local/postgres")); err != nil {
		t.Fatal(err)
	}
	found, err := places{path: []string{"", "relative", at("none"), at("local")}, globs: []string{at("pkg/*/bin")}}.find(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := []installation{
		{at("local/postgres"), at("pkg/14/bin/initdb"), 14},
		{at("pkg/18/bin/postgres"), at("pkg/18/bin/initdb"), 18},
		{at("pkg/17/bin/postgres"), at("pkg/17/bin/initdb"), 17},
	}
	if diff := cmp.Diff(want, found, cmp.AllowUnexported(installation{})); diff != "" {
		t.Error(diff)
	}
}

func TestMissingProgramsAreOneLineWithTheRemedy(t *testing.T) {
	t.Parallel()
	_, err := startManaged(t.Context(), ManagedConfig{DataDir: t.TempDir()}, places{path: []string{t.TempDir()}}, t.TempDir())
	if !errors.Is(err, ErrNoBinaries) {
		t.Fatalf("start without programs: %v", err)
	}
	for _, word := range []string{"apt install postgresql", "--postgres-url"} {
		if !strings.Contains(err.Error(), word) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q is not one line with %q", err, word)
		}
	}
}

func TestClusterOfAVersionThatIsGoneIsNotTouched(t *testing.T) {
	t.Parallel()
	needPrograms(t)
	dataDir := openFolder(t)
	cluster := filepath.Join(dataDir, "postgres", "data")
	if err := os.MkdirAll(cluster, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(cluster, "PG_VERSION"), []byte("13\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	programs := openFolder(t)
	fakePrograms(t, programs, "16.3")
	_, err := startManaged(t.Context(), ManagedConfig{DataDir: dataDir}, places{path: []string{programs}}, t.TempDir())
	var gone *VersionError
	if !errors.As(err, &gone) {
		t.Fatalf("start of a cluster of version 13: %v", err)
	}
	if diff := cmp.Diff(&VersionError{Cluster: cluster, Made: 13, Found: []int{16}}, gone); diff != "" {
		t.Error(diff)
	}
	fakePrograms(t, filepath.Join(programs, "old"), "13.15")
	found, err := places{path: []string{programs, filepath.Join(programs, "old")}}.find(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	in, err := choose(found, cluster)
	if err != nil || in.major != 13 {
		t.Errorf("with the programs of 13 there, %d is chosen (%v)", in.major, err)
	}
}

func TestParseVersion(t *testing.T) {
	t.Parallel()
	for out, want := range map[string]int{
		"postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n": 15,
		"postgres (PostgreSQL) 18beta1\n":                        18,
		"postgres (PostgreSQL) 17devel":                          17,
		"postgres (PostgreSQL) ":                                 0,
		"postgres 15.1":                                          0,
		"":                                                       0,
	} {
		got, err := parseVersion(out)
		if got != want || (err == nil) != (want != 0) {
			t.Errorf("%q: %d, %v; want %d", out, got, err, want)
		}
	}
}
