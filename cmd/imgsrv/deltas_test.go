package main

import (
	"bytes"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgsrv/imgsrv/internal/incus/clientrules"
	"github.com/imgsrv/imgsrv/internal/lxctest"
	"github.com/imgsrv/imgsrv/internal/testtool"
)

// twoSquashfs makes two real ones, of which the second has one file changed and one more.
func twoSquashfs(t *testing.T) (older, newer []byte) {
	t.Helper()
	testtool.Need(t, "mksquashfs")
	source := rand.New(rand.NewPCG(1, 2))
	tree := filepath.Join(t.TempDir(), "root")
	write := func(name string, n int) {
		data := make([]byte, n)
		for i := range data {
			data[i] = byte(source.Uint32())
		}
		if err := os.WriteFile(filepath.Join(tree, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pack := func() []byte {
		out := filepath.Join(t.TempDir(), "root.squashfs")
		if said, err := exec.CommandContext(t.Context(), "mksquashfs", tree, out, "-quiet", "-no-progress", "-all-time", "0", "-mkfs-time", "0").CombinedOutput(); err != nil {
			t.Fatalf("mksquashfs: %v: %s", err, said)
		}
		data, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	if err := os.Mkdir(tree, 0o700); err != nil {
		t.Fatal(err)
	}
	for i := range 40 {
		write(fmt.Sprintf("file%02d", i), 30_000)
	}
	older = pack()
	write("file17", 20_000)
	write("file17-more", 5_000)
	return older, pack()
}

// twoDisks makes two real qcow2 images of disks that differ in a few places.
func twoDisks(t *testing.T) (older, newer []byte) {
	t.Helper()
	testtool.Need(t, "qemu-img")
	source := rand.New(rand.NewPCG(3, 4))
	disk := make([]byte, 3<<20)
	for i := range 2 << 20 {
		disk[i] = byte(source.Uint32())
	}
	convert := func() []byte {
		dir := t.TempDir()
		raw, out := filepath.Join(dir, "disk.raw"), filepath.Join(dir, "disk.qcow2")
		if err := os.WriteFile(raw, disk, 0o600); err != nil {
			t.Fatal(err)
		}
		if said, err := exec.CommandContext(t.Context(), "qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, out).CombinedOutput(); err != nil {
			t.Fatalf("qemu-img: %v: %s", err, said)
		}
		data, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	older = convert()
	copy(disk[500_000:], "changed")
	copy(disk[2_500_000:], "where there was nothing")
	return older, convert()
}

// seen is what an Incus client sees of a remote.
func (p *publisher) seen(base string) []clientrules.Image {
	p.t.Helper()
	var index []byte
	p.call("GET", base+"/streams/v1/index.json", nil, &index)
	images, err := clientrules.Read(index, func(path string) ([]byte, error) {
		var document []byte
		_, err := p.try("GET", base+"/"+path, nil, &document)
		return document, err
	}, clientrules.Incus)
	if err != nil {
		p.t.Fatal(err)
	}
	return images
}

// fetched is what a client that has the base makes of a delta.
type fetched struct {
	image       clientrules.Image
	root, delta []byte
}

// fetchByDelta does what Incus does with an image when it has the base: it waits until a delta is listed, as far as a remote's
// user can see that, and applies it.
func (p *publisher) fetchByDelta(remote, fingerprint, baseFingerprint string, base []byte) fetched {
	p.t.Helper()
	var got fetched
	eventually(p.t, func() string {
		for _, image := range p.seen(remote) {
			for _, f := range image.Files {
				if image.Fingerprint != fingerprint || f.Role != "root.delta-"+baseFingerprint {
					continue
				}
				var delta []byte
				if resp := p.call("GET", remote+"/"+f.Path, nil, &delta); resp.StatusCode != 200 || digestOf(delta) != f.SHA256 || int64(len(delta)) != f.SizeBytes {
					p.t.Fatalf("%s: %d with %d bytes", f.Path, resp.StatusCode, len(delta))
				}
				got = fetched{image, p.applyDelta(base, delta), delta}
				return ""
			}
		}
		return "no delta to " + fingerprint + " from " + baseFingerprint + " is listed"
	})
	return got
}

func (p *publisher) applyDelta(base, delta []byte) []byte {
	p.t.Helper()
	dir := p.t.TempDir()
	for name, data := range map[string][]byte{"base": base, "delta": delta} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			p.t.Fatal(err)
		}
	}
	command := exec.CommandContext(p.t.Context(), "xdelta3", "-f", "-d", "-s", "base", "delta", "out")
	command.Dir = dir
	if said, err := command.CombinedOutput(); err != nil {
		p.t.Fatalf("xdelta3 -d: %v: %s", err, said)
	}
	out, err := os.ReadFile(filepath.Join(dir, "out"))
	if err != nil {
		p.t.Fatal(err)
	}
	return out
}

// Who has a version gets the next one by a delta: a container and a virtual machine, public and private. The older client of LXD, which
// knows no such thing, goes on as before.
func TestAHostWithTheVersionBeforeFetchesADelta(t *testing.T) {
	t.Parallel()
	testtool.Need(t, "xdelta3")
	flags := nodeFlags(t)
	flags.Deltas = 2
	node := startChild(t, flags)
	p := node.publisher(t)
	older, newer := twoSquashfs(t)
	olderDisk, newerDisk := twoDisks(t)
	_, token := p.readerToken("hidden")

	for _, test := range []struct {
		image, kind, format, visibility string
		older, newer                    []byte
	}{
		{"tree", "container", "rootfs.squashfs", "public", older, newer},
		{"disk", "virtual-machine", "disk.qcow2", "public", olderDisk, newerDisk},
		{"hidden", "virtual-machine", "disk-kvm.img", "private", newerDisk, olderDisk},
	} {
		publish := func(version string, data []byte) {
			f := file{format: test.format, data: data}
			body := request(test.image, version, test.kind, []string{"latest"}, f)
			body["visibility"] = test.visibility
			p.publish(body, f)
		}
		remote, who := node.HTTPURL, node.stranger(t)
		if test.visibility == "private" {
			remote += "/r/" + token
		}
		listed := func(version string) string {
			for _, image := range who.seen(remote) {
				if strings.HasPrefix(image.Product, test.image+":"+version+":") {
					return image.Fingerprint
				}
			}
			t.Fatalf("%s %s is not listed", test.image, version)
			return ""
		}
		publish("1", test.older)
		base := listed("1")
		publish("2", test.newer)
		fingerprint := listed("2") // at once, whatever becomes of the delta
		got := who.fetchByDelta(remote, fingerprint, base, test.older)
		if !bytes.Equal(got.root, test.newer) {
			t.Errorf("%s: the delta makes %d bytes, published were %d", test.image, len(got.root), len(test.newer))
		}
		var metadata []byte
		who.call("GET", remote+"/"+got.image.Files[0].Path, nil, &metadata)
		if sum := digestOf(append(metadata, got.root...)); sum != fingerprint {
			t.Errorf("%s: metadata and root hash to %s, the fingerprint is %s", test.image, sum, fingerprint)
		}
		if len(got.delta)*3 > len(test.newer)*2 {
			t.Errorf("%s: a delta of %d bytes to a root of %d", test.image, len(got.delta), len(test.newer))
		}
		t.Logf("%s: %d bytes in place of %d", test.image, len(got.delta), len(test.newer))
		if test.visibility == "private" {
			if resp := who.call("GET", node.HTTPURL+"/"+got.image.Files[2].Path, nil, new([]byte)); resp.StatusCode != 404 {
				t.Errorf("a stranger gets the delta of a private image: %d", resp.StatusCode)
			}
		}
	}

	lxc := lxctest.New(t, node.HTTPSURL, node.CertFile)
	if listed := lxc.List(); len(listed) != 4 {
		t.Errorf("lxc lists %d images", len(listed))
	}
	for name, want := range map[string][]byte{"tree/1": older, "tree/2": newer, "tree": newer, "disk/1": olderDisk, "disk/latest": newerDisk} {
		var of []string
		if strings.HasPrefix(name, "disk") {
			of = append(of, "--vm")
		}
		root, err := os.ReadFile(lxc.Export(name, of...).Root)
		if err != nil || !bytes.Equal(root, want) {
			t.Errorf("lxc exported %d bytes of %s (%v), published were %d", len(root), name, err, len(want))
		}
	}
	node.stop(t)
}

// Without the program a node works as ever, and says why there are no deltas. Not parallel: it takes all programs away.
func TestANodeWithoutXdelta3SaysSo(t *testing.T) {
	flags := nodeFlags(t)
	flags.Deltas, flags.TLSListen = 2, ""
	t.Setenv("PATH", t.TempDir())
	var log bytes.Buffer
	node := startWith(t, flags, testHooks{}, slog.New(slog.NewTextHandler(&log, nil)))
	var ready struct {
		Ready  bool
		Deltas struct {
			Versions int
			Error    string
		}
	}
	p := node.publisher(t)
	p.call("GET", "/readyz", nil, &ready)
	if !ready.Ready || ready.Deltas.Versions != 2 || ready.Deltas.Error != "xdelta3 isn't installed" {
		t.Errorf("/readyz says %+v", ready)
	}
	p.publishSmall("debian", "1", "public")
	node.end(t)
	if n := strings.Count(log.String(), "no deltas are made"); n != 1 {
		t.Errorf("the log says so %d times:\n%s", n, log.String())
	}
}
