package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/klauspost/compress/zstd"

	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/internal/pgtest"
	"github.com/imgsrv/imgsrv/internal/testtool"
)

// releases holds a data folder as each release has written it. One that is there never changes.
const releases = "testdata/releases"

// fixtureVariable names the release whose data folder TestMakeReleaseFixture makes: task fixture RELEASE=v0.2.0.
const fixtureVariable = "IMGSRV_TEST_MAKE_FIXTURE"

// release is what a data folder has, beside the folder itself in its archive.
type release struct {
	Files   map[string]string // path of a download -> SHA-256
	Gone    []string          // paths of a withdrawn version
	Secret  []string          // paths that only who has a token may read, all among Files
	Token   string            // a publisher's
	Revoked string            // a token that isn't good any more
	Webhook string            // id
	Key     string            // that webhook's secret
	Half    waiting           // a session with one file, of which a part has arrived
	Pair    waiting           // a session with two files, of which the first has arrived
}

// waiting is a session that waits for bytes.
type waiting struct {
	Session string
	File    string // path of its tus upload
	Offset  int    // bytes that have arrived
	Size    int
	Seed    string // of the file's content
	Path    string // of the download, once it is published
}

// filler is so many bytes that follow from a seed, and don't compress to nothing.
func filler(seed string, n int) []byte {
	out := []byte("hsqs")
	for sum := sha256.Sum256([]byte(seed)); len(out) < n; sum = sha256.Sum256(sum[:]) {
		out = append(out, hex.EncodeToString(sum[:])...)
	}
	return out[:n]
}

func formatPath(image, version, variant, format string) string {
	return "/api/images/" + image + "/versions/" + version + "/variants/" + variant + "/formats/" + format
}

// A data folder that an earlier release has written starts with this program: its events, images, bytes and tokens are there, what was
// half done goes on, and its projections, written by that release too, are what this one would make of the events.
func TestADataFolderOfEachReleaseStarts(t *testing.T) {
	t.Parallel()
	found, err := filepath.Glob(filepath.Join(releases, "*.tar.zst"))
	if err != nil || len(found) == 0 {
		t.Fatalf("no data folder of any release in %s (%v)", releases, err)
	}
	for _, archive := range found {
		for _, projections := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, projections %v", strings.TrimSuffix(filepath.Base(archive), ".tar.zst"), projections), func(t *testing.T) {
				t.Parallel()
				startRelease(t, archive, projections)
			})
		}
	}
}

