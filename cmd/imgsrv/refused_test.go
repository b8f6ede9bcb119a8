package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/imgsrv/imgsrv/internal/testtool"
)

// What is no good is refused with a reason, its job fails, nothing shows, nothing stays.
func TestBadContentFailsItsJobAndLeavesNothing(t *testing.T) {
	t.Parallel()
	good := qcow2Image(t, 200_000)
	backed, external := linkedImages(t)
	flags := nodeFlags(t)
	node := startChild(t, flags)
	p := node.publisher(t)
	for name, test := range map[string]struct {
		file file
		code string
	}{
		"wrong-digest":  {file{"disk.qcow2", good, digestOf([]byte("something else"))}, "wrong-digest"},
		"no-qcow2":      {file{"disk.qcow2", []byte("this is no image"), ""}, "wrong-format"},
		"backing-file":  {file{"disk.qcow2", backed, ""}, "backing-file"},
		"external-data": {file{"disk.qcow2", external, ""}, "external-data-file"},
		"truncated":     {file{"disk.qcow2", good[:len(good)-70_000], ""}, "truncated"},
		"no-squashfs":   {file{"rootfs.squashfs", []byte("not at all"), ""}, "wrong-format"},
	} {
		session := p.open(vm("bad", name, []string{"latest"}, test.file))
		p.upload(session, test.file)
		job := p.await(session)
		if job.State != "failed" || job.Error == nil || job.Error.Code != test.code || !job.Error.Final || job.Error.Detail == "" {
			t.Errorf("%s: job %s, error %+v, want failed with %s", name, job.State, job.Error, test.code)
			continue
		}
		var problem struct{ Code string }
		if resp := p.call("POST", "/api/jobs/"+job.ID+"/retry", nil, &problem); resp.StatusCode != 409 || problem.Code != "job-refused" {
			t.Errorf("%s: retry: %d %s", name, resp.StatusCode, problem.Code)
		}
		// The name is free again.
		second := p.open(vm("bad", name, nil, test.file))
		if resp := p.call("DELETE", second.StatusURL, nil, nil); resp.StatusCode/100 != 2 {
			t.Errorf("%s: abort of a second session: %d", name, resp.StatusCode)
		}
	}
	var problem struct{ Code string }
	if resp := p.call("GET", "/api/images/bad", nil, &problem); resp.StatusCode != 404 {
		t.Errorf("the image shows: %d", resp.StatusCode)
	}
	node.stop(t) // its workers have cleaned up by then
	node = startChild(t, flags)
	node.stop(t)
	for _, folder := range []string{"uploads", "ingress/jobs", "cas/sha256"} {
		entries, err := os.ReadDir(filepath.Join(flags.DataDir, "storage", folder))
		if err != nil || len(entries) != 0 {
			t.Errorf("%s holds %v (%v)", folder, entries, err)
		}
	}
}

// linkedImages are two images that need another file.
func linkedImages(t *testing.T) (backed, external []byte) {
	t.Helper()
	testtool.Need(t, "qemu-img")
	dir := t.TempDir()
	run := func(args ...string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "qemu-img", args...)
		cmd.Dir = dir
		if text, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("qemu-img %v: %v: %s", args, err, text)
		}
	}
	run("create", "-f", "qcow2", "base.qcow2", "1M")
	run("create", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "backed.qcow2")
	run("create", "-f", "qcow2", "-o", "data_file=data.raw", "external.qcow2", "1M")
	read := func(name string) []byte {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	return read("backed.qcow2"), read("external.qcow2")
}
