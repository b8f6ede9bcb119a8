package streams_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/internal/incus"
	"github.com/imgsrv/imgsrv/internal/lxctest"
)

// remote serves documents and files as imgsrv does, and notes what it is asked for.
type remote struct {
	site
	files map[string][]byte

	mu    sync.Mutex
	asked []string
}

func (s *remote) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.asked = append(s.asked, r.Method+" "+r.URL.EscapedPath())
	s.mu.Unlock()
	if strings.HasPrefix(r.URL.Path, "/streams/v1/") {
		s.site.ServeHTTP(w, r)
		return
	}
	file, ok := s.files[r.URL.Path]
	if !ok {
		http.NotFound(w, r)
		return
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(file))
}

func sum(parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "")))
	return hex.EncodeToString(sum[:])
}

// publication makes the fact of a version with the given roots, one for each variant, and serves its files.
func (s *remote) publication(t *testing.T, image, version string, roots map[events.Variant]string) events.VersionPublished {
	t.Helper()
	m := &events.Manifest{Image: image, Version: version, OS: "debian", Release: "bookworm", Visibility: events.Public, PublishedAt: published}
	for variant, root := range roots {
		tarball, err := incus.Metadata{Architecture: variant.Architecture, CreationDate: published, Name: image, OS: "debian", Release: "bookworm",
			Variant: variant.Flavour, Version: version, Description: root}.Tarball()
		if err != nil {
			t.Fatal(err)
		}
		metadata := string(tarball)
		format := "disk.qcow2"
		if variant.Type == events.Container {
			format = "rootfs.squashfs"
		}
		folder := "/api/images/" + image + "/versions/" + version + "/variants/" + variant.Name() + "/formats/"
		s.files[folder+events.FormatMetadata], s.files[folder+format] = tarball, []byte(root)
		m.Variants = append(m.Variants, events.ManifestVariant{Variant: variant, Fingerprint: sum(metadata, root), Root: format, Formats: []events.ManifestFormat{
			{Format: events.FormatMetadata, Digest: events.Digest("sha256:" + sum(metadata)), Size: int64(len(metadata))},
			{Format: format, Digest: events.Digest("sha256:" + sum(root)), Size: int64(len(root))},
		}})
	}
	return events.VersionPublished{Version: events.Version{Image: image, Version: version, State: events.StatePublished, Manifest: m}}
}