func startRelease(t *testing.T, archive string, withProjections bool) {
	dir := t.TempDir()
	unpack(t, archive, dir)
	var r release
	if err := json.Unmarshal(readFile(t, filepath.Join(dir, "release.json")), &r); err != nil {
		t.Fatal(err)
	}
	flags := ServerFlags{Listen: "127.0.0.1:0", TLSListen: "127.0.0.1:0", DataDir: filepath.Join(dir, "data"), PostgresURL: pgtest.URL(t), MetricsPath: "/metrics",
		LogFormat: "text", Verbosity: "error", WebhookAllow: []string{"127.0.0.1"}}
	if withProjections {
		load(t, flags.PostgresURL, readFile(t, filepath.Join(dir, "projections.sql")))
	}
	node := startChild(t, flags)
	admin, ci, stranger := node.publisher(t), &publisher{t: t, base: node.HTTPURL, token: r.Token}, node.stranger(t)

	want := parseRecords(t, readFile(t, filepath.Join(dir, "export.jsonl")))
	var export []byte
	admin.call("GET", "/api/events/export", nil, &export)
	if diff := cmp.Diff(want, parseRecords(t, export)[:len(want)]); diff != "" {
		t.Errorf("events (-then +now):\n%s", diff)
	}
	secret := map[string]bool{}
	for _, path := range r.Secret {
		secret[path] = true
	}
	sequence := fmt.Sprint(len(want))
	for path, sum := range r.Files {
		var got []byte
		if resp := admin.call("GET", path, nil, &got, "Imgsrv-Min-Sequence", sequence); resp.StatusCode != 200 || digestOf(got) != sum {
			t.Errorf("%s: %d, %d bytes of another digest", path, resp.StatusCode, len(got))
		}
		status := 200
		if secret[path] {
			status = 404
		}
		if resp := stranger.call("GET", path, nil, &got); resp.StatusCode != status {
			t.Errorf("a stranger gets %d for %s, want %d", resp.StatusCode, path, status)
		}
	}
	for _, path := range r.Gone {
		if resp := admin.call("GET", path, nil, nil); resp.StatusCode != 410 {
			t.Errorf("%s: %d, want 410", path, resp.StatusCode)
		}
	}
	if resp := admin.call("GET", "/api/images", nil, nil, "Authorization", "Bearer "+r.Revoked); resp.StatusCode != 401 {
		t.Errorf("a token that was revoked: %d", resp.StatusCode)
	}
	var hook struct{ Secret string }
	if resp := admin.call("GET", "/api/webhooks/"+r.Webhook+"/secret", nil, &hook); resp.StatusCode != 200 || hook.Secret != r.Key {
		t.Errorf("the webhook's secret: %d, the same %v", resp.StatusCode, hook.Secret == r.Key)
	}

	for what, w := range map[string]waiting{"half": r.Half, "pair": r.Pair} {
		data := filler(w.Seed, w.Size)
		if offset := ci.offset(node.HTTPURL + w.File); offset != w.Offset {
			t.Errorf("%s: %d bytes are there, want %d", what, offset, w.Offset)
		}
		if resp := ci.patch(node.HTTPURL+w.File, w.Offset, data[w.Offset:]); resp.StatusCode != 204 {
			t.Fatalf("%s: PATCH: %d", what, resp.StatusCode)
		}
		if job := ci.await(sessionAnswer{ID: w.Session, StatusURL: "/api/uploads/" + w.Session}); job.State != "succeeded" {
			t.Fatalf("%s: job %+v", what, job)
		}
		var got []byte
		if resp := ci.call("GET", w.Path, nil, &got); resp.StatusCode != 200 || !bytes.Equal(got, data) {
			t.Errorf("%s: download: %d, %d bytes", what, resp.StatusCode, len(got))
		}
	}
	f := file{format: "rootfs.squashfs", data: filler("new", 500)}
	ci.publish(request("debian", "9", "container", []string{"latest"}, f), f)
	wantClean(t, node.HTTPURL, flags.DataDir)
	node.stop(t)
}

