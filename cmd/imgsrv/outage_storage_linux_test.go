package main

import (
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A storage that is full or read-only takes no more bytes and says so, keeps what arrived, serves what is there, and goes on
// when it can.
// Not parallel: a child process that another test starts would hold the mount busy until its exec.
func TestTheStorageTakesNoBytes(t *testing.T) {
	root := t.TempDir()
	if err := unix.Mount("tmpfs", root, "tmpfs", 0, "size=16m"); err != nil {
		t.Skipf("needs the right to mount a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(root, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	flags := nodeFlags(t)
	flags.StorageDir, flags.TLSListen, flags.StorageReserve = root, "", 0
	node := startChild(t, flags)
	p := node.publisher(t)
	there := file{format: "rootfs.squashfs", data: append([]byte("hsqs"), make([]byte, 100_000)...)}
	p.publish(request("debian", "0", "container", []string{"latest"}, there), there)

	ballast := filepath.Join(root, "ballast")
	remount := func(flags uintptr) func() {
		return func() {
			t.Helper()
			if err := unix.Mount("", root, "", unix.MS_REMOUNT|flags, "size=16m"); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, trouble := range []struct {
		name       string
		begin, end func()
		status     int
	}{
		{"full", func() { _ = os.WriteFile(ballast, make([]byte, 32<<20), 0o600) }, func() {
			if err := os.Remove(ballast); err != nil {
				t.Fatal(err)
			}
		}, http.StatusInsufficientStorage},
		{"read-only", remount(unix.MS_RDONLY), remount(0), http.StatusServiceUnavailable},
	} {
		data := append([]byte("hsqs"), make([]byte, 1_000_000)...)
		session := p.open(request("debian", trouble.name, "container", []string{"latest"}, file{format: "rootfs.squashfs", data: data}))
		url := p.create(session, 0, len(data))
		if resp := p.patch(url, 0, data[:500_000]); resp.StatusCode != 204 {
			t.Fatalf("%s: first PATCH: %d", trouble.name, resp.StatusCode)
		}
		trouble.begin()
		resp := p.patch(url, 500_000, data[500_000:])
		if resp.StatusCode != trouble.status || trouble.status == 503 && resp.Header.Get("Retry-After") == "" {
			t.Errorf("%s: PATCH: %d, Retry-After %q, want %d", trouble.name, resp.StatusCode, resp.Header.Get("Retry-After"), trouble.status)
		}
		if at := p.offset(url); at < 500_000 || at == len(data) {
			t.Errorf("%s: offset %d, acknowledged were 500000", trouble.name, at)
		}
		var got []byte
		for _, path := range []string{"/cas/sha256/" + digestOf(there.data)[:2] + "/" + digestOf(there.data), "/api/images/debian/versions/0/variants/amd64.container.default/formats/rootfs.squashfs"} {
			if resp := p.call("GET", path, nil, &got); resp.StatusCode != 200 || digestOf(got) != digestOf(there.data) {
				t.Errorf("%s: %s: %d with %d bytes", trouble.name, path, resp.StatusCode, len(got))
			}
		}
		var ready struct {
			Storage struct {
				Writable bool
				Error    string
			}
		}
		if resp := p.call("GET", "/readyz", nil, &ready); resp.StatusCode != 503 || ready.Storage.Writable || ready.Storage.Error == "" {
			t.Errorf("%s: /readyz says %d, %+v", trouble.name, resp.StatusCode, ready)
		}
		trouble.end()
		at := p.offset(url)
		if resp := p.patch(url, at, data[at:]); resp.StatusCode != 204 {
			t.Fatalf("%s: PATCH afterwards: %d", trouble.name, resp.StatusCode)
		}
		if job := p.await(session); job.State != "succeeded" {
			t.Fatalf("%s: job %+v", trouble.name, job)
		}
	}
	node.stop(t)
}

// The file system of the events is full: what would need an event is put off, and goes on when there is room.
// Not parallel, as above.
func TestTheEventsHaveNoRoom(t *testing.T) {
	root := t.TempDir()
	if err := unix.Mount("tmpfs", root, "tmpfs", 0, "size=24m"); err != nil {
		t.Skipf("needs the right to mount a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(root, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	flags := nodeFlags(t)
	flags.DataDir, flags.StorageDir, flags.TLSListen = root, t.TempDir(), ""
	node := startChild(t, flags)
	p := node.publisher(t)
	f := file{format: "rootfs.squashfs", data: []byte("hsqs 1")}
	p.publish(request("debian", "0", "container", nil, f), f)
	ballast := filepath.Join(root, "ballast")
	_ = os.WriteFile(ballast, make([]byte, 64<<20), 0o600) // as much as there is room for
	if resp := p.call("POST", "/api/images", request("debian", "1", "container", nil, f), nil); resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" {
		t.Errorf("a session without room for its event: %d, Retry-After %q, want 503", resp.StatusCode, resp.Header.Get("Retry-After"))
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	p.publish(request("debian", "1", "container", nil, f), f)
	node.stop(t)
}
