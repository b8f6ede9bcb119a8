package tus_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/limits"
	"github.com/imgsrv/imgsrv/handlers/tus"
	"github.com/imgsrv/imgsrv/internal/tusname"
)

// slowPatch sends the head of a PATCH over a connection of its own, whose body comes later.
func (in *intake) slowPatch(session string, length int) net.Conn {
	in.t.Helper()
	conn, err := net.Dial("tcp", in.server.Listener.Addr().String())
	if err != nil {
		in.t.Fatal(err)
	}
	in.t.Cleanup(func() { _ = conn.Close() })
	head := fmt.Sprintf("PATCH %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nTus-Resumable: 1.0.0\r\nContent-Type: application/offset+octet-stream\r\nUpload-Offset: 0\r\nContent-Length: %d\r\n\r\n",
		tusname.Path(session, 0), token, length)
	if _, err := conn.Write([]byte(head)); err != nil {
		in.t.Fatal(err)
	}
	return conn
}

// begunPatch is slowPatch once the server has begun to read the body: it then says 100 Continue.
func (in *intake) begunPatch(session string, offset, length int) net.Conn {
	in.t.Helper()
	conn, err := net.Dial("tcp", in.server.Listener.Addr().String())
	if err != nil {
		in.t.Fatal(err)
	}
	in.t.Cleanup(func() { _ = conn.Close() })
	head := fmt.Sprintf("PATCH %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nTus-Resumable: 1.0.0\r\nContent-Type: application/offset+octet-stream\r\nUpload-Offset: %d\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n",
		tusname.Path(session, 0), token, offset, length)
	if _, err := conn.Write([]byte(head)); err != nil {
		in.t.Fatal(err)
	}
	const want = "HTTP/1.1 100 Continue\r\n\r\n"
	got := make([]byte, len(want))
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != want {
		in.t.Fatalf("%q, %v", got, err)
	}
	return conn
}

// answered reads the answer to a request that was made by hand.
func (in *intake) answered(conn net.Conn) (status int, code string) {
	in.t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		in.t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		in.t.Fatalf("no answer: %v", err)
	}
	defer resp.Body.Close() //nolint:errcheck // only read
	var p struct{ Code string }
	if resp.StatusCode >= 400 {
		if err := json.NewDecoder(resp.Body).Decode(&p); err != nil {
			in.t.Fatalf("%d without a problem document: %v", resp.StatusCode, err)
		}
	}
	return resp.StatusCode, p.Code
}

func TestAClientThatSendsNothingIsCutWhereItCanResume(t *testing.T) {
	t.Parallel()
	in := newIntake(t, func(c *tus.Config) { c.Stall = 300 * time.Millisecond })
	for _, sent := range []string{"", "0123"} { // also before its first byte
		session := in.session(nil, events.UploadFile{Format: "a", Size: 10})
		in.create(session, "a", 10)
		conn := in.slowPatch(session, 10)
		if _, err := conn.Write([]byte(sent)); err != nil {
			t.Fatal(err)
		}
		if status, code := in.answered(conn); status != 408 || code != "request-timeout" {
			t.Errorf("after %d bytes: %d %s, want 408 request-timeout", len(sent), status, code)
		}
		if got := in.offset(in.url(session, 0)); got != len(sent) {
			t.Errorf("offset %d, want %d", got, len(sent))
		}
		if a := in.patch(in.url(session, 0), len(sent), []byte("0123456789")[len(sent):]); a.status != 204 {
			t.Errorf("going on: %d %s", a.status, a.detail)
		}
	}
}

// As long as something comes, an upload may take longer than the time that one byte has.
func TestASlowAndSteadyUploadIsNotCut(t *testing.T) {
	t.Parallel()
	const stall = time.Second
	in := newIntake(t, func(c *tus.Config) { c.Stall = stall })
	for {
		session := in.session(nil, events.UploadFile{Format: "a", Size: 12})
		in.create(session, "a", 12)
		conn, last, longest := in.slowPatch(session, 12), time.Now(), time.Duration(0)
		for i := range 12 {
			time.Sleep(stall / 8) // the pace of a slow line; one and a half times the stall in all
			if _, err := conn.Write([]byte{'0' + byte(i)}); err != nil {
				break // the answer says why
			}
			longest, last = max(longest, time.Since(last)), time.Now()
		}
		status, code := in.answered(conn)
		if status == 408 && longest > stall/2 {
			continue // the machine stood still, so the line wasn't steady
		}
		if f := in.file(session, "a"); status != 204 || f.State != events.FileComplete {
			t.Fatalf("%d %s, want 204; the file is %s", status, code, f.State)
		}
		return
	}
}

func TestOnePrincipalsUploadsAtOnceAreBounded(t *testing.T) {
	t.Parallel()
	in := newIntake(t, func(c *tus.Config) { c.Uploads = limits.NewUploads(2, nil) })
	var sessions []string
	var slow []net.Conn
	for range 3 {
		session := in.session(nil, events.UploadFile{Format: "a", Size: 10})
		in.create(session, "a", 10)
		sessions = append(sessions, session)
	}
	for _, session := range sessions[:2] {
		slow = append(slow, in.begunPatch(session, 0, 10))
	}
	third := func() answer { return in.patch(in.url(sessions[2], 0), 0, []byte("0123456789")) }
	a := third()
	if a.status != 429 || a.code != "too-many-uploads" || a.header.Get("Retry-After") == "" {
		t.Fatalf("a third upload: %d %s, Retry-After %q, want 429", a.status, a.code, a.header.Get("Retry-After"))
	}
	// Asking and creating take no place.
	if got := in.offset(in.url(sessions[2], 0)); got != 0 {
		t.Errorf("offset %d", got)
	}
	if _, err := slow[0].Write([]byte("0123456789")); err != nil {
		t.Fatal(err)
	}
	if status, code := in.answered(slow[0]); status != 204 {
		t.Fatalf("a slow upload that ends: %d %s", status, code)
	}
	for deadline := time.Now().Add(20 * time.Second); a.status == 429; a = third() {
		if time.Now().After(deadline) {
			t.Fatal("the place of an upload that is done was never free")
		}
	}
	if a.status != 204 {
		t.Errorf("after one has ended: %d %s", a.status, a.detail)
	}
}

func TestAnUploadThatWouldTakeTheReserveIsNotCreated(t *testing.T) {
	t.Parallel()
	in := newIntake(t, nil)
	free, err := in.store.Free()
	if err != nil {
		t.Fatal(err)
	}
	in.restart(func(c *tus.Config) {
		c.Intake = limits.NewIntake(limits.IntakeConfig{Events: in.log, Store: in.store, Reserve: free / 2})
	})
	session := in.session(nil, events.UploadFile{Format: "a", Size: free / 10 * 7}, events.UploadFile{Format: "b", Size: free / 10})
	if a := in.create(session, "a", int(free/10*7)); a.status != 507 || a.code != "storage-full" || !strings.Contains(a.detail, "stay free") {
		t.Errorf("into the reserve: %d %s %s, want 507", a.status, a.code, a.detail)
	}
	if a := in.create(session, "b", int(free/10)); a.status != 201 {
		t.Errorf("beside the reserve: %d %s", a.status, a.detail)
	}
}
