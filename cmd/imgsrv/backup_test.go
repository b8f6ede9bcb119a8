package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/internal/client"
	"github.com/imgsrv/imgsrv/internal/pgtest"
	"github.com/imgsrv/imgsrv/internal/s3test"
)

// history is what a server exports, up to a sequence: the lines, without the time at which its stream stored them.
func (p *publisher) history(upTo uint64) (lines []string) {
	p.t.Helper()
	var text []byte
	if resp := p.call("GET", "/api/events/export", nil, &text); resp.StatusCode != 200 {
		p.t.Fatalf("export: %d", resp.StatusCode)
	}
	scanner := bufio.NewScanner(bytes.NewReader(text))
	scanner.Buffer(nil, 16<<20)
	for scanner.Scan() {
		var record jetstream.Record
		if err := json.Unmarshal(scanner.Bytes(), &record); err != nil {
			p.t.Fatal(err)
		}
		if uint64(record.Sequence) > upTo {
			break
		}
		record.Time = time.Time{}
		line, err := json.Marshal(record)
		if err != nil {
			p.t.Fatal(err)
		}
		lines = append(lines, string(line))
	}
	return lines
}

// publishedIn are the versions that a history says are published, IMAGE/VERSION.
func publishedIn(lines []string) (versions []string) {
	for _, line := range lines {
		var e struct {
			Headers map[string][]string
			Data    struct{ Image, Version string }
		}
		if json.Unmarshal([]byte(line), &e) == nil && len(e.Headers["ce-type"]) == 1 && e.Headers["ce-type"][0] == "imgsrv.version.published.v1" {
			versions = append(versions, e.Data.Image+"/"+e.Data.Version)
		}
	}
	return versions
}

// wantClean has projections verify say that all is as the events make it.
func wantClean(t *testing.T, url, dataDir string) {
	t.Helper()
	for _, name := range []string{"catalog", "jobs", "streams"} {
		if code, out, errs := command(t.Context(), "projections", "verify", name, "--server", url, "--data-dir", dataDir); code != 0 {
			t.Errorf("projections verify %s: %d, %s%s", name, code, out, errs)
		}
	}
}

