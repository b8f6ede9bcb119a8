package main

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/internal/incus"
	"github.com/imgsrv/imgsrv/internal/incus/clientrules"
	"github.com/imgsrv/imgsrv/internal/lxctest"
)

// The main job, through the front door: a real image goes up in pieces over a breaking line, is
// published, comes down identical, is listed once, and a real LXD client exports it.
func TestARealImageGoesThrough(t *testing.T) {
	t.Parallel()
	image := qcow2Image(t, 3<<20)
	flags := nodeFlags(t)
	node := startChild(t, flags)
	p := node.publisher(t)

	body := vm("debian-bookworm", "12.5.0", []string{"latest"}, file{format: "disk.qcow2", data: image, sha256: digestOf(image)})
	session := p.open(body)
	if session.State != "uploading" || len(session.Files) != 1 || session.Files[0].Variant != "amd64.virtual-machine.default" {
		t.Fatalf("session %+v", session)
	}
	url := p.create(session, 0, len(image))
	if resp := p.patch(url, 0, image[:1<<20]); resp.StatusCode != 204 {
		t.Fatalf("first PATCH: %d", resp.StatusCode)
	}
	p.brokenPatch(url, 1<<20, image[1<<20:], 700_000)
	for offset := p.offset(url); offset < len(image); offset = p.offset(url) {
		if offset < 1<<20 {
			t.Fatalf("offset %d: acknowledged bytes are lost", offset)
		}
		end := min(offset+1<<20, len(image))
		// 409: bytes of the broken request arrived after the question for the offset.
		if resp := p.patch(url, offset, image[offset:end]); resp.StatusCode != 204 && resp.StatusCode != 409 {
			t.Fatalf("PATCH at %d: %d", offset, resp.StatusCode)
		}
	}
	if job := p.await(session); job.State != "succeeded" || job.VersionURL == "" {
		t.Fatalf("job %+v", job)
	}

	consumer := node.stranger(t) // without a token
	for _, version := range []string{"12.5.0", "latest"} {
		var got []byte
		resp := consumer.call("GET", "/api/images/debian-bookworm/versions/"+version+"/variants/amd64.virtual-machine.default/formats/disk.qcow2", nil, &got)
		if resp.StatusCode != 200 || !bytes.Equal(got, image) || resp.Header.Get("ETag") != `"sha256:`+digestOf(image)+`"` {
			t.Errorf("download of %s: %d, %d bytes, ETag %s", version, resp.StatusCode, len(got), resp.Header.Get("ETag"))
		}
	}

	var index []byte
	consumer.call("GET", "/streams/v1/index.json", nil, &index)
	for _, dialect := range []clientrules.Dialect{clientrules.Incus, clientrules.LXD} {
		images, err := clientrules.Read(index, func(path string) ([]byte, error) {
			var document []byte
			_, err := consumer.try("GET", "/"+path, nil, &document)
			return document, err
		}, dialect)
		if err != nil || len(images) != 1 {
			t.Fatalf("dialect %v lists %d images: %v", dialect, len(images), err)
		}
	}

	lxc := lxctest.New(t, node.HTTPSURL, node.CertFile)
	listed := lxc.List()
	if len(listed) != 1 {
		t.Fatalf("lxc lists %d images: %+v", len(listed), listed)
	}
	want := []string{"debian-bookworm", "debian-bookworm/12.5.0", "debian-bookworm/12.5.0/amd64", "debian-bookworm/amd64", "debian-bookworm/latest", "debian-bookworm/latest/amd64"}
	if diff := cmp.Diff(want, listed[0].Names()); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
	info := lxc.Info("debian-bookworm", "--vm")
	if info["Fingerprint"] != listed[0].Fingerprint {
		t.Errorf("lxc image info: %v", info)
	}
	exported := lxc.Export("debian-bookworm/latest", "--vm")
	metadata, err := os.ReadFile(exported.Metadata)
	if err != nil {
		t.Fatal(err)
	}
	root, err := os.ReadFile(exported.Root)
	if err != nil || !bytes.Equal(root, image) {
		t.Errorf("lxc exported %d bytes (%v), published were %d", len(root), err, len(image))
	}
	if got := digestOf(append(metadata, root...)); got != listed[0].Fingerprint {
		t.Errorf("metadata and root hash to %s, the fingerprint is %s", got, listed[0].Fingerprint)
	}
	node.stop(t)
}

