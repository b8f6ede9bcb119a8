package tus_test

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/access"
	"github.com/imgsrv/imgsrv/handlers/tus"
	"github.com/imgsrv/imgsrv/internal/tusname"
)

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
	a := in.do("POST", in.server.URL+tusname.BasePath, strings.NewReader("0123456789"), "Upload-Length", "10", "Upload-Metadata", tusname.Metadata(session, variant, "a"), "Content-Type", "application/offset+octet-stream")
	if a.status != 409 || a.code != "offset-mismatch" || !strings.Contains(a.detail, tusname.Path(session, 0)) {
		t.Errorf("creation with bytes over an existing upload: %d %s %q", a.status, a.code, a.detail)
	}
}

func TestCreationWithUploadAndTheIETFDraft(t *testing.T) {
	t.Parallel()
	in := newIntake(t, nil)
	session := in.session(nil, events.UploadFile{Format: "a", Size: 10}, events.UploadFile{Format: "b", Size: 10}, events.UploadFile{Format: "c", Size: 10})
	a := in.do("POST", in.server.URL+tusname.BasePath, strings.NewReader("0123456789"), "Upload-Length", "10", "Upload-Metadata", tusname.Metadata(session, variant, "a"), "Content-Type", "application/offset+octet-stream")
	if a.status != 201 || a.header.Get("Upload-Offset") != "10" {
		t.Fatalf("creation with upload: %d %s, offset %s", a.status, a.detail, a.header.Get("Upload-Offset"))
	}
	// Draft, interop version 5: Upload-Complete; the file is named by the tus header, or in the query.
	a = in.do("POST", in.server.URL+tusname.BasePath, strings.NewReader("0123456789"), "Tus-Resumable", "", "Upload-Draft-Interop-Version", "5", "Upload-Complete", "?1", "Upload-Metadata", tusname.Metadata(session, variant, "b"))
	if a.status != 201 {
		t.Fatalf("draft creation: %d %s", a.status, a.detail)
	}
	query := "?session=" + session + "&variant=" + variant + "&format=c"
	a = in.do("POST", in.server.URL+tusname.BasePath+query, strings.NewReader("01234"), "Tus-Resumable", "", "Upload-Draft-Interop-Version", "5", "Upload-Complete", "?0", "Upload-Length", "10")
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
		"a path as id":        {in.patch(in.server.URL+tusname.BasePath+"..%2f..%2fetc.0", 0, []byte("x")), 404, "not-found"},
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

func TestOptionsTellWhatTheServerCan(t *testing.T) {
	t.Parallel()
	in := newIntake(t, func(c *tus.Config) { c.MaxUploadBytes = 1 << 40 })
	a := in.do("OPTIONS", in.server.URL+tusname.BasePath, nil, "Authorization", "")
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
