package tus_test

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/access"
	"github.com/imgsrv/imgsrv/handlers/tus"
	"github.com/imgsrv/imgsrv/internal/natstest"
	"github.com/imgsrv/imgsrv/internal/tusname"
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
	mux.Handle(tusname.BasePath, in.handler)
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
	return in.do("POST", in.server.URL+tusname.BasePath, nil, append([]string{"Upload-Length", strconv.Itoa(size), "Upload-Metadata", tusname.Metadata(session, variant, format)}, header...)...)
}

func (in *intake) patch(url string, offset int, data []byte) answer {
	in.t.Helper()
	return in.do("PATCH", url, bytes.NewReader(data), "Content-Type", "application/offset+octet-stream", "Upload-Offset", strconv.Itoa(offset))
}

// url is the location of an upload on the server as it runs now.
func (in *intake) url(session string, n int) string {
	return in.server.URL + tusname.Path(session, n)
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