func TestRealLXDClientListsAndExportsWhatIsPublished(t *testing.T) {
	t.Parallel()
	// The client shows short names for the architecture of the machine it runs on.
	own, known := incus.Canonical(map[string]string{"amd64": "amd64", "arm64": "arm64", "ppc64le": "ppc64el"}[runtime.GOARCH])
	if !known {
		own = runtime.GOARCH
	}
	foreign := map[bool]string{true: "arm64", false: "amd64"}[own == "amd64"]
	vm := events.Variant{Architecture: own, Type: events.VirtualMachine, Flavour: "default"}
	cloud := events.Variant{Architecture: own, Type: events.VirtualMachine, Flavour: "cloud"}
	container := events.Variant{Architecture: own, Type: events.Container, Flavour: "default"}
	elsewhere := events.Variant{Architecture: foreign, Type: events.VirtualMachine, Flavour: "default"}

	s := &remote{site: newSite(t), files: map[string][]byte{}}
	old := s.publication(t, "debian-bookworm", "12.4.0", map[events.Variant]string{vm: "old vm"})
	latest := s.publication(t, "debian-bookworm", "12.5.0+b1~rc2", map[events.Variant]string{vm: "vm", cloud: "cloud vm", container: "container", elsewhere: "foreign vm"})
	server := httptest.NewUnstartedServer(s)
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // for each connection the client makes one more that says nothing
	server.StartTLS()
	t.Cleanup(server.Close)
	lxc := lxctest.New(t, server.URL, lxctest.CertificateFile(t, server.Certificate()))

	if images := lxc.List(); len(images) != 0 {
		t.Errorf("before the first publication the client lists %+v", images)
	}
	s.project(t, old, latest, events.AliasMoved{Alias: events.Alias{Image: "debian-bookworm", Alias: "latest", Version: "12.5.0+b1~rc2"}})

	type seen struct {
		Type, Version string
		Names         []string
	}
	names := func(arch string, short bool, base ...string) []string {
		var all []string
		for _, name := range base {
			if short {
				all = append(all, name)
			}
			all = append(all, name+"/"+arch)
		}
		return lxctest.Image{Aliases: aliases(all)}.Names()
	}
	fingerprint := func(p events.VersionPublished, v events.Variant) string {
		for _, variant := range p.Manifest.Variants {
			if variant.Variant == v {
				return variant.Fingerprint
			}
		}
		t.Fatalf("no variant %s", v.Name())
		return ""
	}
	shared := []string{"debian-bookworm", "debian-bookworm/latest", "debian-bookworm/12.5.0+b1~rc2"}
	want := map[string]seen{
		fingerprint(old, vm):           {"virtual-machine", "12.4.0", names(own, true, "debian-bookworm/12.4.0")},
		fingerprint(latest, vm):        {"virtual-machine", "12.5.0+b1~rc2", names(own, true, shared...)},
		fingerprint(latest, container): {"container", "12.5.0+b1~rc2", names(own, true, shared...)},
		fingerprint(latest, elsewhere): {"virtual-machine", "12.5.0+b1~rc2", names(foreign, false, shared...)},
		fingerprint(latest, cloud): {"virtual-machine", "12.5.0+b1~rc2", names(own, true, "debian-bookworm/cloud", "debian-bookworm/latest/cloud",
			"debian-bookworm/12.5.0+b1~rc2/cloud")},
	}
	got := map[string]seen{}
	for _, image := range lxc.List() {
		if _, twice := got[image.Fingerprint]; twice {
			t.Errorf("%s is listed twice", image.Fingerprint)
		}
		got[image.Fingerprint] = seen{image.Type, image.Properties["version"], image.Names()}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("images (-want +got):\n%s", diff)
	}

	for _, test := range []struct {
		name              string
		flags             []string
		publication       events.VersionPublished
		variant           events.Variant
		root, wantContent string
	}{
		{"debian-bookworm", []string{"--vm"}, latest, vm, "disk.qcow2", "vm"},
		{"debian-bookworm", nil, latest, container, "rootfs.squashfs", "container"}, // containers go first
		{"debian-bookworm/12.5.0+b1~rc2", []string{"--vm"}, latest, vm, "disk.qcow2", "vm"},
		{"debian-bookworm/12.4.0", nil, old, vm, "disk.qcow2", "old vm"},
		{"debian-bookworm/cloud", nil, latest, cloud, "disk.qcow2", "cloud vm"},
		{"debian-bookworm/" + foreign, nil, latest, elsewhere, "disk.qcow2", "foreign vm"},
		{fingerprint(latest, container)[:12], nil, latest, container, "rootfs.squashfs", "container"},
	} {
		id := fingerprint(test.publication, test.variant)
		if info := lxc.Info(test.name, test.flags...); info["Fingerprint"] != id || info["Type"] != string(test.variant.Type) {
			t.Errorf("%s %v is shown as %v, want %s", test.name, test.flags, info, id)
		}
		exported := lxc.Export(test.name, test.flags...)
		metadata, root := contentOf(t, exported.Metadata), contentOf(t, exported.Root)
		if filepath.Base(exported.Metadata) != "incus.tar.xz" || filepath.Base(exported.Root) != test.root || root != test.wantContent || sum(metadata, root) != id {
			t.Errorf("%s %v was exported as %+v with root %q", test.name, test.flags, exported, root)
		}
	}
	if out, err := lxc.Run("image", "info", "under-test:debian-bookworm/absent"); err == nil {
		t.Errorf("a name that nothing has leads to:\n%s", out)
	}
	for _, asked := range s.asked {
		if strings.Contains(asked, "%") || !strings.HasPrefix(asked, "GET ") {
			t.Errorf("the client asked for %s: a path should need no escaping", asked)
		}
	}
}

func aliases(names []string) []lxctest.Alias {
	var all []lxctest.Alias
	for _, name := range names {
		all = append(all, lxctest.Alias{Name: name})
	}
	return all
}

func contentOf(t *testing.T, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

func TestRealLXDClientListsNoWithdrawnVersion(t *testing.T) {
	t.Parallel()
	container := events.Variant{Architecture: "amd64", Type: events.Container, Flavour: "default"}
	s := &remote{site: newSite(t), files: map[string][]byte{}}
	old := s.publication(t, "debian", "1", map[events.Variant]string{container: "old"})
	bad := s.publication(t, "debian", "2", map[events.Variant]string{container: "bad"})
	server := httptest.NewUnstartedServer(s)
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	t.Cleanup(server.Close)
	lxc := lxctest.New(t, server.URL, lxctest.CertificateFile(t, server.Certificate()))
	versions := func() (out []string) {
		for _, image := range lxc.List() {
			out = append(out, image.Properties["version"])
		}
		slices.Sort(out)
		return out
	}
	s.project(t, old, bad)
	if got := versions(); !slices.Equal(got, []string{"1", "2"}) {
		t.Fatalf("published: %v", got)
	}
	withdrawn := bad.Version
	withdrawn.State, withdrawn.Withdrawal = events.StateWithdrawn, &events.Withdrawal{Reason: "bad", By: "admin", At: published}
	s.project(t, events.VersionWithdrawn{Version: withdrawn})
	if got := versions(); !slices.Equal(got, []string{"1"}) {
		t.Errorf("after the withdrawal: %v", got)
	}
	s.project(t, events.VersionRestored(bad))
	if got := versions(); !slices.Equal(got, []string{"1", "2"}) {
		t.Errorf("restored: %v", got)
	}
}