// The maker of the archives: it publishes with the program as it is.
func TestMakeReleaseFixture(t *testing.T) {
	name := os.Getenv(fixtureVariable)
	if name == "" {
		t.Skip("a data folder is made for a release: task fixture RELEASE=v0.2.0")
	}
	out := filepath.Join(releases, name+".tar.zst")
	if _, err := os.Stat(out); err == nil {
		t.Fatalf("%s is there, and what a release wrote never changes", out)
	}
	testtool.Need(t, "pg_dump")
	flags := nodeFlags(t)
	flags.WebhookAllow = []string{"127.0.0.1"}
	node := startChild(t, flags)
	admin := node.publisher(t)
	r := release{Files: map[string]string{}}

	issue := func(body map[string]any) (id, token string) {
		var issued struct{ ID, Token string }
		if resp := admin.call("POST", "/api/tokens", body, &issued); resp.StatusCode != 201 {
			t.Fatalf("POST /api/tokens: %d", resp.StatusCode)
		}
		return issued.ID, issued.Token
	}
	if resp := admin.call("POST", "/api/principals", map[string]any{"name": "ci", "roles": []any{map[string]any{"role": "publisher"}}}, nil); resp.StatusCode != 201 {
		t.Fatalf("POST /api/principals: %d", resp.StatusCode)
	}
	_, r.Token = issue(map[string]any{"principal": "ci"})
	revoked, token := issue(map[string]any{"principal": "ci", "name": "old"})
	if r.Revoked = token; admin.call("DELETE", "/api/tokens/"+revoked, nil, nil).StatusCode >= 300 {
		t.Fatal("the token is not revoked")
	}
	var hook struct{ ID, Secret string }
	if resp := admin.call("POST", "/api/webhooks", map[string]any{"url": "http://127.0.0.1:9/hook", "types": []string{"imgsrv.version.withdrawn.*"}}, &hook); resp.StatusCode != 201 {
		t.Fatalf("POST /api/webhooks: %d", resp.StatusCode)
	}
	r.Webhook, r.Key = hook.ID, hook.Secret
	if resp := admin.call("POST", "/api/subscribers", map[string]any{"name": "watcher", "all": true}, nil); resp.StatusCode != 201 {
		t.Fatalf("POST /api/subscribers: %d", resp.StatusCode)
	}

	ci := &publisher{t: t, base: node.HTTPURL, token: r.Token}
	const container, machine = "amd64.container.default", "amd64.virtual-machine.default"
	for _, version := range []string{"1.0", "1.1", "2.0"} {
		f := file{format: "rootfs.squashfs", data: filler("debian "+version, 9000)}
		notes := file{format: "notes.md", data: []byte("Notes of " + version)}
		body := request("debian", version, "container", []string{"latest"}, f)
		body["attachments"] = []any{map[string]any{"name": notes.format, "size": len(notes.data)}}
		ci.publish(body, f, notes)
		r.Files[formatPath("debian", version, container, f.format)] = digestOf(f.data)
		r.Files["/api/images/debian/versions/"+version+"/attachments/notes.md"] = digestOf(notes.data)
	}
	disk := file{format: "disk.qcow2", data: demoImage()}
	ci.publish(vm("machine", "1", []string{"latest", "stable"}, disk), disk)
	r.Files[formatPath("machine", "stable", machine, disk.format)] = digestOf(disk.data)
	private := file{format: "rootfs.squashfs", data: filler("private", 2000)}
	body := request("inner", "1", "container", []string{"latest"}, private)
	body["visibility"] = "private"
	ci.publish(body, private)
	r.Secret = []string{formatPath("inner", "latest", container, private.format)}
	r.Files[r.Secret[0]] = digestOf(private.data)

	put := func(path string, body any) {
		if resp := ci.call("PUT", path, body, nil); resp.StatusCode >= 300 {
			t.Fatalf("PUT %s: %d", path, resp.StatusCode)
		}
	}
	put("/api/images/debian/aliases/latest", map[string]any{"version": "1.1"})
	put("/api/images/debian/aliases/stable", map[string]any{"version": "1.0"})
	put("/api/images/debian/policy", map[string]any{"deltas": 1, "retention": map[string]any{"keep_last": 10}})
	r.Files[formatPath("debian", "latest", container, "rootfs.squashfs")] = r.Files[formatPath("debian", "1.1", container, "rootfs.squashfs")]
	r.Files[formatPath("debian", "stable", container, "rootfs.squashfs")] = r.Files[formatPath("debian", "1.0", container, "rootfs.squashfs")]
	if resp := ci.call("POST", "/api/images/debian/versions/2.0/withdraw", map[string]any{"reason": "it doesn't boot"}, nil); resp.StatusCode >= 300 {
		t.Fatalf("withdraw: %d", resp.StatusCode)
	}
	r.Gone = []string{formatPath("debian", "2.0", container, "rootfs.squashfs")}
	delete(r.Files, r.Gone[0])
	delete(r.Files, "/api/images/debian/versions/2.0/attachments/notes.md")

	wait := func(seed string, session sessionAnswer, n, offset, size int, path string) waiting {
		url := ci.create(session, n, size)
		if resp := ci.patch(url, 0, filler(seed, size)[:offset]); resp.StatusCode != 204 {
			t.Fatalf("%s: PATCH: %d", seed, resp.StatusCode)
		}
		return waiting{Session: session.ID, File: strings.TrimPrefix(url, node.HTTPURL), Offset: offset, Size: size, Seed: seed, Path: path}
	}
	half := file{format: "rootfs.squashfs", data: filler("half", 60_000), sha256: digestOf(filler("half", 60_000))}
	r.Half = wait("half", ci.open(request("debian", "half", "container", []string{"latest"}, half)), 0, 40_000, 60_000, formatPath("debian", "half", container, half.format))
	pair := ci.open(request("debian", "pair", "container", nil, file{format: "rootfs.squashfs", data: filler("first", 3000)}, file{format: "root.img", data: filler("pair", 3000)}))
	if resp := ci.patch(ci.create(pair, 0, 3000), 0, filler("first", 3000)); resp.StatusCode != 204 {
		t.Fatalf("first of the pair: %d", resp.StatusCode)
	}
	r.Pair = wait("pair", pair, 1, 1000, 3000, formatPath("debian", "pair", container, "root.img"))
	var export []byte
	resp := admin.call("GET", "/api/events/export", nil, &export)
	admin.call("GET", "/api/jobs", nil, nil, "Imgsrv-Min-Sequence", resp.Header.Get("Imgsrv-Sequence")) // the projections have come so far
	wantClean(t, node.HTTPURL, flags.DataDir)
	node.stop(t)

	dump, err := exec.CommandContext(t.Context(), "pg_dump", "--inserts", "--no-owner", "--no-privileges", "-n", "catalog", "-n", "jobs", "-n", "streams", flags.PostgresURL).Output()
	if err != nil {
		t.Fatalf("pg_dump: %v", err)
	}
	about, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	pack(t, out, flags.DataDir, map[string][]byte{"release.json": about, "export.jsonl": export, "projections.sql": dump})
}

