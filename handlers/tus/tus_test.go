package tus_test

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/access"
	"github.com/imgsrv/imgsrv/handlers/tus"
	"github.com/imgsrv/imgsrv/internal/natstest"
	"github.com/imgsrv/imgsrv/store/blob"
)

const token = "imgsrv_test"

// intake is a handler with the parts behind it.
type intake struct {
	t       testing.TB
	root    string
	log     *jetstream.Log
	store   *blob.Store
	handler *tus.Handler
	server  *httptest.Server
	now     time.Time
}

func newIntake(t testing.TB, change func(*tus.Config)) *intake {
	t.Helper()
	root := t.TempDir()
	store, err := blob.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	in := &intake{t: t, root: root, log: natstest.Log(t), store: store, now: time.Now()}
	in.restart(change)
	return in
}

// restart makes a new handler over the same bytes and facts, as a new process does.
func (in *intake) restart(change func(*tus.Config)) {
	cfg := tus.Config{Log: in.log, Store: in.store, Guard: access.NewGuard(token), Logger: slog.New(slog.DiscardHandler), Clock: func() time.Time { return in.now }}
	if change != nil {
		change(&cfg)
	}
	var err error
	if in.handler, err = tus.New(cfg); err != nil {
		in.t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle(tus.BasePath, in.handler)
	in.server = httptest.NewServer(mux)
	in.t.Cleanup(in.server.Close)
}

const variant = "amd64.virtual-machine.default"

// session opens an upload session for files of one variant.
func (in *intake) session(made []byte, files ...events.UploadFile) string {
	in.t.Helper()
	id := uuid.Must(uuid.NewV7()).String()
	for i := range files {
		files[i].State = events.FilePending
	}
	v := events.UploadVariant{Variant: events.Variant{Architecture: "amd64", Type: events.VirtualMachine, Flavour: "default"}, Files: files}
	if made != nil {
		v.Metadata = &events.MadeFile{Format: events.FormatMetadata, Digest: "sha256:" + events.Digest(sum(made)), Data: made}
	}
	changes, err := events.Initiate(events.InitiateUpload{IsArchitecture: func(string) bool { return false }, Session: events.Upload{
		ID: id, Image: "image", Version: id, Visibility: events.Public, Variants: []events.UploadVariant{v}, InitiatedAt: in.now}})
	if err != nil {
		in.t.Fatal(err)
	}
	if err := in.store.CreateSession(id); err != nil {
		in.t.Fatal(err)
	}
	if _, err := in.log.Append(in.t.Context(), jetstream.Cause{}, changes...); err != nil {
		in.t.Fatal(err)
	}
	return id
}

// file reads a declared file as the log has it.
func (in *intake) file(session, format string) events.UploadFile {
	in.t.Helper()
	upload, err := in.log.Upload(in.t.Context(), session)
	if err != nil {
		in.t.Fatal(err)
	}
	f, ok := upload.State.File(variant, format)
	if !ok {
		in.t.Fatalf("no file %s", format)
	}
	return *f
}

type answer struct {
	status int
	header http.Header
	code   string // of a problem
	detail string
}

// do sends a request; header pairs follow the body. It fails the test when an error is no problem document.
func (in *intake) do(method, url string, body io.Reader, header ...string) answer {
	in.t.Helper()
	r, err := http.NewRequestWithContext(in.t.Context(), method, url, body)
	if err != nil {
		in.t.Fatal(err)
	}
	r.Header.Set("Tus-Resumable", "1.0.0")
	r.Header.Set("Authorization", "Bearer "+token)
	for i := 0; i < len(header); i += 2 {
		if header[i+1] == "" {
			r.Header.Del(header[i])
			continue
		}
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		in.t.Fatal(err)
	}
	defer resp.Body.Close() //nolint:errcheck // only read
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		in.t.Fatal(err)
	}
	a := answer{status: resp.StatusCode, header: resp.Header}
	if resp.StatusCode >= 400 && method != http.MethodHead {
		var p struct{ Code, Detail, Type string }
		if err := json.Unmarshal(data, &p); err != nil || p.Code == "" || p.Type == "" || resp.Header.Get("Content-Type") != "application/problem+json" {
			in.t.Fatalf("%s %s: %d with %q (%s), want a problem document", method, url, resp.StatusCode, data, resp.Header.Get("Content-Type"))
		}
		a.code, a.detail = p.Code, p.Detail
	}
	return a
}

