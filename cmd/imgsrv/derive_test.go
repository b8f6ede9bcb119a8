package main

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/imgsrv/imgsrv/internal/client"
)

// derived waits until a version's only variant has a format, or says that it can't be had.
func (p *publisher) derived(image, version, format string) (made client.Format, gone client.DerivedState) {
	p.t.Helper()
	eventually(p.t, func() string {
		gone = client.DerivedState{}
		var v client.Version
		p.call(http.MethodGet, "/api/images/"+image+"/versions/"+version, nil, &v)
		if len(v.Variants) != 1 {
			p.t.Fatalf("version %s of %s is %+v", version, image, v)
		}
		for _, f := range v.Variants[0].Formats {
			if f.Format == format {
				made = f
				return ""
			}
		}
		i := slices.IndexFunc(v.Variants[0].Derived, func(d client.DerivedState) bool { return d.Format == format })
		if i >= 0 { // else the request isn't in the tables yet, or the format comes with another
			if gone = v.Variants[0].Derived[i]; gone.State != client.DerivedRequested {
				return ""
			}
		}
		return fmt.Sprintf("%s is %+v", format, gone)
	})
	return made, gone
}

// A publication and a later request have further formats made; they are downloaded, the same disk as the published one.
func TestFurtherFormatsAreMadeAndDownloaded(t *testing.T) {
	t.Parallel()
	o := newOperated(t)
	flags := []string{"--server", o.node.HTTPURL, "--data-dir", o.flags.DataDir}
	disk := writeAs(t, "disk.qcow2", qcow2Image(t, 1<<20))
	publish := with(flags, "publish", disk, "--image=debian", "--version=12.5.0", "--alias=latest", "--derive=disk.vmdk", "--derive=disk.raw")
	code, _, errs := command(t.Context(), publish...)
	if code != 0 || !strings.Contains(errs, "goes on to make disk.vmdk, disk.raw") {
		t.Fatalf("publish: exit code %d: %s", code, errs)
	}
	p := o.node.publisher(t)
	stranger := o.node.stranger(t)
	before := p.call(http.MethodGet, "/api/images/debian/versions/latest", nil, new([]byte)).Header.Get("ETag")
	code, out, errs := command(t.Context(), with(flags, "derive", "debian/latest", "disk.raw.zst")...)
	if code != 0 || !strings.Contains(out, "disk.raw.zst of ") || !strings.Contains(out, "requested") {
		t.Errorf("derive: exit code %d: %s%s", code, out, errs)
	}
	for format, driver := range map[string]string{"disk.vmdk": "vmdk", "disk.raw": "raw", "disk.raw.zst": "", "disk.raw.map.json": ""} {
		f, gone := stranger.derived("debian", "latest", format)
		if f.MadeBy == nil || f.Origin != "derived" || f.MadeBy.From != "disk.qcow2" || f.MadeBy.Tool == "" || f.MadeBy.Verified == "" {
			t.Fatalf("%s: %+v, %+v", format, f, gone)
		}
		for _, url := range []string{f.URL, "/cas/sha256/" + hexOf(f.Digest)[:2] + "/" + hexOf(f.Digest)} {
			var got []byte
			resp := stranger.call(http.MethodGet, url, nil, &got)
			if resp.StatusCode != http.StatusOK || digestOf(got) != hexOf(f.Digest) || int64(len(got)) != f.Size {
				t.Errorf("%s: %d with %d bytes", url, resp.StatusCode, len(got))
			}
			if driver != "" {
				compare(t, disk, writeAs(t, format, got), driver)
			}
		}
	}
	if after := p.call(http.MethodGet, "/api/images/debian/versions/latest", nil, new([]byte)).Header.Get("ETag"); after == before {
		t.Error("the version's ETag stays")
	}
	// They are in the checksums and in the folder too, so that a verified download takes them; one without a format takes what was published.
	const folder, name = "/images/debian/12.5.0/", "debian-12.5.0-amd64.virtual-machine.default."
	var sums, page []byte
	stranger.call(http.MethodGet, folder+"SHA256SUMS", nil, &sums)
	stranger.call(http.MethodGet, folder, nil, &page)
	for _, format := range []string{"disk.qcow2", "disk.vmdk", "disk.raw", "disk.raw.map.json", "disk.raw.zst"} {
		f, _ := stranger.derived("debian", "12.5.0", format)
		if line := hexOf(f.Digest) + "  " + name + format + "\n"; !strings.Contains(string(sums), line) {
			t.Errorf("the checksums lack %s:\n%s", line, sums)
		}
		if !strings.Contains(string(page), `"./`+name+format+`"`) {
			t.Errorf("the folder lacks %s:\n%s", format, page)
		}
		resp := stranger.call(http.MethodHead, folder+name+format, nil, nil)
		if again := resp.Header.Get("Cache-Control") == "public, no-cache"; resp.StatusCode != http.StatusOK || again != (f.Origin == "derived") {
			t.Errorf("%s in the folder: %d, %s", format, resp.StatusCode, resp.Header.Get("Cache-Control"))
		}
	}
	if !strings.Contains(string(page), "made of disk.qcow2") {
		t.Errorf("the folder doesn't say what is made of what:\n%s", page)
	}
	_, key, _ := command(t.Context(), with(flags, "signing-key")...)
	got := filepath.Join(t.TempDir(), "got.vmdk")
	if code, out, errs := command(t.Context(), with(flags, "download", "debian/12.5.0", "--format=disk.vmdk", "-o", got, "--public-key", strings.TrimSpace(key))...); code != 0 || !strings.Contains(out, "signed by") {
		t.Errorf("a verified download: exit code %d, %s%s", code, out, errs)
	} else {
		compare(t, disk, got, "vmdk")
	}
	if code, out, errs := command(t.Context(), publish...); code != 0 || !strings.Contains(out, "was published before") {
		t.Errorf("the same again: exit code %d, %s%s", code, out, errs)
	}
	if code, out, errs := command(t.Context(), with(flags, "history", "debian")...); code != 0 || !strings.Contains(out, "made disk.vmdk of amd64.virtual-machine.default: ") {
		t.Errorf("history: exit code %d, %s%s", code, out, errs)
	}
	for _, args := range [][]string{{"verify", "catalog"}, {"rebuild", "catalog"}} {
		if code, out, errs := o.cli(false, args...); code != 0 {
			t.Errorf("%v: exit code %d, %s%s", args, code, out, errs)
		}
	}
	if f, _ := stranger.derived("debian", "12.5.0", "disk.vmdk"); f.MadeBy == nil {
		t.Errorf("after the rebuild: %+v", f)
	}
}

