package vault_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgsrv/imgsrv/internal/s3test"
	"github.com/imgsrv/imgsrv/store/vault"
)

// Not parallel: the credentials are found in the environment, as the SDK documents it.
func TestABucketKeepsWholeFiles(t *testing.T) {
	server := s3test.Start(t)
	setenv(t, server)
	keepsWhole(t, func() vault.Vault {
		v, err := vault.Open(t.Context(), "s3://"+server.Bucket+"/some/prefix/", vault.Options{S3Endpoint: server.Endpoint})
		if err != nil {
			t.Fatal(err)
		}
		if got := v.String(); got != "s3://backups/some/prefix" {
			t.Errorf("the place calls itself %q", got)
		}
		return v
	})
	err := filepath.WalkDir(server.Dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() && strings.Contains(path, "/bad/") {
			t.Errorf("a refused file is there: %s", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}

	t.Setenv("AWS_ENDPOINT_URL", server.Endpoint) // in place of the option
	many, err := vault.Open(t.Context(), "s3://"+server.Bucket+"/many", vault.Options{})
	if err != nil {
		t.Fatal(err)
	}
	const files = 1100 // more than one page of a list
	for i := range files {
		if err := many.Put(t.Context(), "f/"+strings.Repeat("x", i%7+1)+string(rune('a'+i%26))+strings.Repeat("y", i/26), 1, "", bytes.NewReader([]byte("z"))); err != nil {
			t.Fatal(err)
		}
	}
	found := map[string]bool{}
	if err := many.List(t.Context(), "f", func(name string, _ int64) error { found[name] = true; return nil }); err != nil {
		t.Fatal(err)
	}
	if len(found) != files {
		t.Errorf("the list has %d files of %d", len(found), files)
	}
	if _, err := vault.Open(t.Context(), "s3://absent", vault.Options{}); err == nil || !strings.Contains(err.Error(), "no such bucket") {
		t.Errorf("a bucket that isn't there: %v", err)
	}
	t.Setenv("AWS_SECRET_ACCESS_KEY", "wrong")
	if _, err := vault.Open(t.Context(), "s3://"+server.Bucket, vault.Options{}); err == nil || strings.Contains(err.Error(), "wrong") {
		t.Errorf("with a wrong key: %v", err)
	}
	for _, place := range []string{"s3://", "s3:///x", "s3://b/a//b", "s3://b/../c"} {
		if _, err := vault.Open(t.Context(), place, vault.Options{}); err == nil {
			t.Errorf("%s is a place", place)
		}
	}
}

func setenv(t *testing.T, server *s3test.Server) {
	t.Helper()
	for _, entry := range server.Env {
		name, value, _ := strings.Cut(entry, "=")
		t.Setenv(name, value)
	}
}