func (in *intake) create(session, format string, size int, header ...string) answer {
	in.t.Helper()
	return in.do("POST", in.server.URL+tus.BasePath, nil, append([]string{"Upload-Length", strconv.Itoa(size), "Upload-Metadata", tus.UploadMetadata(session, variant, format)}, header...)...)
}

func (in *intake) patch(url string, offset int, data []byte) answer {
	in.t.Helper()
	return in.do("PATCH", url, bytes.NewReader(data), "Content-Type", "application/offset+octet-stream", "Upload-Offset", strconv.Itoa(offset))
}

// url is the location of an upload on the server as it runs now.
func (in *intake) url(session string, n int) string {
	return in.server.URL + tus.UploadURLPath(session, n)
}

func (in *intake) offset(url string) int {
	in.t.Helper()
	a := in.do("HEAD", url, nil)
	n, err := strconv.Atoi(a.header.Get("Upload-Offset"))
	if a.status != 200 || err != nil {
		in.t.Fatalf("HEAD: %d, Upload-Offset %q", a.status, a.header.Get("Upload-Offset"))
	}
	return n
}

func sum(parts ...[]byte) string {
	h := sha256.New()
	for _, p := range parts {
		h.Write(p)
	}
	return hex.EncodeToString(h.Sum(nil))
}

func randomBytes(n int) []byte {
	data := make([]byte, n)
	_, _ = rand.Read(data) // never fails
	return data
}

func TestAnUploadSurvivesBrokenConnectionsAndRestarts(t *testing.T) {
	t.Parallel()
	in := newIntake(t, nil)
	metadata, disk := []byte("metadata tarball"), randomBytes(1_000_003)
	session := in.session(metadata, events.UploadFile{Format: "disk.qcow2", Size: int64(len(disk))})
	created := in.create(session, "disk.qcow2", len(disk))
	if created.status != 201 || created.header.Get("Location") != in.url(session, 0) {
		t.Fatalf("created %d at %q", created.status, created.header.Get("Location"))
	}
	if _, err := http.ParseTime(created.header.Get("Upload-Expires")); err != nil {
		t.Errorf("Upload-Expires: %v", err)
	}
	if a := in.patch(in.url(session, 0), 0, disk[:300_000]); a.status != 204 || a.header.Get("Upload-Offset") != "300000" {
		t.Fatalf("first PATCH: %d, offset %s", a.status, a.header.Get("Upload-Offset"))
	}
	// The line breaks in the middle of a PATCH.
	conn := in.begunPatch(session, 300_000, len(disk)-300_000)
	if _, err := conn.Write(disk[300_000:500_000]); err != nil {
		t.Fatal(err)
	}
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}

	offset := in.offset(in.url(session, 0)) // HEAD waits until the broken request has saved what came
	if offset < 300_000 || offset > 500_000 {
		t.Fatalf("offset %d after the break", offset)
	}
	in.restart(nil)
	if got := in.offset(in.url(session, 0)); got != offset {
		t.Fatalf("offset %d after a restart, %d before", got, offset)
	}
	if a := in.patch(in.url(session, 0), offset, disk[offset:]); a.status != 204 || a.header.Get("Upload-Offset") != strconv.Itoa(len(disk)) {
		t.Fatalf("last PATCH: %d %s, offset %s", a.status, a.detail, a.header.Get("Upload-Offset"))
	}
	f := in.file(session, "disk.qcow2")
	if f.State != events.FileComplete || f.Digest.Hex() != sum(disk) || f.Combined.Hex() != sum(metadata, disk) {
		t.Errorf("file %+v, want complete with both digests", f)
	}
	upload, err := in.log.Upload(t.Context(), session)
	if err != nil || !upload.State.Complete {
		t.Errorf("session complete: %v (%v)", upload.State.Complete, err)
	}
	file, err := in.store.OpenIngress(upload.State.JobID, f.Ingress)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close() //nolint:errcheck // only read
	if data, err := io.ReadAll(file); err != nil || !bytes.Equal(data, disk) {
		t.Errorf("ingress has %d bytes (%v)", len(data), err)
	}
	// A client that lost the last answer asks, and learns that all is there.
	if got := in.offset(in.url(session, 0)); got != len(disk) {
		t.Errorf("offset %d after completion, want %d", got, len(disk))
	}
	if a := in.patch(in.url(session, 0), len(disk), nil); a.status != 204 {
		t.Errorf("empty PATCH after completion: %d", a.status)
	}
}

