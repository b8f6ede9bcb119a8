package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/imgsrv/imgsrv/internal/client"
	"github.com/imgsrv/imgsrv/internal/incus"
	"github.com/imgsrv/imgsrv/internal/lxctest"
)

// metadataBytes is a real metadata tarball, another one for each name.
func metadataBytes(t *testing.T, name string) []byte {
	t.Helper()
	data, err := incus.Metadata{Architecture: "amd64", CreationDate: time.Unix(1767225600, 0), Name: name, Variant: "default", Version: "1", OS: "debian", Release: "bookworm"}.Tarball()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// squashfsBytes look like a squashfs of n bytes.
func squashfsBytes(seed string, n int) []byte {
	return append([]byte("hsqs"), strings.Repeat(seed, n/len(seed)+1)[:n-4]...)
}

// mirroring is a node that mirrors, and the flags of the commands for it.
type mirroring struct {
	*publisher
	node  *Node
	flags []string
}

func startMirroring(t *testing.T, caFile string) *mirroring {
	t.Helper()
	flags := nodeFlags(t)
	flags.MirrorAllow, flags.MirrorCAFile = []string{"127.0.0.1"}, caFile
	node := startWith(t, flags, testHooks{mirrorTick: 20 * time.Millisecond, mirrorPause: time.Millisecond}, nil)
	return &mirroring{node.publisher(t), node, node.found(flags)}
}

func (m *mirroring) must(args ...string) client.Mirror {
	m.t.Helper()
	code, out, errs := command(m.t.Context(), with(m.flags, append(args, "--json")...)...)
	if code != 0 {
		m.t.Fatalf("imgsrv %v: exit code %d, %s", args, code, errs)
	}
	return decode[client.Mirror](m.t, out)
}

// manifest is what the tests look at of a version.
type manifest struct {
	Version     string      `json:"version"`
	Variants    []variantOf `json:"variants"`
	PublishedBy string      `json:"published_by"`
}

type variantOf struct {
	Name        string `json:"name"`
	Fingerprint string `json:"fingerprint"`
}

// version reads a version, as soon as the catalog has it.
func (p *publisher) version(image, version string) manifest {
	p.t.Helper()
	var got manifest
	eventually(p.t, func() string {
		if resp := p.call("GET", "/api/images/"+image+"/versions/"+version, nil, &got); resp.StatusCode == 200 {
			return ""
		}
		return "there is no " + image + " " + version
	})
	return got
}

// until reads an alias until it leads to the version.
func (p *publisher) until(image, alias, version string) manifest {
	p.t.Helper()
	var got manifest
	eventually(p.t, func() string {
		if got = p.version(image, alias); got.Version == version {
			return ""
		}
		return alias + " of " + image + " does not lead to " + version
	})
	return got
}

// listed waits until the simplestreams documents hold all of the texts.
func (p *publisher) listed(texts ...string) {
	p.t.Helper()
	eventually(p.t, func() string {
		var body []byte
		p.call("GET", "/streams/v1/images.json", nil, &body)
		for _, text := range texts {
			if !bytes.Contains(body, []byte(text)) {
				return fmt.Sprintf("the documents lack %s:\n%s", text, body)
			}
		}
		return ""
	})
}

// Another imgsrv's images keep their names, versions, fingerprints and aliases, and a real client sees them.
func TestAMirrorFollowsAnotherImgsrv(t *testing.T) {
	t.Parallel()
	flags := nodeFlags(t)
	upstream := startHere(t, flags)
	a := upstream.publisher(t)
	publish := func(version string) {
		disk, root := qcow2Image(t, 1<<20), squashfsBytes(version, 4096)
		body := vm("debian-bookworm", version, []string{"latest", "stable"}, file{format: "disk.qcow2", data: disk})
		body["variants"] = append(body["variants"].([]any), request("", "", "container", nil, file{format: "rootfs.squashfs", data: root})["variants"].([]any)...)
		a.publish(body, file{format: "disk.qcow2", data: disk}, file{format: "rootfs.squashfs", data: root})
		a.listed("debian-bookworm/"+version, "debian-bookworm/latest")
	}
	publish("12.5.0")
	a.publish(request("alpine", "1", "container", []string{"latest"}, file{format: "rootfs.squashfs", data: squashfsBytes("a", 512)}), file{format: "rootfs.squashfs", data: squashfsBytes("a", 512)})
	a.listed("alpine/1")

	b := startMirroring(t, "")
	mirror := b.must("mirrors", "add", "upstream", upstream.HTTPURL, "--filter=debian-*", "--keep=2", "--wait")
	if run := mirror.LastRun; run == nil || run.Published != 1 || run.Matched != 1 || run.Error != "" || mirror.Behind != 0 || mirror.State != "waiting" || mirror.NextAt.IsZero() {
		t.Fatalf("mirror %+v, run %+v", mirror, mirror.LastRun)
	}
	same := func(version string) {
		t.Helper()
		want, got := a.version("debian-bookworm", version), b.version("debian-bookworm", version)
		byName := func(m manifest) {
			slices.SortFunc(m.Variants, func(a, b variantOf) int { return strings.Compare(a.Name, b.Name) })
		}
		byName(want)
		byName(got)
		if len(want.Variants) != 2 || want.Variants[0].Fingerprint == "" {
			t.Fatalf("upstream has %+v", want)
		}
		if diff := cmp.Diff(want.Variants, got.Variants); diff != "" {
			t.Errorf("%s (-upstream +mirror):\n%s", version, diff)
		}
		if got.PublishedBy != "mirror:upstream" {
			t.Errorf("published by %q", got.PublishedBy)
		}
	}
	same("12.5.0")
	if resp := b.call("GET", "/api/images/alpine", nil, nil); resp.StatusCode != 404 {
		t.Errorf("alpine, which the filter leaves out: %d", resp.StatusCode)
	}

	publish("12.6.0")
	if run := b.must("mirrors", "sync", "upstream", "--wait").LastRun; run.Published != 1 || run.Present != 1 {
		t.Errorf("run %+v", run)
	}
	same("12.6.0")
	b.until("debian-bookworm", "latest", "12.6.0")

	// A rollback upstream is one here.
	a.call("PUT", "/api/images/debian-bookworm/aliases/latest", map[string]any{"version": "12.5.0"}, nil)
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); {
		b.must("mirrors", "sync", "upstream", "--wait") // until upstream's documents say so
		if b.version("debian-bookworm", "latest").Version == "12.5.0" {
			break
		}
	}
	b.until("debian-bookworm", "latest", "12.5.0")
	b.until("debian-bookworm", "stable", "12.6.0")

	lxc := lxctest.New(t, b.node.HTTPSURL, b.node.CertFile)
	b.listed("debian-bookworm/12.6.0", "debian-bookworm/stable")
	var fingerprints []string
	for _, v := range append(a.version("debian-bookworm", "12.5.0").Variants, a.version("debian-bookworm", "12.6.0").Variants...) {
		fingerprints = append(fingerprints, v.Fingerprint)
	}
	slices.Sort(fingerprints)
	var seen []string
	for _, image := range lxc.List() {
		seen = append(seen, image.Fingerprint)
	}
	if diff := cmp.Diff(fingerprints, seen); diff != "" {
		t.Errorf("lxc lists (-upstream +mirror):\n%s", diff)
	}
	exported, err := os.ReadFile(lxc.Export("debian-bookworm/12.6.0").Root)
	if err != nil || !bytes.Equal(exported, squashfsBytes("12.6.0", 4096)) {
		t.Errorf("lxc exported %d other bytes: %v", len(exported), err)
	}

	b.must2(t, "mirrors", "remove", "upstream")
	if code, out, _ := command(t.Context(), with(b.flags, "mirrors", "--json")...); code != 0 || strings.TrimSpace(out) != "[]" {
		t.Errorf("mirrors after the removal: %s", out)
	}
	b.version("debian-bookworm", "12.6.0") // stays
}

