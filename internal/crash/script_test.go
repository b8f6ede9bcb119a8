package crash

import (
	"crypto/sha256"
	"encoding/hex"
	"math/rand/v2"
	"testing"
)

// bytesOf are a file's bytes: so many, the same in each run, beginning with a magic.
func bytesOf(magic string, size int, seed byte) []byte {
	b := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b) // never fails
	copy(b, magic)
	return b
}

func digestOf(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// file is one to publish.
type file struct {
	data    []byte
	declare bool   // its digest
	sha256  string // declared in place of the right one
}

func (f file) request(name string, value string) map[string]any {
	request := map[string]any{name: value, "size": len(f.data)}
	if f.declare {
		request["sha256"] = digestOf(f.data)
	}
	if f.sha256 != "" {
		request["sha256"] = f.sha256
	}
	return request
}

// version is a publication of a container with an attachment.
func version(image, name string, aliases []string, root, sbom file) map[string]any {
	return map[string]any{"image": image, "version": name, "os": "debian", "release": "bookworm", "visibility": "public", "aliases": aliases,
		"variants":    []any{map[string]any{"architecture": "amd64", "type": "container", "files": []any{root.request("format", "rootfs.squashfs")}}},
		"attachments": []any{sbom.request("name", "sbom.spdx.json")}}
}

// expectation is what a script leads to, whatever happens meanwhile.
type expectation struct {
	image    string
	versions map[string][2][]byte // root and attachment
	absent   []string             // versions that must not be there
	// withdrawn are those that were published and withdrawn.
	withdrawn []string
	aliases   map[string]string
}

// script is what the clients of a run do. Each step is repeated until it is done.
func script(r *run) expectation {
	r.t.Helper()
	const image = "disk"
	root1, root2 := bytesOf("hsqs", 300_000, 1), bytesOf("hsqs", 5_000, 2)
	sbom1, sbom2 := bytesOf("{", 2_000, 3), bytesOf("{", 1_000, 4)

	// Two files in several requests, one of which breaks.
	s := r.open(version(image, "1", []string{"latest"}, file{data: root1, declare: true}, file{data: sbom1}))
	root, sbom := r.create(s, 0), r.create(s, 1)
	r.upload(root, root1, 280_000, 140_000)
	r.upload(sbom, sbom1, 700, 700)
	r.broken(sbom, sbom1, 500)
	r.upload(root, root1, len(root1), len(root1))
	r.upload(sbom, sbom1, len(sbom1), 1_000)
	r.want(s, "published")

	// The next one shares a blob in two ways: by its digest, and by sending its bytes again.
	s = r.open(version(image, "2", []string{"latest"}, file{data: root2}, file{data: sbom1, declare: true}))
	r.upload(r.create(s, 0), root2, len(root2), len(root2))
	r.want(s, "published")
	s = r.open(version(image, "3", nil, file{data: root1}, file{data: sbom2}))
	r.upload(r.create(s, 1), sbom2, len(sbom2), len(sbom2))
	r.upload(r.create(s, 0), root1, len(root1), len(root1))
	r.want(s, "published")

	// Names.
	r.promised(r.call("PUT", "/api/images/disk/aliases/stable", map[string]string{"version": "1"}, []int{200}), ".disk.stable")
	r.promised(r.call("PUT", "/api/images/disk/aliases/stable", map[string]string{"version": "2"}, []int{200}), ".disk.stable")
	r.promised(r.call("PUT", "/api/images/disk/aliases/old", map[string]string{"version": "1"}, []int{200}), ".disk.old")
	r.promised(r.call("DELETE", "/api/images/disk/aliases/old", nil, []int{204, 404}), ".disk.old")
	withdrawal := map[string]any{"reason": "a bad build"}
	r.promised(r.call("POST", "/api/images/disk/versions/1/withdraw", withdrawal, []int{200}), ".disk.1")
	r.promised(r.call("POST", "/api/images/disk/versions/1/restore", nil, []int{200}), ".disk.1")

	// One that its publisher gives up, and one whose bytes are not what they were declared to be.
	s = r.open(version(image, "4", nil, file{data: root2}, file{data: sbom2}))
	r.upload(r.create(s, 0), root2, 2_000, 2_000)
	r.promised(r.call("DELETE", r.pathOf(s.StatusURL), nil, []int{200}), "."+s.ID)
	s = r.open(version(image, "5", []string{"latest"}, file{data: root2, sha256: digestOf([]byte("something else"))}, file{data: sbom2, declare: true}))
	r.upload(r.create(s, 0), root2, len(root2), len(root2))
	r.want(s, "failed")

	return expectation{image: image, versions: map[string][2][]byte{"1": {root1, sbom1}, "2": {root2, sbom1}, "3": {root1, sbom2}},
		absent: []string{"4", "5"}, aliases: map[string]string{"latest": "2", "stable": "2"}}
}

func (r *run) want(s session, state string) {
	r.t.Helper()
	if got := r.await(s); got != state {
		r.t.Fatalf("session %s is %s, want %s", s.ID, got, state)
	}
}

func TestTheScriptWithoutACrash(t *testing.T) {
	t.Parallel()
	r := newRun(t, databaseOf(t))
	r.check(script(r))
	if r.killed > 0 {
		t.Errorf("the server was killed %d times, by whom?", r.killed)
	}
}