// A client that comes back on a new connection isn't kept waiting by its old request, which may hang.
func TestANewRequestEndsTheOldOneOfItsUpload(t *testing.T) {
	t.Parallel()
	in := newIntake(t, nil)
	session := in.session(nil, events.UploadFile{Format: "a", Size: 10})
	in.create(session, "a", 10)
	pipeR, pipeW := io.Pipe()
	r, err := http.NewRequestWithContext(t.Context(), "PATCH", in.url(session, 0), pipeR)
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{"Tus-Resumable": "1.0.0", "Authorization": "Bearer " + token, "Content-Type": "application/offset+octet-stream", "Upload-Offset": "0"} {
		r.Header.Set(name, value)
	}
	old := make(chan int, 1)
	go func() {
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			old <- 0
			return
		}
		_ = resp.Body.Close()
		old <- resp.StatusCode
	}()
	if _, err := pipeW.Write([]byte("0123")); err != nil { // and then the old request hangs
		t.Fatal(err)
	}
	status := 0
	for status == 0 { // a look that comes before the old request has the lock ends nothing
		in.offset(in.url(session, 0))
		select {
		case status = <-old:
		case <-time.After(time.Millisecond):
		}
	}
	if status != 423 {
		t.Errorf("the old request was answered %d, want 423", status)
	}
	offset := in.offset(in.url(session, 0))
	if a := in.patch(in.url(session, 0), offset, []byte("0123456789")[offset:]); a.status != 204 {
		t.Errorf("going on at %d: %d %s", offset, a.status, a.detail)
	}
	_ = pipeW.Close()
}