// must2 is must for a command that prints nothing.
func (m *mirroring) must2(t *testing.T, args ...string) {
	t.Helper()
	if code, _, errs := command(t.Context(), with(m.flags, args...)...); code != 0 {
		t.Fatalf("imgsrv %v: exit code %d, %s", args, code, errs)
	}
}

// A tree by the format's documents: only what is wanted, the newest versions, what is wrong refused and the rest published;
// a polite client that asks for nothing twice; an upstream that is away.
func TestAMirrorOfATreeMadeByHand(t *testing.T) {
	t.Parallel()
	tree := newHandTree(t)
	meta := metadataBytes(t, "debian")
	newest := ""
	for _, serial := range []string{"20260101_05:24", "20260102_05:24", "20260103_05:24"} {
		newest = tree.add("debian:bookworm:amd64:default", serial, meta, squashfsBytes(serial, 20_000), nil)
	}
	tree.add("debian:bookworm:arm64:default", "20260103_05:24", meta, squashfsBytes("arm", 512), nil)
	tree.add("alpine:edge:amd64:default", "20260103_05:24", meta, squashfsBytes("alpine", 512), nil)
	tree.add("debian:trixie:amd64:default", "20260103_05:24", meta, squashfsBytes("combined", 512), func(items map[string]map[string]any) {
		items["lxd.tar.xz"]["combined_squashfs_sha256"] = digestOf([]byte("something else"))
	})
	tree.add("debian:sid:amd64:default", "20260103_05:24", meta, squashfsBytes("bytes", 512), func(items map[string]map[string]any) {
		items["root.squashfs"]["sha256"] = digestOf([]byte("something else"))
		items["lxd.tar.xz"]["combined_squashfs_sha256"] = digestOf(append(bytes.Clone(meta), "something else"...))
	})
	const root = "images/debian/bookworm/amd64/default/20260103_05:24/rootfs.squashfs"
	tree.cuts[root] = 7000 // the line breaks once

	b := startMirroring(t, tree.CAFile)
	mirror := b.must("mirrors", "add", "lxc", tree.URL, "--filter=debian/*", "--architecture=x86_64", "--keep=2", "--wait")
	run := mirror.LastRun
	if run == nil || run.Matched != 4 || run.Published != 2 || run.Refused != 2 || run.Failed != 0 || run.Error != "" || mirror.Behind != 2 {
		t.Fatalf("mirror %+v, run %+v", mirror, run)
	}
	problems := strings.Join(run.Problems, "\n")
	if !strings.Contains(problems, "debian-trixie-default-amd64 20260103_05-24: wrong-fingerprint") || !strings.Contains(problems, "debian-sid-default-amd64 20260103_05-24: wrong-digest") {
		t.Errorf("problems:\n%s", problems)
	}
	const image = "debian-bookworm-default-amd64"
	got := b.until(image, "latest", "20260103_05-24")
	if got.Variants[0].Name != "amd64.container.default" || got.Variants[0].Fingerprint != newest {
		t.Errorf("version %+v, want the fingerprint %s", got, newest)
	}
	b.version(image, "20260102_05-24")
	for _, none := range []string{image + "/versions/20260101_05-24", "alpine-edge-default-amd64", "debian-bookworm-default-arm64", "debian-sid-default-amd64"} {
		if resp := b.call("GET", "/api/images/"+none, nil, nil); resp.StatusCode != 404 {
			t.Errorf("%s: %d", none, resp.StatusCode)
		}
	}
	requests := tree.asked()
	if !slices.Contains(requests, "GET "+root+" bytes=7000- 206") {
		t.Errorf("after the break the rest wasn't asked for:\n%s", strings.Join(requests, "\n"))
	}

	// Nothing has changed: two conditional requests, and no file.
	mirror = b.must("mirrors", "sync", "lxc", "--wait")
	if run := mirror.LastRun; !run.Unchanged || run.Matched != 4 || run.Present != 2 || run.Refused != 2 {
		t.Errorf("run %+v", run)
	}
	if diff := cmp.Diff([]string{"GET streams/v1/index.json  304", "GET streams/v1/images.json  304"}, tree.asked()); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}

	// Upstream is away: that is seen, and what is here stays.
	tree.setDown(true)
	if code, _, errs := command(t.Context(), with(b.flags, "mirrors", "sync", "lxc", "--wait")...); code != 1 || !strings.Contains(errs, "503") {
		t.Errorf("exit code %d, %s", code, errs)
	}
	if code, out, _ := command(t.Context(), with(b.flags, "mirrors")...); code != 0 || !strings.Contains(out, "503") {
		t.Errorf("mirrors:\n%s", out)
	}
	list := decode[[]client.Mirror](t, b.out("mirrors", "--json"))
	if len(list) != 1 || list[0].Failures != 1 || list[0].LastSuccessAt.IsZero() || !list[0].NextAt.After(list[0].LastRun.EndedAt) || list[0].NextAt.After(list[0].LastRun.EndedAt.Add(2*time.Minute)) {
		t.Errorf("mirrors %+v", list)
	}
	tree.setDown(false)
	tree.asked()

	// A new version; of the refused ones nothing is asked for again.
	tree.add("debian:bookworm:amd64:default", "20260104_05:24", meta, squashfsBytes("new", 512), nil)
	mirror = b.must("mirrors", "sync", "lxc", "--wait")
	if run := mirror.LastRun; run.Published != 1 || run.Present != 1 || run.Refused != 2 || mirror.Failures != 0 {
		t.Errorf("run %+v", run)
	}
	b.until(image, "latest", "20260104_05-24")
	for _, request := range tree.asked() {
		if strings.Contains(request, "/sid/") || strings.Contains(request, "/trixie/") || strings.Contains(request, "lxd.tar.xz") {
			t.Errorf("asked again for what is known: %s", request)
		}
	}

	// Upstream mends what was wrong: then it is taken.
	tree.add("debian:sid:amd64:default", "20260103_05:24", meta, squashfsBytes("bytes", 512), nil)
	if run := b.must("mirrors", "sync", "lxc", "--wait").LastRun; run.Published != 1 || run.Refused != 1 {
		t.Errorf("run %+v", run)
	}
	b.version("debian-sid-default-amd64", "latest")
}

