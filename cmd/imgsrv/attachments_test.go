package main

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgsrv/imgsrv/internal/client"
)

// writeAs writes a file of a name into a folder of the test's own and gives its path.
func writeAs(t *testing.T, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// A real disk goes up with an SBOM and release notes, and all of it comes down again: by the commands, by plain
// HTTP and by digest; and the tables are those that a rebuild gives.
func TestAVersionCarriesAttachments(t *testing.T) {
	t.Parallel()
	o := newOperated(t)
	flags := []string{"--server", o.node.HTTPURL, "--data-dir", o.flags.DataDir}
	image, sbom, notes := qcow2Image(t, 100_000), []byte(`{"spdxVersion": "SPDX-2.3"}`), []byte("# 12.5.0\n\nFixes.\n")
	disk, sbomFile, notesFile := writeAs(t, "disk.qcow2", image), writeAs(t, "sbom.spdx.json", sbom), writeAs(t, "notes.md", notes)
	publish := func(more ...string) []string {
		return with(flags, append([]string{"publish", disk, "--image=debian", "--version=12.5.0", "--alias=latest", "--attach", sbomFile, "--json"}, more...)...)
	}
	code, out, errs := command(t.Context(), publish("--attach", notesFile)...)
	if code != 0 {
		t.Fatalf("publish: exit code %d: %s", code, errs)
	}
	result := decode[published](t, out)
	if len(result.Files) != 2 || len(result.Attachments) != 2 || result.Attachments[0].Name != "sbom.spdx.json" || result.Attachments[1].SHA256 != digestOf(notes) {
		t.Errorf("published %+v", result)
	}
	if code, out, errs := command(t.Context(), publish("--attach", notesFile)...); code != 0 || !decode[published](t, out).Existed {
		t.Errorf("the same again: exit code %d, %s", code, errs)
	}
	if code, _, errs := command(t.Context(), publish("--attach", writeAs(t, "notes.md", []byte("others")))...); code != 1 || !strings.Contains(errs, "its attachment notes.md is another file") {
		t.Errorf("with other notes: exit code %d, %s", code, errs)
	}
	if code, out, _ := command(t.Context(), with(flags, "images", "debian")...); code != 0 || !strings.Contains(out, "sbom.spdx.json, notes.md") {
		t.Errorf("images debian: exit code %d, %s", code, out)
	}
	for name, want := range map[string][]byte{"sbom.spdx.json": sbom, "notes.md": notes} {
		target := filepath.Join(t.TempDir(), "got")
		code, out, errs := command(t.Context(), with(flags, "download", "debian", "--attachment", name, "-o", target, "--json")...)
		got, err := os.ReadFile(target)
		if code != 0 || err != nil || string(got) != string(want) {
			t.Fatalf("download %s: exit code %d, %d bytes, %v, %s", name, code, len(got), err, errs)
		}
		if d := decode[downloaded](t, out); d.Attachment != name || d.Variant != "" || d.SHA256 != digestOf(want) {
			t.Errorf("downloaded %+v", d)
		}
	}
	if code, _, errs := command(t.Context(), with(flags, "download", "debian", "--attachment", "none", "-o", "-")...); code != 1 || !strings.Contains(errs, "no attachment none, but: sbom.spdx.json, notes.md") {
		t.Errorf("an unknown attachment: exit code %d, %s", code, errs)
	}
	if code, _, _ := command(t.Context(), with(flags, "download", "debian", "--attachment", "notes.md", "--format", "disk.qcow2")...); code != exitUsage {
		t.Errorf("an attachment with a format: exit code %d", code)
	}
	if code, _, errs := command(t.Context(), with(flags, "publish", disk, "--image=debian", "--version=2", "--attach", notesFile, "--attach", writeAs(t, "notes.md", notes))...); code != exitUsage || !strings.Contains(errs, "notes.md") {
		t.Errorf("two of one name: exit code %d, %s", code, errs)
	}

	consumer := o.node.stranger(t) // without a token
	var detail client.Version
	consumer.call(http.MethodGet, "/api/images/debian/versions/latest", nil, &detail)
	if len(detail.Attachments) != 2 || detail.Attachments[0].MediaType != "application/spdx+json" {
		t.Fatalf("attachments of the version: %+v", detail.Attachments)
	}
	for i, want := range [][]byte{sbom, notes} {
		var got []byte
		for _, url := range []string{detail.Attachments[i].URL, "/cas/sha256/" + digestOf(want)[:2] + "/" + digestOf(want)} {
			resp := consumer.call(http.MethodGet, url, nil, &got)
			if resp.StatusCode != http.StatusOK || string(got) != string(want) || resp.Header.Get("Content-Type") != detail.Attachments[i].MediaType ||
				!strings.HasPrefix(resp.Header.Get("Content-Disposition"), "attachment;") || resp.Header.Get("X-Content-Type-Options") != "nosniff" {
				t.Errorf("%s: %d %q, %v", url, resp.StatusCode, got, resp.Header)
			}
		}
	}
	if code, out, errs := o.cli(false, "verify", "catalog"); code != 0 {
		t.Errorf("verify: exit code %d, %s%s", code, out, errs)
	}
	if code, out, errs := o.cli(false, "rebuild", "catalog"); code != 0 {
		t.Errorf("rebuild: exit code %d, %s%s", code, out, errs)
	}
	if resp := consumer.call(http.MethodGet, detail.Attachments[0].URL, nil, new([]byte)); resp.StatusCode != http.StatusOK {
		t.Errorf("after the rebuild: %d", resp.StatusCode)
	}
}

// An attachment's digest is held to as that of any file, and a private image's attachments are as private as it is.
func TestAttachmentsAreCheckedAndAsPrivateAsTheirImage(t *testing.T) {
	t.Parallel()
	node := startChild(t, nodeFlags(t))
	p, stranger := node.publisher(t), node.stranger(t)
	root, signature := file{format: "rootfs.squashfs", data: []byte("hsqs secret")}, file{format: "rootfs.squashfs.minisig", data: []byte("untrusted comment: none")}
	body := func(version, sha256 string) map[string]any {
		r := request("secret", version, "container", []string{"latest"}, root)
		r["visibility"] = "private"
		r["attachments"] = []any{map[string]any{"name": signature.format, "size": len(signature.data), "sha256": sha256}}
		return r
	}

	session := p.open(body("1", digestOf([]byte("other bytes"))))
	if len(session.Files) != 2 || session.Files[1].Variant != client.AttachmentVariant {
		t.Fatalf("session %+v", session)
	}
	p.upload(session, root, signature)
	if job := p.await(session); job.State != "failed" || job.Error == nil || job.Error.Code != "wrong-digest" || !job.Error.Final || !strings.Contains(job.Error.Detail, "attachment rootfs.squashfs.minisig") {
		t.Errorf("job with a wrong digest: %+v", job)
	}

	p.publish(body("1", digestOf(signature.data)), root, signature)
	session = p.open(body("2", digestOf(signature.data)))
	if session.Files[1].State != "present" || session.Files[1].Tus != nil {
		t.Errorf("known bytes are asked for: %+v", session.Files[1])
	}
	var problem struct{ Code string }
	if resp := p.call(http.MethodDelete, session.StatusURL, nil, nil); resp.StatusCode/100 != 2 {
		t.Errorf("abort: %d", resp.StatusCode)
	}
	const path = "/api/images/secret/versions/latest/attachments/"
	cas := "/cas/sha256/" + digestOf(signature.data)[:2] + "/" + digestOf(signature.data)
	for _, url := range []string{path + signature.format, cas} {
		var got []byte
		if resp := p.call(http.MethodGet, url, nil, &got); resp.StatusCode != http.StatusOK || string(got) != string(signature.data) || !strings.HasPrefix(resp.Header.Get("Cache-Control"), "private,") {
			t.Errorf("%s: %d %q, %s", url, resp.StatusCode, got, resp.Header.Get("Cache-Control"))
		}
		if resp := stranger.call(http.MethodGet, url, nil, &problem); resp.StatusCode != http.StatusNotFound || problem.Code != "not-found" {
			t.Errorf("a stranger gets %d %s from %s", resp.StatusCode, problem.Code, url)
		}
	}
	if resp := p.call(http.MethodGet, path+"none", nil, &problem); resp.StatusCode != http.StatusNotFound || problem.Code != "not-found" {
		t.Errorf("an unknown attachment: %d %s", resp.StatusCode, problem.Code)
	}
	if resp := p.call(http.MethodPost, "/api/images", map[string]any{"image": "x", "version": "1", "variants": body("1", "")["variants"],
		"attachments": []any{map[string]any{"name": "SHA256SUMS.sig", "size": 1}}}, &problem); resp.StatusCode != http.StatusUnprocessableEntity {
		t.Errorf("an attachment in the name of the checksums: %d", resp.StatusCode)
	}
	node.stop(t)
}