// Who publishes other images finds nothing of an upload, whatever is done to it.
func TestAnUploadIsNothingToWhoMayNotPublishItsImage(t *testing.T) {
	t.Parallel()
	in := newIntake(t, nil)
	tokens := map[string]string{}
	for name, images := range map[string]string{"publishes-it": "im*", "publishes-others": "other-*"} {
		issued, hash := access.NewToken()
		tokens[name] = "Bearer " + issued
		principal := events.Principal{Name: name, Kind: events.Service, Grants: []events.Grant{{Role: events.RolePublisher, Images: images}}}
		_, err := in.log.Append(t.Context(), jetstream.Cause{Actor: "admin"}, events.Change{Fact: events.PrincipalCreated{Principal: principal}})
		if err == nil {
			_, err = in.log.Append(t.Context(), jetstream.Cause{Actor: "admin"}, events.Change{Fact: events.TokenIssued{Token: events.Token{ID: name, Principal: name, Hash: hash, IssuedAt: in.now}}})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	directory := access.NewDirectory(access.DirectoryConfig{Log: in.log, Logger: slog.New(slog.DiscardHandler)})
	if err := directory.CatchUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	directory.AddBuiltIn(token)
	in.restart(func(c *tus.Config) { c.Guard = directory.Guard(nil) })
	session := in.session(nil, events.UploadFile{Format: "a", Size: 10})
	in.create(session, "a", 10)
	url := in.url(session, 0)
	patch := []string{"Content-Type", "application/offset+octet-stream", "Upload-Offset", "0"}
	for method, header := range map[string][]string{"HEAD": nil, "PATCH": patch, "DELETE": nil} {
		if a := in.do(method, url, strings.NewReader("0123"), append([]string{"Authorization", tokens["publishes-others"]}, header...)...); a.status != 404 {
			t.Errorf("%s by another: %d %s", method, a.status, a.code)
		}
	}
	if a := in.do("PATCH", url, strings.NewReader("0123"), append([]string{"Authorization", tokens["publishes-it"]}, patch...)...); a.status != 204 || a.header.Get("Upload-Offset") != "4" {
		t.Errorf("by its publisher: %d %s", a.status, a.detail)
	}
}

func TestCreatingAgainGivesTheSameUpload(t *testing.T) {
	t.Parallel()
	in := newIntake(t, nil)
	session := in.session(nil, events.UploadFile{Format: "a", Size: 10})
	in.create(session, "a", 10)
	in.patch(in.url(session, 0), 0, []byte("0123"))
	again := in.create(session, "a", 10)
	if again.status != 201 || again.header.Get("Location") != in.url(session, 0) {
		t.Fatalf("created again: %d at %s", again.status, again.header.Get("Location"))
	}
	if got := in.offset(in.url(session, 0)); got != 4 {
		t.Errorf("offset %d, want 4: creating again must not lose bytes", got)
	}
	// With bytes in the creation, they would land behind those that are there.
	a := in.do("POST", in.server.URL+tus.BasePath, strings.NewReader("0123456789"), "Upload-Length", "10", "Upload-Metadata", tus.UploadMetadata(session, variant, "a"), "Content-Type", "application/offset+octet-stream")
	if a.status != 409 || a.code != "offset-mismatch" || !strings.Contains(a.detail, tus.UploadURLPath(session, 0)) {
		t.Errorf("creation with bytes over an existing upload: %d %s %q", a.status, a.code, a.detail)
	}
}

func TestCreationWithUploadAndTheIETFDraft(t *testing.T) {
	t.Parallel()
	in := newIntake(t, nil)
	session := in.session(nil, events.UploadFile{Format: "a", Size: 10}, events.UploadFile{Format: "b", Size: 10}, events.UploadFile{Format: "c", Size: 10})
	a := in.do("POST", in.server.URL+tus.BasePath, strings.NewReader("0123456789"), "Upload-Length", "10", "Upload-Metadata", tus.UploadMetadata(session, variant, "a"), "Content-Type", "application/offset+octet-stream")
	if a.status != 201 || a.header.Get("Upload-Offset") != "10" {
		t.Fatalf("creation with upload: %d %s, offset %s", a.status, a.detail, a.header.Get("Upload-Offset"))
	}
	// Draft, interop version 5: Upload-Complete; the file is named by the tus header, or in the query.
	a = in.do("POST", in.server.URL+tus.BasePath, strings.NewReader("0123456789"), "Tus-Resumable", "", "Upload-Draft-Interop-Version", "5", "Upload-Complete", "?1", "Upload-Metadata", tus.UploadMetadata(session, variant, "b"))
	if a.status != 201 {
		t.Fatalf("draft creation: %d %s", a.status, a.detail)
	}
	query := "?session=" + session + "&variant=" + variant + "&format=c"
	a = in.do("POST", in.server.URL+tus.BasePath+query, strings.NewReader("01234"), "Tus-Resumable", "", "Upload-Draft-Interop-Version", "5", "Upload-Complete", "?0", "Upload-Length", "10")
	if a.status != 201 {
		t.Fatalf("draft creation in parts: %d %s", a.status, a.detail)
	}
	a = in.do("PATCH", in.url(session, 2), strings.NewReader("56789"), "Tus-Resumable", "", "Upload-Draft-Interop-Version", "5", "Upload-Complete", "?1", "Upload-Offset", "5", "Content-Type", "application/partial-upload")
	if a.status/100 != 2 {
		t.Fatalf("draft PATCH: %d %s", a.status, a.detail)
	}
	for _, format := range []string{"a", "b", "c"} {
		if f := in.file(session, format); f.State != events.FileComplete || f.Digest.Hex() != sum([]byte("0123456789")) {
			t.Errorf("file %s is %+v", format, f)
		}
	}
}

func TestWhatIsRefused(t *testing.T) {
	t.Parallel()
	in := newIntake(t, func(c *tus.Config) { c.MaxUploadBytes = 1000 })
	session := in.session(nil, events.UploadFile{Format: "a", Size: 10}, events.UploadFile{Format: "big", Size: 2000})
	in.create(session, "a", 10)
	complete := in.session(nil, events.UploadFile{Format: "a", Size: 3})
	in.create(complete, "a", 3)
	in.patch(in.url(complete, 0), 0, []byte("abc"))
	location := in.url(session, 0)
	octets := []string{"Content-Type", "application/offset+octet-stream"}
	for name, test := range map[string]struct {
		answer answer
		status int
		code   string
	}{
		"no token":            {in.create(session, "a", 10, "Authorization", ""), 401, "unauthorized"},
		"wrong token":         {in.create(session, "a", 10, "Authorization", "Bearer imgsrv_other"), 401, "unauthorized"},
		"HEAD without token":  {in.do("HEAD", location, nil, "Authorization", ""), 401, ""},
		"no metadata":         {in.create(session, "a", 10, "Upload-Metadata", ""), 422, "invalid-request"},
		"metadata of no file": {in.create(session, "other", 10), 404, "not-found"},
		"unknown session":     {in.create("019aba40-0000-7000-8000-00000000ffff", "a", 10), 404, "not-found"},
		"another length":      {in.create(session, "a", 11), 422, "file-mismatch"},
		"a complete file":     {in.create(complete, "a", 3), 409, "file-complete"},
		"over the cap":        {in.create(session, "big", 2000), 413, "too-large"},
		"wrong offset":        {in.patch(location, 5, []byte("x")), 409, "offset-mismatch"},
		"too many bytes":      {in.patch(location, 0, make([]byte, 11)), 413, "too-large"},
		"unknown upload":      {in.patch(in.url(session, 7), 0, []byte("x")), 404, "not-found"},
		"not created yet":     {in.patch(in.url(session, 1), 0, []byte("x")), 404, "not-found"},
		"a path as id":        {in.patch(in.server.URL+tus.BasePath+"..%2f..%2fetc.0", 0, []byte("x")), 404, "not-found"},
		"no tus version":      {in.do("PATCH", location, strings.NewReader("x"), append(octets, "Upload-Offset", "0", "Tus-Resumable", "")...), 412, "bad-request"},
		"no content type":     {in.do("PATCH", location, strings.NewReader("x"), "Upload-Offset", "0"), 400, "bad-request"},
		"another method":      {in.do("PUT", location, strings.NewReader("x")), 405, "method-not-allowed"},
		"reading it back":     {in.do("GET", location, nil), 405, "method-not-allowed"},
		"deleting complete":   {in.do("DELETE", in.url(complete, 0), nil), 409, "file-complete"},
	} {
		if test.answer.status != test.status || test.answer.code != test.code {
			t.Errorf("%s: %d %s (%s), want %d %s", name, test.answer.status, test.answer.code, test.answer.detail, test.status, test.code)
		}
	}
	if got := in.offset(location); got != 0 {
		t.Errorf("offset %d after refusals only", got)
	}
}

func TestAnUnfinishedUploadCanBeTerminatedAndBegunAgain(t *testing.T) {
	t.Parallel()
	in := newIntake(t, nil)
	session := in.session(nil, events.UploadFile{Format: "a", Size: 10})
	in.create(session, "a", 10)
	in.patch(in.url(session, 0), 0, []byte("wrong"))
	if a := in.do("DELETE", in.url(session, 0), nil); a.status != 204 {
		t.Fatalf("DELETE: %d %s", a.status, a.detail)
	}
	if a := in.do("HEAD", in.url(session, 0), nil); a.status != 404 {
		t.Errorf("HEAD after DELETE: %d", a.status)
	}
	in.create(session, "a", 10)
	if a := in.patch(in.url(session, 0), 0, []byte("0123456789")); a.status != 204 {
		t.Errorf("upload after termination: %d %s", a.status, a.detail)
	}
}

// A damaged disk took an upload's bytes: its client is sent back to the beginning, not into a dead end.
func TestAnUploadWhoseBytesAreLostIsBegunAgain(t *testing.T) {
	t.Parallel()
	in := newIntake(t, nil)
	session := in.session(nil, events.UploadFile{Format: "a", Size: 10})
	in.create(session, "a", 10)
	in.patch(in.url(session, 0), 0, []byte("01234"))
	if err := os.Remove(filepath.Join(in.root, "uploads", session, "0")); err != nil {
		t.Fatal(err)
	}
	if a := in.do("HEAD", in.url(session, 0), nil); a.status != 404 {
		t.Errorf("HEAD: %d, want 404", a.status)
	}
	if _, err := in.handler.Offset(session, 0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Offset: %v, want fs.ErrNotExist", err)
	}
	if a := in.create(session, "a", 10); a.status != 201 {
		t.Fatalf("created again: %d %s", a.status, a.detail)
	}
	if a := in.patch(in.url(session, 0), 0, []byte("0123456789")); a.status != 204 {
		t.Errorf("uploaded again: %d %s", a.status, a.detail)
	}
}

func TestOptionsTellWhatTheServerCan(t *testing.T) {
	t.Parallel()
	in := newIntake(t, func(c *tus.Config) { c.MaxUploadBytes = 1 << 40 })
	a := in.do("OPTIONS", in.server.URL+tus.BasePath, nil, "Authorization", "")
	if a.status != 200 || a.header.Get("Tus-Max-Size") != fmt.Sprint(1<<40) {
		t.Errorf("OPTIONS: %d, max size %s", a.status, a.header.Get("Tus-Max-Size"))
	}
	for _, want := range []string{"creation", "creation-with-upload", "termination", "expiration"} {
		if !strings.Contains(","+a.header.Get("Tus-Extension")+",", ","+want+",") {
			t.Errorf("extensions %q lack %s", a.header.Get("Tus-Extension"), want)
		}
	}
}

func TestAGivenMetadataTarballPrefixesTheFingerprintWhenItCameFirst(t *testing.T) {
	t.Parallel()
	in := newIntake(t, nil)
	metadata, disk := randomBytes(5000), randomBytes(20_000)
	for _, order := range [][]string{{"incus.tar.xz", "disk.qcow2"}, {"disk.qcow2", "incus.tar.xz"}} {
		session := in.session(nil, events.UploadFile{Format: "incus.tar.xz", Size: int64(len(metadata))}, events.UploadFile{Format: "disk.qcow2", Size: int64(len(disk))})
		content := map[string][]byte{"incus.tar.xz": metadata, "disk.qcow2": disk}
		for _, format := range order {
			created := in.create(session, format, len(content[format]))
			if a := in.patch(created.header.Get("Location"), 0, content[format]); a.status != 204 {
				t.Fatalf("%s: %d %s", format, a.status, a.detail)
			}
		}
		want := events.Digest("")
		if order[0] == "incus.tar.xz" {
			want = events.Digest("sha256:" + sum(metadata, disk))
		}
		if f := in.file(session, "disk.qcow2"); f.Combined != want {
			t.Errorf("order %v: combined %q, want %q", order, f.Combined, want)
		}
	}
}

// The process died after the last byte was synced and before the fact was appended.
func TestAFullFileWithoutItsFactIsPickedUp(t *testing.T) {
	t.Parallel()
	in := newIntake(t, nil)
	fill := func() string {
		session := in.session(nil, events.UploadFile{Format: "a", Size: 3})
		file, err := in.store.CreateIntake(t.Context(), session, 0, blob.IntakeSpec{SizeBytes: 3})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := file.Append(t.Context(), strings.NewReader("abc")); err != nil {
			t.Fatal(err)
		}
		return session
	}
	byStart, byHead, byPatch := fill(), fill(), fill()
	if got := in.offset(in.url(byHead, 0)); got != 3 {
		t.Errorf("offset %d", got)
	}
	if a := in.patch(in.url(byPatch, 0), 3, nil); a.status != 204 {
		t.Errorf("PATCH: %d %s", a.status, a.detail)
	}
	if f := in.file(byStart, "a"); f.State != events.FilePending {
		t.Fatalf("file is %s before recovery", f.State)
	}
	if err := in.handler.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, session := range []string{byStart, byHead, byPatch} {
		if f := in.file(session, "a"); f.State != events.FileComplete || f.Digest.Hex() != sum([]byte("abc")) {
			t.Errorf("file %+v, want it complete", f)
		}
		if _, err := in.handler.Offset(session, 0); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the intake is still there: %v", err)
		}
	}
}

func TestAbandonedSessionsExpire(t *testing.T) {
	t.Parallel()
	in := newIntake(t, func(c *tus.Config) { c.Idle = time.Hour })
	abandoned := in.session(nil, events.UploadFile{Format: "a", Size: 10})
	in.create(abandoned, "a", 10)
	in.patch(in.url(abandoned, 0), 0, []byte("01"))
	complete := in.session(nil, events.UploadFile{Format: "a", Size: 2})
	in.create(complete, "a", 2)
	in.patch(in.url(complete, 0), 0, []byte("01"))

	expire := func() {
		if err := in.handler.ExpireAbandoned(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	expire()
	if at, ok := in.handler.ExpiresAt(abandoned); !ok || time.Until(at) < 30*time.Minute || time.Until(at) > time.Hour {
		t.Errorf("the session expires at %v (%v), want in about an hour", at, ok)
	}
	if got := in.offset(in.url(abandoned, 0)); got != 2 {
		t.Fatalf("a fresh upload was touched: offset %d", got)
	}
	in.now = in.now.Add(2 * time.Hour)
	expire()
	upload, err := in.log.Upload(t.Context(), abandoned)
	if err != nil || upload.State.State != events.SessionExpired {
		t.Fatalf("session is %s (%v), want expired", upload.State.State, err)
	}
	version, err := in.log.Version(t.Context(), "image", abandoned)
	if err != nil || version.State.State != events.StateReleased {
		t.Errorf("version is %s (%v), want released", version.State.State, err)
	}
	if a := in.patch(in.url(abandoned, 0), 2, []byte("2")); a.status != 409 || a.code != "session-closed" {
		t.Errorf("PATCH after expiry: %d %s", a.status, a.code)
	}
	if done, err := in.log.Upload(t.Context(), complete); err != nil || done.State.State != events.SessionOpen || !done.State.Complete {
		t.Errorf("a complete session on its way to its job became %+v (%v)", done.State, err)
	}
}

// A crash while a complete file's intake is removed leaves its state without its data. The file is complete all the same.
func TestACompleteFileStaysCompleteWhenItsIntakeIsHalfRemoved(t *testing.T) {
	t.Parallel()
	in := newIntake(t, nil)
	session := in.session(nil, events.UploadFile{Format: "a", Size: 4}, events.UploadFile{Format: "b", Size: 4})
	in.create(session, "a", 4)
	in.patch(in.url(session, 0), 0, []byte("01"))
	state, err := os.ReadFile(filepath.Join(in.root, "uploads", session, "0.state"))
	if err != nil {
		t.Fatal(err)
	}
	in.patch(in.url(session, 0), 2, []byte("23"))
	if err := os.WriteFile(filepath.Join(in.root, "uploads", session, "0.state"), state, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := in.offset(in.url(session, 0)); got != 4 {
		t.Errorf("offset %d, want all 4 bytes", got)
	}
}

// A crash between a session's folder and its fact leaves a folder that no session will ever use.
func TestTheFolderOfASessionThatNeverBeganGoesBeforeSessionsExpire(t *testing.T) {
	t.Parallel()
	in := newIntake(t, func(c *tus.Config) { c.Idle = 24 * time.Hour })
	open := in.session(nil, events.UploadFile{Format: "a", Size: 10})
	orphan := uuid.Must(uuid.NewV7()).String()
	if err := in.store.CreateSession(orphan); err != nil {
		t.Fatal(err)
	}
	folders := func() (ids []string) {
		if err := in.handler.ExpireAbandoned(t.Context()); err != nil {
			t.Fatal(err)
		}
		sessions, err := in.store.Sessions()
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range sessions {
			ids = append(ids, s.ID)
		}
		return ids
	}
	if got := folders(); !slices.Contains(got, orphan) {
		t.Errorf("folders %v: one that may be about to get its fact is gone", got)
	}
	in.now = in.now.Add(20 * time.Minute)
	if got := folders(); !slices.Equal(got, []string{open}) {
		t.Errorf("folders %v, want that of the open session %s", got, open)
	}
}

func TestUploadMetadataIsWhatTusSays(t *testing.T) {
	t.Parallel()
	got := tus.UploadMetadata("s", "v", "f")
	want := "session " + base64.StdEncoding.EncodeToString([]byte("s")) + ",variant " + base64.StdEncoding.EncodeToString([]byte("v")) + ",format " + base64.StdEncoding.EncodeToString([]byte("f"))
	if got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