func (m *mirroring) out(args ...string) string {
	m.t.Helper()
	code, out, errs := command(m.t.Context(), with(m.flags, args...)...)
	if code != 0 {
		m.t.Fatalf("imgsrv %v: exit code %d, %s", args, code, errs)
	}
	return out
}

// A node that is killed in the middle of a file goes on there when it starts again, without anybody asking.
func TestAKilledMirrorGoesOnWhereItWas(t *testing.T) {
	t.Parallel()
	tree := newHandTree(t)
	meta, disk := metadataBytes(t, "debian"), squashfsBytes("kill", 24<<20)
	want := tree.add("debian:bookworm:amd64:default", "20260103_05:24", meta, disk, nil)
	const root = "images/debian/bookworm/amd64/default/20260103_05:24/rootfs.squashfs"
	hold := &held{after: 20 << 20, reached: make(chan struct{}), release: make(chan struct{})}
	tree.hold[root] = hold
	flags := nodeFlags(t)
	flags.MirrorAllow, flags.MirrorCAFile = []string{"127.0.0.1"}, tree.CAFile
	node := startChild(t, flags)
	p := node.publisher(t)
	if resp := p.call("POST", "/api/mirrors", map[string]any{"name": "lxc", "url": tree.URL}, nil); resp.StatusCode != 201 {
		t.Fatalf("POST /api/mirrors: %d", resp.StatusCode)
	}
	select {
	case <-hold.reached:
	case <-time.After(time.Minute):
		t.Fatal("nobody asks for the file")
	}
	arrived := func() (n int64) {
		_ = filepath.WalkDir(flags.DataDir, func(path string, d os.DirEntry, err error) error {
			if err == nil && strings.Contains(path, "uploads") && !d.IsDir() {
				if info, err := d.Info(); err == nil {
					n = max(n, info.Size())
				}
			}
			return nil
		})
		return n
	}
	for deadline := time.Now().Add(time.Minute); arrived() < 17<<20; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("only %d bytes arrived", arrived())
		}
	}
	node.kill()
	close(hold.release)

	node = startChild(t, flags)
	p.base, p.token = node.HTTPURL, node.Token
	if p.token == "" {
		p.token = readToken(t, flags.DataDir)
	}
	if got := p.version("debian-bookworm-default-amd64", "latest"); got.Variants[0].Fingerprint != want {
		t.Errorf("version %+v, want the fingerprint %s", got, want)
	}
	requests := tree.asked()
	resumed := slices.ContainsFunc(requests, func(request string) bool {
		return strings.HasPrefix(request, "GET "+root+" bytes=") && !strings.HasPrefix(request, "GET "+root+" bytes=0-") && strings.HasSuffix(request, " 206")
	})
	if !resumed {
		t.Errorf("the file was asked for from its beginning:\n%s", strings.Join(requests, "\n"))
	}
	node.stop(t)
}

