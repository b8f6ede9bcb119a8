package incus_test

import (
	"cmp"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/imgsrv/imgsrv/internal/incus"
	"github.com/imgsrv/imgsrv/internal/incus/clientrules"
)

// lxcImage is an image as `lxc image list --format json` prints it.
type lxcImage struct {
	Fingerprint  string            `json:"fingerprint"`
	Architecture string            `json:"architecture"`
	Type         string            `json:"type"`
	Properties   map[string]string `json:"properties"`
	SizeBytes    int64             `json:"size"`
	CreatedAt    time.Time         `json:"created_at"`
	ExpiresAt    time.Time         `json:"expires_at"`
	Aliases      []struct {
		Name string `json:"name"`
	} `json:"aliases"`
}

// The rules are read off the client's source; here the client itself is asked.
func TestRealLXDClientSeesWhatTheRulesSay(t *testing.T) {
	t.Parallel()
	need(t, "lxc")
	f, products := files{}, incus.NewProducts(time.Unix(1795550437, 0))
	vm := addSplit(t, f, &products, "amd64", "12.5.0", incus.FileDiskKVM, "debian-bookworm/12.5.0", "debian-bookworm", "debian-bookworm/latest")
	for i, arch := range incus.Architectures() {
		rootType := []string{incus.FileSquashfs, incus.FileRootTarXZ}[i%2]
		addSplit(t, f, &products, arch, "12.4.0", rootType, "debian-bookworm/12.4.0", "debian-bookworm")
	}
	for key, product := range products.Products {
		product.Requirements = map[string]string{"secureboot": "false"}
		product.LXDRequirements = product.Requirements
		product.SupportEOL = "2028-06-30"
		products.Products[key] = product
	}
	publish(t, f, products)

	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := f.fetch(strings.TrimPrefix(r.URL.Path, "/"))
		if err != nil {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write(body)
	}))
	defer server.Close()
	home := t.TempDir()
	certificate := filepath.Join(home, "cert.pem")
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := os.WriteFile(certificate, block, 0o600); err != nil {
		t.Fatal(err)
	}
	lxc := func(args ...string) []byte {
		t.Helper()
		command := exec.CommandContext(t.Context(), "lxc", args...)
		command.Env = append(os.Environ(), "HOME="+home, "LXD_CONF="+home, "SSL_CERT_FILE="+certificate)
		command.Dir = home
		var stderr strings.Builder
		command.Stderr = &stderr
		out, err := command.Output()
		if err != nil {
			t.Fatalf("lxc %s: %v\n%s%s", strings.Join(args, " "), err, out, stderr.String())
		}
		return out
	}
	lxc("remote", "add", "here", server.URL, "--protocol", "simplestreams")

	var listed []lxcImage
	if err := json.Unmarshal(lxc("image", "list", "here:", "--format", "json"), &listed); err != nil {
		t.Fatal(err)
	}
	// LXD 5.0 knows no LoongArch; that is the one problem it may have with these documents.
	images, err := clientrules.Read(f[incus.IndexPath], f.fetch, clientrules.LXD)
	var problems clientrules.Problems
	if !errors.As(err, &problems) {
		t.Fatalf("error is %v, want a problem with loong64", err)
	}
	for _, problem := range problems {
		if problem.Code != clientrules.UnknownArchitecture || !strings.Contains(problem.Text, "loong64") {
			t.Errorf("problem: %s", problem)
		}
	}
	type seen struct {
		Fingerprint, Architecture, Type string
		Properties                      map[string]string
		SizeBytes                       int64
		CreatedAt, ExpiresAt            time.Time
		Aliases                         []string
	}
	var want, got []seen
	for _, image := range images {
		var names []string
		for _, alias := range image.Aliases {
			// On an image clients show the short name only for the machine's own architecture.
			if strings.HasSuffix(alias.Name, "/"+image.Properties["architecture"]) {
				names = append(names, alias.Name)
			}
		}
		want = append(want, seen{image.Fingerprint, image.Architecture, image.Type, image.Properties, image.SizeBytes, image.CreatedAt, image.ExpiresAt, names})
	}
	for _, image := range listed {
		var names []string
		for _, alias := range image.Aliases {
			if strings.HasSuffix(alias.Name, "/"+image.Properties["architecture"]) {
				names = append(names, alias.Name)
			}
		}
		slices.Sort(names)
		got = append(got, seen{image.Fingerprint, image.Architecture, image.Type, image.Properties, image.SizeBytes, image.CreatedAt, image.ExpiresAt, names})
	}
	byFingerprint := func(a, b seen) int { return cmp.Compare(a.Fingerprint, b.Fingerprint) }
	slices.SortFunc(want, byFingerprint)
	slices.SortFunc(got, byFingerprint)
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("images (-rules +client):\n%s", diff)
	}

	lxc("image", "export", "here:debian-bookworm/latest", "--vm", home)
	meta, err := os.ReadFile(filepath.Join(home, "incus.tar.xz"))
	if err != nil {
		t.Fatal(err)
	}
	root, err := os.ReadFile(filepath.Join(home, "root.img"))
	if err != nil {
		t.Fatal(err)
	}
	if got := digestOf(meta, root); got != vm {
		t.Errorf("the exported files have the fingerprint %s, want %s", got, vm)
	}
}