// While versions are being published, the server is killed in the middle of a backup; the next one completes it, and what is restored
// is the server as it was at the backup's sequence: catalog, bytes, tokens.
func TestABackupUnderLoadSurvivesAKillAndIsRestored(t *testing.T) {
	t.Parallel()
	flags, place := nodeFlags(t), filepath.Join(t.TempDir(), "backup")
	node := startChild(t, flags, childSpec{KillInBackup: true})
	p := node.publisher(t)
	content := func(version string) []byte {
		return append([]byte("hsqs"), bytes.Repeat([]byte(version+" "), 20_000)...)
	}
	publish := func(p *publisher, version string) {
		f := file{format: "rootfs.squashfs", data: content(version)}
		p.publish(request("debian", version, "container", []string{"latest"}, f), f)
	}
	for i := range 5 {
		publish(p, fmt.Sprintf("1.%d", i))
	}
	var token struct{ Secret, Token string }
	if resp := p.call("POST", "/api/principals", map[string]any{"name": "ci", "roles": []any{map[string]any{"role": "publisher"}}}, &token); resp.StatusCode != 201 {
		t.Fatalf("add a principal: %d", resp.StatusCode)
	}
	if resp := p.call("POST", "/api/tokens", map[string]any{"principal": "ci"}, &token); resp.StatusCode != 201 {
		t.Fatalf("issue a token: %d", resp.StatusCode)
	}

	if resp := p.call("POST", "/api/backups", map[string]any{"place": place}, nil); resp.StatusCode != 202 {
		t.Fatalf("POST /api/backups: %d", resp.StatusCode)
	}
	node.waitEnd(t)
	left, err := filepath.Glob(filepath.Join(place, ".tmp-*"))
	if err != nil || len(left) == 0 {
		t.Errorf("the server was not killed in the middle of a copy: %v, %v", left, err)
	}
	target := filepath.Join(t.TempDir(), "restored")
	if code, _, errs := command(t.Context(), "restore", place, "--data-dir", target); code != 1 || !strings.Contains(errs, "no whole backup") {
		t.Fatalf("restore from what the killed server left: %d, %s", code, errs)
	}

	node = startChild(t, flags)
	p.base = node.HTTPURL
	stop, began := make(chan struct{}), make(chan struct{})
	var load sync.WaitGroup
	load.Go(func() {
		for i := 0; ; i++ {
			publish(p, fmt.Sprintf("2.%d", i))
			if i == 0 {
				close(began)
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	})
	half := p.open(request("debian", "half", "container", nil, file{format: "rootfs.squashfs", data: make([]byte, 1000)}))
	p.patch(p.create(half, 0, 1000), 0, make([]byte, 100))
	<-began
	var done client.Backup
	for range 2 { // the second is incremental
		code, out, errs := command(t.Context(), "backup", place, "--server", node.HTTPURL, "--data-dir", flags.DataDir, "--quiet", "--json")
		if code != 0 {
			t.Fatalf("backup: %d, %s", code, errs)
		}
		previous := done.Sequence
		done = decode[client.Backup](t, out)
		if done.Previous != previous || previous > 0 && done.NewBlobs.Count >= done.Blobs.Count {
			t.Errorf("backup after that of event %d: %+v", previous, done)
		}
	}
	close(stop)
	load.Wait()
	want := p.history(done.Sequence)

	if code, out, errs := command(t.Context(), "restore", place, "--data-dir", target, "--quiet"); code != 0 || !strings.Contains(out, "admin token") || !strings.Contains(out, "sessions") {
		t.Fatalf("restore: %d, %s%s", code, out, errs)
	}
	if code, _, errs := command(t.Context(), "restore", place, "--data-dir", target, "--quiet"); code != 1 || !strings.Contains(errs, "isn't empty") {
		t.Errorf("restore over what was restored: %d, %s", code, errs)
	}
	restored := flags
	restored.DataDir = target // with the PostgreSQL of the old server, which it shares no stream with
	node.stop(t)
	second := startChild(t, restored)
	q := second.publisher(t)
	if got := q.history(done.Sequence); strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("the restored server has %d events up to %d, the old one %d, or others", len(got), done.Sequence, len(want))
	}
	versions := publishedIn(want)
	if len(versions) < 6 {
		t.Errorf("only %v were published at the backup", versions)
	}
	// A server is ready before its projections are: the tables were another stream's, and are derived anew.
	if resp := q.call("GET", "/api/images", nil, nil, "Imgsrv-Min-Sequence", fmt.Sprint(done.Sequence)); resp.StatusCode != 200 {
		t.Fatalf("the projections don't come to event %d: %d", done.Sequence, resp.StatusCode)
	}
	for _, v := range versions {
		var got []byte
		version := strings.TrimPrefix(v, "debian/")
		resp := q.call("GET", "/api/images/debian/versions/"+version+"/variants/amd64.container.default/formats/rootfs.squashfs", nil, &got)
		if resp.StatusCode != 200 || !bytes.Equal(got, content(version)) {
			t.Errorf("download of %s: %d, %d bytes", v, resp.StatusCode, len(got))
		}
	}
	var session struct {
		State, Reason string
	}
	if resp := q.call("GET", "/api/uploads/"+half.ID, nil, &session); resp.StatusCode != 200 || session.State != "aborted" {
		t.Errorf("the session that was open: %d, %+v", resp.StatusCode, session)
	}
	// The old server's tokens are hashes in events; its admin.token is a file of its own, and the new server has another.
	ci := &publisher{t: t, base: second.HTTPURL, token: token.Token}
	publish(ci, "half") // whose name is free
	if second.Token == node.Token {
		t.Error("the restored server has the old one's admin.token")
	}
	wantClean(t, second.HTTPURL, target)
	second.stop(t)
}

// Not parallel: credentials for S3 are found in the environment, as its SDK documents it.
func TestABackupInABucketIsRestored(t *testing.T) {
	s3 := s3test.Start(t)
	for _, entry := range s3.Env {
		name, value, _ := strings.Cut(entry, "=")
		t.Setenv(name, value)
	}
	flags := nodeFlags(t)
	node := startChild(t, flags)
	p := node.publisher(t)
	f := file{format: "rootfs.squashfs", data: append([]byte("hsqs"), bytes.Repeat([]byte("bucket "), 3<<20)...)} // 21 MiB: in parts
	p.publish(request("debian", "1", "container", []string{"latest"}, f), f)
	place := "s3://" + s3.Bucket + "/imgsrv"
	if code, out, errs := command(t.Context(), "backup", place, "--s3-endpoint", s3.Endpoint, "--with-secrets", "--server", node.HTTPURL, "--data-dir", flags.DataDir, "--quiet"); code != 0 || !strings.Contains(out, place+" is backed up") {
		t.Fatalf("backup: %d, %s%s", code, out, errs)
	}
	key, err := os.ReadFile(filepath.Join(flags.DataDir, "signing.key"))
	if err != nil {
		t.Fatal(err)
	}
	node.stop(t)

	target := t.TempDir()
	if code, out, errs := command(t.Context(), "restore", place, "--s3-endpoint", s3.Endpoint, "--data-dir", target, "--quiet"); code != 0 || strings.Contains(out, "has no keys") {
		t.Fatalf("restore: %d, %s%s", code, out, errs)
	}
	if got, err := os.ReadFile(filepath.Join(target, "signing.key")); err != nil || !bytes.Equal(got, key) {
		t.Errorf("the signing key didn't come along (%v)", err)
	}
	flags.DataDir, flags.PostgresURL = target, pgtest.URL(t)
	node = startChild(t, flags)
	awaitVersion(t, node.publisher(t), "debian", "1") // a server is ready before its projections are
	resp, err := http.Get(node.HTTPURL + "/api/images/debian/versions/latest/variants/amd64.container.default/formats/rootfs.squashfs")
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(resp.Body)
	if err = errors.Join(err, resp.Body.Close()); err != nil || !bytes.Equal(got, f.data) {
		t.Errorf("download: %d bytes, %v", len(got), err)
	}
	wantClean(t, node.HTTPURL, target)
	node.stop(t)
}