// Wherever the process is killed between two steps, the next one finishes the publication, once.
func TestAKillBetweenStepsIsMadeGoodByTheNextStart(t *testing.T) {
	t.Parallel()
	image := qcow2Image(t, 300_000)
	for _, step := range events.Steps() {
		t.Run(string(step), func(t *testing.T) {
			t.Parallel()
			flags := nodeFlags(t)
			node := startChild(t, flags, childSpec{KillAt: step})
			p := node.publisher(t)
			session := p.open(vm("debian", "1", []string{"latest"}, file{format: "disk.qcow2", data: image}))
			url := p.create(session, 0, len(image))
			_, _ = p.try("PATCH", url, image, nil, "Tus-Resumable", "1.0.0", "Content-Type", "application/offset+octet-stream", "Upload-Offset", "0") // the process may die before it answers
			node.waitEnd(t)

			node = startChild(t, flags, childSpec{KillAt: step})
			p.base = node.HTTPURL
			session.StatusURL = "/api/uploads/" + session.ID
			job := p.await(session)
			if job.State != "succeeded" {
				t.Fatalf("job %+v", job)
			}
			var got []byte
			if resp := p.call("GET", "/api/images/debian/versions/latest/variants/amd64.virtual-machine.default/formats/disk.qcow2", nil, &got); resp.StatusCode != 200 || !bytes.Equal(got, image) {
				t.Errorf("download: %d, %d bytes", resp.StatusCode, len(got))
			}
			for _, folder := range []string{"uploads", "ingress/jobs"} {
				entries, err := os.ReadDir(flags.DataDir + "/storage/" + folder)
				if err != nil || len(entries) != 0 {
					t.Errorf("%s holds %v (%v) after the publication", folder, entries, err)
				}
			}
			node.stop(t)
		})
	}
}

// A kill in the middle of an upload loses no acknowledged byte, and the digests go on.
func TestAKillDuringAnUploadLosesNothingAcknowledged(t *testing.T) {
	t.Parallel()
	image := qcow2Image(t, 2<<20)
	flags := nodeFlags(t)
	node := startChild(t, flags)
	p := node.publisher(t)
	session := p.open(vm("debian", "1", nil, file{format: "disk.qcow2", data: image, sha256: digestOf(image)}))
	url := p.create(session, 0, len(image))
	half := len(image) / 2
	if resp := p.patch(url, 0, image[:half]); resp.StatusCode != 204 {
		t.Fatalf("PATCH: %d", resp.StatusCode)
	}
	p.brokenPatch(url, half, image[half:], 100_000)
	node.kill()

	node = startChild(t, flags)
	url = node.HTTPURL + url[strings.Index(url, "/api/"):]
	p.base, session.StatusURL = node.HTTPURL, "/api/uploads/"+session.ID
	offset := p.offset(url)
	if offset < half {
		t.Fatalf("offset %d, acknowledged were %d", offset, half)
	}
	if resp := p.patch(url, offset, image[offset:]); resp.StatusCode != 204 {
		t.Fatalf("PATCH after the restart: %d", resp.StatusCode)
	}
	if job := p.await(session); job.State != "succeeded" {
		t.Fatalf("job %+v", job)
	}
}