func compare(t *testing.T, disk, made, driver string) {
	t.Helper()
	if text, err := exec.CommandContext(t.Context(), "qemu-img", "compare", "-f", "qcow2", "-F", driver, disk, made).CombinedOutput(); err != nil {
		t.Errorf("qemu-img compare: %v: %s", err, text)
	}
}

func TestWhatFormatsAreRefused(t *testing.T) {
	t.Parallel()
	o := newOperated(t)
	flags := []string{"--server", o.node.HTTPURL, "--data-dir", o.flags.DataDir}
	p := o.node.publisher(t)
	disk, root := writeAs(t, "disk.qcow2", qcow2Image(t, 1000)), writeAs(t, "rootfs.squashfs", []byte("hsqs no more"))
	for _, args := range [][]string{
		with(flags, "publish", disk, "--image=debian", "--version=1", "--derive=disk.floppy"),
		with(flags, "publish", root, "--image=debian", "--version=1", "--derive=disk.vmdk"),
	} {
		if code, _, errs := command(t.Context(), args...); code != 1 || !strings.Contains(errs, "derive[0]: ") {
			t.Errorf("%v: exit code %d, %s", args, code, errs)
		}
	}
	if code, _, errs := command(t.Context(), with(flags, "publish", disk, "--image=debian", "--version=1", "--visibility=private")...); code != 0 {
		t.Fatalf("publish: exit code %d, %s", code, errs)
	}
	const path = "/api/images/debian/versions/1/variants/amd64.virtual-machine.default/derive"
	for _, want := range []struct {
		path, format string
		status       int
		code         string
	}{
		{path, "disk.floppy", 422, "invalid-request"}, {path, "disk.raw.map.json", 422, "invalid-request"}, {path, "disk.qcow2", 422, "invalid-request"},
		{strings.Replace(path, "/1/", "/2/", 1), "disk.vmdk", 404, "not-found"}, {strings.Replace(path, "amd64", "arm64", 1), "disk.vmdk", 404, "not-found"},
		{path, "disk.vhdx", 202, ""},
	} {
		var answer struct{ Code, Detail string }
		if resp := p.call(http.MethodPost, want.path, map[string]any{"format": want.format}, &answer); resp.StatusCode != want.status || answer.Code != want.code {
			t.Errorf("%s of %s: %d %+v", want.format, want.path, resp.StatusCode, answer)
		}
	}
	// What is made of a private image is as private.
	f, _ := p.derived("debian", "1", "disk.vhdx")
	stranger := o.node.stranger(t)
	for _, url := range []string{f.URL, "/cas/sha256/" + hexOf(f.Digest)[:2] + "/" + hexOf(f.Digest), "/api/images/debian/versions/1"} {
		if resp := stranger.call(http.MethodGet, url, nil, new([]byte)); resp.StatusCode != http.StatusNotFound {
			t.Errorf("a stranger gets %d from %s", resp.StatusCode, url)
		}
		if resp := p.call(http.MethodGet, url, nil, new([]byte)); resp.StatusCode != http.StatusOK || !strings.HasPrefix(resp.Header.Get("Cache-Control"), "private") {
			t.Errorf("the publisher gets %d from %s, %s", resp.StatusCode, url, resp.Header.Get("Cache-Control"))
		}
	}
	if resp := stranger.call(http.MethodPost, path, map[string]any{"format": "disk.vmdk"}, nil); resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("a stranger asks: %d", resp.StatusCode)
	}
}

