package main

import (
	"bytes"
	"io"
	"io/fs"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/imgsrv/imgsrv/internal/incus"
	"github.com/imgsrv/imgsrv/internal/incus/clientrules"
	"github.com/imgsrv/imgsrv/internal/lxctest"
)

// filesOf are the files below a folder, by path, with what tells whether one was written anew.
func filesOf(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		files[name] = info.ModTime().String() + " " + info.Mode().String()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func exportTo(t *testing.T, flags []string, dir string, args ...string) exported {
	t.Helper()
	code, out, errs := command(t.Context(), with(flags, append([]string{"export", dir, "--json"}, args...)...)...)
	if code != 0 {
		t.Fatalf("export %v: exit code %d: %s", args, code, errs)
	}
	return decode[exported](t, out)
}

// A tree of others goes in, a static tree comes out, which a web server serves to the real client, and which is taken over elsewhere:
// all along the same fingerprints.
func TestATreeGoesInAndComesOutWithItsFingerprints(t *testing.T) {
	t.Parallel()
	made, fingerprints := sampleTree(t)
	flags, node := server(t)
	if code, _, errs := command(t.Context(), with(flags, "import", "incus-simplestreams", made)...); code != 0 {
		t.Fatalf("import: exit code %d: %s", code, errs)
	}
	out := filepath.Join(t.TempDir(), "a", "tree")
	first := exportTo(t, flags, out)
	if first.Downloaded == 0 || first.Downloaded+first.Linked != first.Files || first.Products != len(fingerprints) || first.Kept != 0 || first.Signed {
		t.Errorf("first export: %+v", first)
	}
	before := filesOf(t, out)
	second := exportTo(t, flags, out, "--check")
	if second.Downloaded != 0 || second.Kept != first.Files {
		t.Errorf("second export: %+v", second)
	}
	if diff := cmp.Diff(before, filesOf(t, out)); diff != "" {
		t.Errorf("the second export changed files:\n%s", diff)
	}
	index, err := os.ReadFile(filepath.Join(out, incus.IndexPath))
	if err != nil {
		t.Fatal(err)
	}
	// What the tree said beside names is in the documents of the one that came of it.
	documents, err := os.ReadFile(filepath.Join(out, incus.ImagesPath))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"release_title":"BOOKWORM"`, `"support_eol":"2124-06-30"`, `"release_codename":"worm"`, `"secureboot":"false"`, `"supported":true`} {
		if !strings.Contains(strings.ReplaceAll(string(documents), ": ", ":"), want) {
			t.Errorf("the documents lack %s", want)
		}
	}
	images, err := clientrules.Read(index, func(path string) ([]byte, error) { return os.ReadFile(filepath.Join(out, path)) }, clientrules.Incus)
	if err != nil || len(images) != len(fingerprints) {
		t.Errorf("by the clients' rules the tree has %d images: %v", len(images), err)
	}

	web := httptest.NewUnstartedServer(http.FileServer(http.Dir(out)))
	web.Config.ErrorLog = log.New(io.Discard, "", 0) // for each connection the client makes one more that says nothing
	web.StartTLS()
	t.Cleanup(web.Close)
	lxc := lxctest.New(t, web.URL, lxctest.CertificateFile(t, web.Certificate()))
	var listed []string
	for _, image := range lxc.List() {
		listed = append(listed, image.Fingerprint)
	}
	slices.Sort(listed)
	if diff := cmp.Diff(fingerprints, listed); diff != "" {
		t.Errorf("fingerprints (-tree +lxc):\n%s", diff)
	}
	for _, fingerprint := range fingerprints {
		files := lxc.Export(fingerprint)
		metadata, err := os.ReadFile(files.Metadata)
		if err != nil {
			t.Fatal(err)
		}
		root, err := os.ReadFile(files.Root)
		if err != nil {
			t.Fatal(err)
		}
		if got := digestOf(append(metadata, root...)); got != fingerprint {
			t.Errorf("lxc exported %s as %s", fingerprint, got)
		}
	}

	// Elsewhere, with names and aliases as here.
	flags2, node2 := server(t)
	code, text, errs := command(t.Context(), with(flags2, "import", "incus-simplestreams", out, "--json")...)
	if code != 0 {
		t.Fatalf("second import: exit code %d: %s", code, errs)
	}
	if diff := cmp.Diff(fingerprints, fingerprintsOf(decode[imported](t, text))); diff != "" {
		t.Errorf("fingerprints (-first +second import):\n%s", diff)
	}
	type image struct {
		Name    string            `json:"name"`
		Aliases map[string]string `json:"aliases"`
	}
	var here, there struct {
		Images []image `json:"images"`
	}
	(node.stranger(t)).call("GET", "/api/images", nil, &here)
	(node2.stranger(t)).call("GET", "/api/images", nil, &there)
	if diff := cmp.Diff(here, there); diff != "" || len(here.Images) != 2 {
		t.Errorf("images (-here +there):\n%s", diff)
	}
}

func TestAnExportFollowsTheCatalog(t *testing.T) {
	t.Parallel()
	serverFlags := nodeFlags(t)
	serverFlags.StreamsSigningKey = filepath.Join(serverFlags.DataDir, "streams.asc")
	node := startHere(t, serverFlags)
	flags := node.found(serverFlags)
	publish := func(image, version, content string, args ...string) {
		t.Helper()
		args = append([]string{"publish", write(t, content)[0], "--image=" + image, "--version=" + version, "--architecture=amd64"}, args...)
		if code, _, errs := command(t.Context(), with(flags, args...)...); code != 0 {
			t.Fatalf("publish: exit code %d: %s", code, errs)
		}
	}
	root := squashfs + rawDisk(30_000)
	publish("open", "1", root)
	publish("open", "2", root) // the same root: one download
	publish("secret", "1", squashfs+rawDisk(40_000), "--visibility=private")

	out := t.TempDir()
	first := exportTo(t, flags, out)
	const folder = "/versions/1/variants/amd64.container.default/formats/rootfs.squashfs"
	shared, other := filepath.Join(out, "api/images/open"+folder), filepath.Join(out, "api/images/open", strings.Replace(folder[1:], "versions/1", "versions/2", 1))
	one, err1 := os.Stat(shared)
	two, err2 := os.Stat(other)
	if err1 != nil || err2 != nil || !os.SameFile(one, two) || first.Files != 4 || first.Linked != 1 || first.Downloaded != 3 || !first.Signed {
		t.Errorf("export %+v: %v, %v", first, err1, err2)
	}
	for name := range filesOf(t, out) {
		if strings.Contains(name, "secret") || strings.Contains(name, ".incoming") {
			t.Errorf("the tree has %s", name)
		}
	}
	for _, name := range []string{"index.sjson", "images.sjson", "signing-key.asc"} {
		var served []byte
		(node.stranger(t)).call("GET", "/streams/v1/"+name, nil, &served)
		if got, err := os.ReadFile(filepath.Join(out, "streams/v1", name)); err != nil || !bytes.Equal(got, served) {
			t.Errorf("%s isn't the server's: %v", name, err)
		}
	}

	// With private images; a spoilt file is noticed by its size, and by --check also else.
	if err := os.WriteFile(other, []byte(strings.ToUpper(root)), 0o600); err != nil { // one file, two names
		t.Fatal(err)
	}
	if kept := exportTo(t, flags, out, "--private"); kept.Downloaded != 2 || kept.Kept != 4 {
		t.Errorf("--private: %+v", kept)
	}
	if mended := exportTo(t, flags, out, "--private", "--check"); mended.Downloaded != 1 || mended.Linked != 1 || mended.Kept != 4 {
		t.Errorf("--check: %+v", mended)
	}
	if got, err := os.ReadFile(shared); err != nil || string(got) != root {
		t.Errorf("the spoilt file has %d bytes: %v", len(got), err)
	}

	// What is gone goes when it is asked for, and nothing beside it.
	mine := filepath.Join(out, "robots.txt")
	if err := os.WriteFile(mine, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	secret := filepath.Join(out, "api/images/secret")
	if still := exportTo(t, flags, out); still.Deleted != 0 {
		t.Errorf("without --delete: %+v", still)
	}
	if _, err := os.Stat(secret); err != nil {
		t.Error(err)
	}
	if gone := exportTo(t, flags, out, "--delete"); gone.Deleted != 2 || gone.Kept != 4 {
		t.Errorf("--delete: %+v", gone)
	}
	_, errSecret := os.Stat(secret)
	_, errMine := os.Stat(mine)
	if !os.IsNotExist(errSecret) || errMine != nil {
		t.Errorf("after --delete: the private image %v, a file of one's own %v", errSecret, errMine)
	}

	// A file that can't be had changes no document.
	before := filesOf(t, filepath.Join(out, "streams"))
	publish("open", "3", squashfs+rawDisk(50_000))
	upstream, err := url.Parse(node.HTTPURL)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(upstream)
	lossy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/versions/3/") && strings.HasSuffix(r.URL.Path, ".squashfs") {
			http.NotFound(w, r)
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(lossy.Close)
	if code, _, errs := command(t.Context(), "export", out, "--server", lossy.URL); code != 1 || !strings.Contains(errs, "/versions/3/") {
		t.Errorf("export of a lost file: exit code %d: %s", code, errs)
	}
	if diff := cmp.Diff(before, filesOf(t, filepath.Join(out, "streams"))); diff != "" {
		t.Errorf("a failed export changed documents:\n%s", diff)
	}
}