// load runs what pg_dump has written, which is the same for any release of PostgreSQL but for some lines.
func load(t *testing.T, url string, dump []byte) {
	t.Helper()
	var sql []string
	for line := range strings.Lines(string(dump)) {
		if !strings.HasPrefix(line, `\`) && !strings.HasPrefix(line, "SET ") && !strings.HasPrefix(line, "--") {
			sql = append(sql, line)
		}
	}
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	_, err = conn.PgConn().Exec(t.Context(), strings.Join(sql, "")).ReadAll()
	if err = errors.Join(err, conn.Close(t.Context())); err != nil {
		t.Fatalf("load the projections: %v", err)
	}
}

func parseRecords(t *testing.T, export []byte) (records []jetstream.Record) {
	t.Helper()
	for line := range bytes.Lines(export) {
		var record jetstream.Record
		if err := json.Unmarshal(line, &record); err != nil {
			t.Fatal(err)
		}
		records = append(records, record)
	}
	return records
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// pack archives a data folder as data/, without what belongs to a machine, and files beside it.
func pack(t *testing.T, out, dataDir string, beside map[string][]byte) {
	t.Helper()
	var packed bytes.Buffer
	zip, err := zstd.NewWriter(&packed, zstd.WithEncoderLevel(zstd.SpeedBestCompression))
	if err != nil {
		t.Fatal(err)
	}
	archive := tar.NewWriter(zip)
	add := func(name string, mode fs.FileMode, data []byte) error {
		header := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: int64(mode.Perm()), Size: int64(len(data))}
		if mode.IsDir() {
			header.Typeflag = tar.TypeDir
		}
		err := archive.WriteHeader(header)
		if err == nil {
			_, err = archive.Write(data)
		}
		return err
	}
	err = filepath.WalkDir(dataDir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dataDir, path)
		if err != nil {
			return err
		}
		if rel == "tls" || rel == "postgres" {
			return fs.SkipDir
		}
		info, err := entry.Info()
		if err != nil || rel == "lock" {
			return err
		}
		var data []byte
		if !entry.IsDir() {
			if data, err = os.ReadFile(path); err != nil {
				return err
			}
		}
		return add(filepath.Join("data", rel), info.Mode(), data)
	})
	for name, data := range beside {
		err = errors.Join(err, add(name, 0o600, data))
	}
	if err = errors.Join(err, archive.Close(), zip.Close(), os.MkdirAll(filepath.Dir(out), 0o755), os.WriteFile(out, packed.Bytes(), 0o644)); err != nil {
		t.Fatal(err)
	}
	t.Logf("%s has %d bytes", out, packed.Len())
}

// unpack makes files of now: what waits for bytes would else be taken for abandoned.
func unpack(t *testing.T, path, dir string) {
	t.Helper()
	zip, err := zstd.NewReader(bytes.NewReader(readFile(t, path)))
	if err != nil {
		t.Fatal(err)
	}
	defer zip.Close()
	archive := tar.NewReader(zip)
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(dir, filepath.FromSlash(header.Name))
		mode := fs.FileMode(header.Mode).Perm()
		if header.Typeflag == tar.TypeDir {
			err = os.MkdirAll(to, mode|0o700)
		} else {
			var data []byte
			if data, err = io.ReadAll(archive); err == nil {
				err = os.WriteFile(to, data, mode)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}