// A node that is killed while qemu-img works takes it along, and the next one makes the format, once.
func TestAFormatOutlivesAKill(t *testing.T) {
	t.Parallel()
	flags := nodeFlags(t)
	flags.StorageDir = filepath.Join(t.TempDir(), "storage")
	image := file{format: "disk.qcow2", data: qcow2Image(t, 96<<20)}
	node := startChild(t, flags, childSpec{KillWhenDeriving: true})
	p := node.publisher(t)
	body := request("debian", "1", "virtual-machine", nil, image)
	body["derive"] = []string{"disk.compressed.qcow2"}
	session := p.open(body)
	p.upload(session, image)
	node.waitEnd(t)
	eventually(t, func() string {
		if alive := working(t, flags.StorageDir); len(alive) > 0 {
			return fmt.Sprintf("processes live on: %v", alive)
		}
		return ""
	})
	tmp := filepath.Join(flags.StorageDir, "cas", "tmp")
	if left, err := os.ReadDir(tmp); err != nil || len(left) == 0 {
		t.Fatalf("the kill came too late: %v, %v", left, err)
	}

	node = startChild(t, flags)
	p = node.publisher(t)
	if f, gone := p.derived("debian", "1", "disk.compressed.qcow2"); f.MadeBy == nil {
		t.Fatalf("not made: %+v", gone)
	}
	var history struct {
		Events []struct{ Type string }
	}
	p.call(http.MethodGet, "/api/images/debian/history?version=1", nil, &history)
	counts := map[string]int{}
	for _, e := range history.Events {
		counts[e.Type]++
	}
	if counts["imgsrv.derived.requested.v1"] != 1 || counts["imgsrv.derived.made.v1"] != 1 || counts["imgsrv.derived.failed.v1"] != 0 {
		t.Errorf("the facts are %v", counts)
	}
	eventually(t, func() string { // the folder goes after the fact
		if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
			return fmt.Sprintf("left behind: %v, %v", left, err)
		}
		return ""
	})
}

// working are the processes whose folder is below another.
func working(t *testing.T, dir string) (pids []string) {
	t.Helper()
	links, err := filepath.Glob("/proc/[0-9]*/cwd")
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		if to, err := os.Readlink(link); err == nil && strings.HasPrefix(to, dir+"/") {
			pids = append(pids, link)
		}
	}
	return pids
}