// Everything of a session appears together, and what is a blob already isn't uploaded again.
func TestManyVariantsAppearTogetherAndKnownBytesAreNotSentAgain(t *testing.T) {
	t.Parallel()
	image := qcow2Image(t, 100_000)
	squash := append([]byte("hsqs"), bytes.Repeat([]byte{7}, 5000)...)
	node := startChild(t, nodeFlags(t))
	p := node.publisher(t)
	body := vm("multi", "1", []string{"latest"}, file{format: "disk.qcow2", data: image})
	body["variants"] = append(body["variants"].([]any), map[string]any{"architecture": "arm64", "type": "container", "files": []any{map[string]any{"format": "rootfs.squashfs", "size": len(squash)}}})
	session := p.open(body)
	p.upload(session, file{format: "disk.qcow2", data: image})
	var missing map[string]any
	if resp := p.call("GET", "/api/images/multi", nil, &missing); resp.StatusCode != 404 {
		t.Errorf("the image shows with a file missing: %d", resp.StatusCode)
	}
	p.upload(sessionAnswer{Files: session.Files[1:]}, file{format: "rootfs.squashfs", data: squash})
	if job := p.await(session); job.State != "succeeded" {
		t.Fatalf("job %+v", job)
	}

	again := vm("multi", "2", []string{"latest"}, file{format: "disk.qcow2", data: image, sha256: digestOf(image)})
	session = p.open(again)
	if session.State != "queued" || session.Files[0].State != "present" || session.Files[0].Tus != nil {
		t.Fatalf("a session of known bytes only: %+v", session)
	}
	if job := p.await(session); job.State != "succeeded" {
		t.Fatalf("job %+v", job)
	}
	var images incus.Products
	p.call("GET", "/streams/v1/images.json", nil, &images)
	if len(images.Products) != 3 {
		t.Errorf("%d products, want two variants of version 1 and one of version 2", len(images.Products))
	}
	var manifest struct {
		Variants []struct {
			Fingerprint string `json:"fingerprint"`
		} `json:"variants"`
	}
	p.call("GET", "/api/images/multi/versions/latest", nil, &manifest)
	if len(manifest.Variants) != 1 || len(manifest.Variants[0].Fingerprint) != 64 {
		t.Errorf("manifest %+v: known bytes need a fingerprint too", manifest)
	}
}

// What was published in private stays so: no later version brings it to light, whatever it says of itself.
func TestAPrivateImageStaysPrivate(t *testing.T) {
	t.Parallel()
	node := startChild(t, nodeFlags(t))
	p, stranger := node.publisher(t), node.stranger(t)
	f := file{format: "rootfs.squashfs", data: []byte("hsqs secret")}
	first := request("secret", "1", "container", []string{"latest"}, f)
	first["visibility"] = "private"
	p.publish(first, f)

	var problem struct{ Code string }
	if resp := p.call("POST", "/api/images", request("secret", "2", "container", nil, f), &problem); resp.StatusCode != 409 || problem.Code != "visibility-differs" {
		t.Errorf("a public version of a private image: %d %s", resp.StatusCode, problem.Code)
	}
	second := request("secret", "2", "container", []string{"latest"}, f)
	delete(second, "visibility")
	session := p.open(second)
	p.upload(session, f)
	if resp := stranger.call("GET", session.StatusURL, nil, &problem); resp.StatusCode != 404 {
		t.Errorf("a stranger sees the session: %d", resp.StatusCode)
	}
	if job := p.await(session); job.State != "succeeded" {
		t.Fatalf("job %+v", job)
	}
	for _, path := range []string{"/api/images/secret", "/api/images/secret/versions/2", "/api/images/secret/versions/1/variants/amd64.container.default/formats/rootfs.squashfs",
		"/cas/sha256/" + digestOf(f.data)[:2] + "/" + digestOf(f.data), "/api/images/secret/history"} {
		if resp := stranger.call("GET", path, nil, &problem); resp.StatusCode != 404 {
			t.Errorf("a stranger gets %d from %s", resp.StatusCode, path)
		}
	}
	var images incus.Products
	stranger.call("GET", "/streams/v1/images.json", nil, &images)
	if len(images.Products) != 0 {
		t.Errorf("the remote lists %d private products", len(images.Products))
	}
	var seen struct {
		Visibility string `json:"visibility"`
	}
	if p.call("GET", "/api/images/secret/versions/latest", nil, &seen); seen.Visibility != "private" {
		t.Errorf("version 2 is %q", seen.Visibility)
	}
}
