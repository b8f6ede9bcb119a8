package main

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgsrv/imgsrv/handlers/streams/sjson"
	"github.com/imgsrv/imgsrv/internal/client"
)

// An upstream that wants a token is mirrored with it, by a password and by a path; the token is in no event, no answer, no log and no
// error, and is forgotten with the mirror.
func TestAMirrorOfPrivateImagesKeepsItsTokenToItself(t *testing.T) {
	t.Parallel()
	upstream := startHere(t, nodeFlags(t))
	a := upstream.publisher(t)
	root := file{format: "rootfs.squashfs", data: squashfsBytes("private", 4096)}
	body := request("hidden", "1", "container", []string{"latest"}, root)
	body["visibility"] = "private"
	a.publish(body, root)
	tokenID, token := a.readerToken("hidden")
	for len(a.seen(upstream.HTTPURL+"/r/"+token)) == 0 { // until the documents have it; the test's own time bounds that
	}
	want := a.version("hidden", "1").Variants[0].Fingerprint

	flags := nodeFlags(t)
	flags.MirrorAllow = []string{"127.0.0.1"}
	var log syncBuffer
	node := startWith(t, flags, testHooks{mirrorPause: 1, scrubRepairEvery: -1}, slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	b := &mirroring{node.publisher(t), node, node.found(flags)}
	host := strings.TrimPrefix(upstream.HTTPURL, "http://")
	said := ""
	for name, address := range map[string]string{"path": upstream.HTTPURL + "/r/" + token, "password": "http://hosts:" + token + "@" + host} {
		var out, errs bytes.Buffer
		args := with(b.flags, "mirrors", "add", name, "-", "--image-name="+name+"-{os}", "--wait", "--json")
		if code := run(t.Context(), args, Terminal{In: strings.NewReader(address + "\n"), Out: &out, Err: &errs}); code != 0 {
			t.Fatalf("%s: exit code %d, %s", name, code, errs.String())
		}
		said += out.String() + errs.String()
		mirror := decode[client.Mirror](t, out.String())
		if run := mirror.LastRun; run == nil || run.Published != 1 || mirror.URL != upstream.HTTPURL || !mirror.Credentials {
			t.Fatalf("%s: mirror %+v, run %+v", name, mirror, mirror.LastRun)
		}
		if got := b.version(name+"-debian", "latest").Variants[0].Fingerprint; got != want {
			t.Errorf("%s: fingerprint %s, want %s", name, got, want)
		}
	}
	if resp := (node.stranger(t)).call("GET", "/api/images/path-debian", nil, nil); resp.StatusCode != 404 {
		t.Errorf("what was private upstream is public here: %d", resp.StatusCode)
	}
	kept := filepath.Join(flags.DataDir, "mirror-credentials")
	if files, err := os.ReadDir(kept); err != nil || len(files) != 2 {
		t.Errorf("kept: %v %v", files, err)
	}

	// A file that is lost here comes from there again, for as long as the token is good.
	var v client.Version
	b.call("GET", "/api/images/path-debian/versions/latest", nil, &v)
	lost := v.Variants[0].Formats[0].Digest
	repair := func(wantCode int) (r client.FsckReport) {
		t.Helper()
		flip(t, flags.DataDir, lost)
		code, out, errs := command(t.Context(), with(b.flags, "fsck", "--repair", "--json")...)
		if code != wantCode {
			t.Fatalf("fsck: exit code %d, %s%s", code, out, errs)
		}
		said += out + errs
		return decode[client.FsckReport](t, out)
	}
	if r := repair(0); len(r.Repaired) != 1 || !strings.HasPrefix(r.Repaired[0].From, "mirror ") {
		t.Errorf("repaired: %+v", r)
	}

	// The token ends: that is an error of the runs, which tells it as little.
	a.revoke(tokenID)
	for _, name := range []string{"path", "password"} {
		code, out, errs := command(t.Context(), with(b.flags, "mirrors", "sync", name, "--wait")...)
		if code != 1 {
			t.Errorf("%s: exit code %d after the token's end", name, code)
		}
		said += out + errs
	}
	if r := repair(1); len(r.Damaged) != 1 || len(r.Errors) == 0 {
		t.Errorf("without a good token: %+v", r)
	}
	history := b.out("events", "export")
	if !strings.Contains(history, "imgsrv.mirror.synced") {
		t.Fatalf("%d bytes of events", len(history))
	}
	for where, text := range map[string]string{"events": history, "what commands said": said, "mirrors": b.out("mirrors", "--json"), "the log": log.String()} {
		if strings.Contains(text, token) {
			t.Errorf("the token is in %s", where)
		}
	}

	b.must2(t, "mirrors", "remove", "path")
	b.must2(t, "mirrors", "remove", "password")
	if files, err := os.ReadDir(kept); err != nil || len(files) != 0 {
		t.Errorf("kept after the removal: %v %v", files, err)
	}
}

// With upstream's key only documents count that are signed by it.
func TestAMirrorBelievesSignedDocumentsAlone(t *testing.T) {
	t.Parallel()
	flags := nodeFlags(t)
	flags.StreamsSigningKey = filepath.Join(t.TempDir(), "streams.asc")
	upstream := startHere(t, flags)
	a := upstream.publisher(t)
	root := file{format: "rootfs.squashfs", data: squashfsBytes("signed", 4096)}
	a.publish(request("open", "1", "container", []string{"latest"}, root), root)
	a.listed("open/1")
	var key []byte
	a.call("GET", "/streams/v1/signing-key.asc", nil, &key)
	keyFile := writeAs(t, "key.asc", key)
	b := startMirroring(t, "")
	mirror := b.must("mirrors", "add", "up", upstream.HTTPURL, "--upstream-key="+keyFile, "--wait")
	if run := mirror.LastRun; run == nil || run.Published != 1 || !mirror.Signed {
		t.Fatalf("mirror %+v, run %+v", mirror, mirror.LastRun)
	}
	if run := b.must("mirrors", "sync", "up", "--wait").LastRun; !run.Unchanged {
		t.Errorf("run %+v", run)
	}

	signer, _, err := sjson.Load(filepath.Join(t.TempDir(), "other.asc"))
	if err != nil {
		t.Fatal(err)
	}
	other := writeAs(t, "other.asc", signer.PublicKey())
	for name, tt := range map[string]struct{ url, text string }{"another": {url: upstream.HTTPURL, text: "isn't signed by the mirror's key"}, "unsigned": {url: b.node.HTTPURL, text: "404"}} {
		code, _, errs := command(t.Context(), with(b.flags, "mirrors", "add", name, tt.url, "--upstream-key="+other, "--wait")...)
		if code != 1 || !strings.Contains(errs, tt.text) {
			t.Errorf("%s: exit code %d, %s", name, code, errs)
		}
	}
	none := writeAs(t, "none.asc", []byte("no key"))
	if code, _, errs := command(t.Context(), with(b.flags, "mirrors", "add", "none", upstream.HTTPURL, "--upstream-key="+none)...); code != 1 || !strings.Contains(errs, "OpenPGP") {
		t.Errorf("exit code %d, %s", code, errs)
	}
}