func readToken(t *testing.T, dataDir string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dataDir, "admin.token"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

// What can't be meant, or mustn't be, is refused in words.
func TestMirrorsThatMeanNothingAreRefused(t *testing.T) {
	t.Parallel()
	b := startMirroring(t, "")
	for name, tt := range map[string]struct {
		args []string
		text string
	}{
		"credentials":    {[]string{"up", "https://user:secret@10.0.0.1"}, "--mirror-allow"},
		"private target": {[]string{"up", "https://10.0.0.1"}, "--mirror-allow"},
		"no TLS":         {[]string{"up", "http://8.8.8.8"}, "--mirror-allow"},
		"no URL":         {[]string{"up", "images"}, "https://HOST"},
		"a bad name":     {[]string{"Up", "https://127.0.0.1:1"}, "lower-case"},
		"architecture":   {[]string{"up", "https://127.0.0.1:1", "--architecture=pdp11"}, "architecture is one of"},
		"too often":      {[]string{"up", "https://127.0.0.1:1", "--every=1s"}, "every"},
		"template":       {[]string{"up", "https://127.0.0.1:1", "--image-name={distro}"}, "{os}"},
		"keep":           {[]string{"up", "https://127.0.0.1:1", "--keep=-1"}, "keep"},
	} {
		code, _, errs := command(t.Context(), with(b.flags, append([]string{"mirrors", "add"}, tt.args...)...)...)
		if code != 1 || !strings.Contains(errs, tt.text) || strings.Contains(errs, "secret") {
			t.Errorf("%s: exit code %d, %s", name, code, errs)
		}
	}
	b.out("mirrors", "add", "up", "https://127.0.0.1:1") // nobody listens there: a mirror all the same
	if code, _, errs := command(t.Context(), with(b.flags, "mirrors", "add", "up", "https://127.0.0.1:1")...); code != 1 || !strings.Contains(errs, "there is a mirror up") {
		t.Errorf("a second one of the name: exit code %d, %s", code, errs)
	}
	if code, _, errs := command(t.Context(), with(b.flags, "mirrors", "sync", "none")...); code != 1 || !strings.Contains(errs, "no mirror") {
		t.Errorf("exit code %d, %s", code, errs)
	}
}
