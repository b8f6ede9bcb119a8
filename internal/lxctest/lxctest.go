// Package lxctest drives the real lxc client of LXD against a simplestreams remote. Only tests import it; it knows nothing of how
// the remote makes its documents.
//
// What the client does, as seen with Debian's lxd-client 5.0.2: it needs no daemon to list, show and export images of such a
// remote. `remote add` only notes the address and asks for nothing. Each command reads index.json and images.json anew (the cache
// of an hour is the daemon's), through the certificates of SSL_CERT_FILE. Files it asks for over plain HTTP on the same port
// first; a TLS listener's 400 sends it to HTTPS at once. Before each TLS connection it opens one that it gives up without a word, so
// that the server sees a handshake end in EOF. An exported file has the last part of its path as its name.
package lxctest

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imgsrv/imgsrv/internal/testtool"
)

// limit bounds one command, so that a client that hangs fails its test and not the whole run.
const limit = time.Minute

// Image is an image as `lxc image list --format json` shows it.
type Image struct {
	Fingerprint  string            `json:"fingerprint"`
	Architecture string            `json:"architecture"` // the kernel's name, such as x86_64
	Type         string            `json:"type"`         // container, virtual-machine
	Properties   map[string]string `json:"properties"`
	SizeBytes    int64             `json:"size"` // metadata and root
	Aliases      []Alias           `json:"aliases"`
}

// Alias is a name of an image. The client shows a name without architecture only for its machine's own.
type Alias struct {
	Name string `json:"name"`
}

// Names are the image's aliases, sorted.
func (i Image) Names() []string {
	var names []string
	for _, a := range i.Aliases {
		names = append(names, a.Name)
	}
	slices.Sort(names)
	return names
}

// Exported is the paths of the files that an export has written. Root is "" for a unified image.
type Exported struct{ Metadata, Root string }

// remote is the name of the server in the client's configuration.
const remote = "under-test"

// Client is a configuration of lxc in a home of its own, with one remote.
type Client struct {
	t    testing.TB
	home string
	env  []string
}

// New makes a client whose remote is serverURL (https, no path needed). caFile is a PEM file with the certificate that the server's
// own is checked against. The test is skipped where there is no lxc (see testtool).
func New(t testing.TB, serverURL, caFile string) *Client {
	t.Helper()
	testtool.Need(t, "lxc")
	home := t.TempDir()
	c := &Client{t: t, home: home, env: append(os.Environ(), "HOME="+home, "LXD_CONF="+home, "SSL_CERT_FILE="+caFile,
		"HTTP_PROXY=", "HTTPS_PROXY=", "http_proxy=", "https_proxy=")}
	c.must("remote", "add", remote, serverURL, "--protocol", "simplestreams", "--public")
	return c
}

// CertificateFile writes a certificate where [New] can read it.
func CertificateFile(t testing.TB, certificate *x509.Certificate) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// List gives all images of the remote, by fingerprint.
func (c *Client) List() []Image {
	c.t.Helper()
	var images []Image
	out := c.must("image", "list", remote+":", "--format", "json")
	if err := json.Unmarshal([]byte(out), &images); err != nil {
		c.t.Fatalf("lxc image list answers no JSON: %v\n%s", err, out)
	}
	slices.SortFunc(images, func(a, b Image) int { return strings.Compare(a.Fingerprint, b.Fingerprint) })
	return images
}

// Info gives the lines of `lxc image info` that are of the form "Key: value", nested ones without their indentation. With the flag
// --vm a name means a virtual machine; without it a container, if there is one.
func (c *Client) Info(name string, flags ...string) map[string]string {
	c.t.Helper()
	info := map[string]string{}
	for line := range strings.Lines(c.must(append([]string{"image", "info", remote + ":" + name}, flags...)...)) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), ": "); ok {
			info[key] = strings.Trim(value, `"`)
		}
	}
	return info
}

// Export downloads an image into an empty folder of its own; flags as in [Client.Info].
func (c *Client) Export(name string, flags ...string) Exported {
	c.t.Helper()
	dir := c.t.TempDir()
	c.must(append([]string{"image", "export", remote + ":" + name, dir}, flags...)...)
	entries, err := os.ReadDir(dir)
	if err != nil {
		c.t.Fatal(err)
	}
	var exported Exported
	for _, entry := range entries {
		path := filepath.Join(dir, entry.Name())
		if name := entry.Name(); strings.HasPrefix(name, "incus.tar") || strings.HasPrefix(name, "lxd.tar") || strings.HasPrefix(name, "incus_combined.") {
			exported.Metadata = path
			continue
		}
		if exported.Root != "" {
			c.t.Fatalf("lxc image export wrote two roots: %v", entries)
		}
		exported.Root = path
	}
	if exported.Metadata == "" {
		c.t.Fatalf("lxc image export wrote no metadata: %v", entries)
	}
	return exported
}

// Run runs lxc with any arguments; the remote is "under-test". The error is that of the command, with output its standard error too.
func (c *Client) Run(args ...string) (output string, err error) {
	ctx, cancel := context.WithTimeout(c.t.Context(), limit)
	defer cancel()
	command := exec.CommandContext(ctx, "lxc", args...)
	command.Env, command.Dir = c.env, c.home
	var out, problems strings.Builder
	command.Stdout, command.Stderr = &out, &problems
	if err := command.Run(); err != nil {
		return out.String() + problems.String(), err
	}
	return out.String(), nil
}

func (c *Client) must(args ...string) string {
	c.t.Helper()
	out, err := c.Run(args...)
	if err != nil {
		c.t.Fatalf("lxc %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}
