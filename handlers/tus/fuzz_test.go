package tus_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/problem"
	"github.com/imgsrv/imgsrv/internal/tusname"
)

// FuzzCreate creates uploads with any metadata and appends to any of them, on a server with one open session. Only the declared
// file can be created, nothing appears outside of the session's folder, and no answer is the server's fault.
func FuzzCreate(f *testing.F) {
	in := newIntake(f, nil)
	session := in.session(nil, events.UploadFile{Format: "disk.qcow2", Size: 1 << 20})
	b64 := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	fine := tusname.Metadata(session, variant, "disk.qcow2")
	for _, metadata := range []string{
		fine, "", ",,,", "session", "session " + b64("../../etc"), "session ,variant ,format ", "session !!!",
		"session " + b64("a\r\nPUB imgsrv.events.x 1\r\n") + ",variant YQ==,format YQ==", "session " + b64("*") + ",variant Kg==,format Kg==",
		"session " + b64("a/b//c") + ",variant Kg==,format Kg==", "session " + b64("\x00\xff") + ",variant Kg==,format Kg==",
		strings.Replace(fine, "session", "session "+b64("x")+",session", 1), fine + ",filename " + b64("../../../etc/passwd") + ",filetype " + b64("text/html\r\nX: y"),
	} {
		f.Add(metadata, "1048576", session+".0")
		f.Add(metadata, "-1", "..%2f..%2fsecret.0")
	}
	for _, id := range []string{session + ".0%00", session + ".00", session + ".1", session + ".-1", session + "%2f0.0", "%252e%252e%252fx.0", "..%5c..%5cx.0", ".0", "a.0", "*.0", "%0d%0a.0"} {
		f.Add(fine, "0", id)
	}
	fence := func() (names []string) {
		err := filepath.WalkDir(in.root, func(path string, e os.DirEntry, err error) error {
			if rel, _ := filepath.Rel(in.root, path); err == nil && rel != filepath.Join("uploads", session) && !strings.HasPrefix(rel, filepath.Join("uploads", session)+"/") {
				names = append(names, rel)
			}
			return err
		})
		if err != nil {
			f.Fatal(err)
		}
		return names
	}
	before := fence()
	f.Fuzz(func(t *testing.T, metadata, length, id string) {
		path, err := url.PathUnescape(id)
		if err != nil || strings.ContainsAny(metadata+length, "\r\n\x00") {
			t.Skip() // no HTTP server passes these on
		}
		for _, header := range []http.Header{
			{"Upload-Metadata": {metadata}, "Upload-Length": {length}},
			{"Upload-Metadata": {metadata}, "Upload-Defer-Length": {length}},
			{"Upload-Offset": {length}, "Content-Type": {"application/offset+octet-stream"}},
		} {
			r := httptest.NewRequest(http.MethodPost, tusname.BasePath, bytes.NewReader([]byte("bytes")))
			if header.Get("Upload-Offset") != "" {
				r.Method, r.URL = http.MethodPatch, &url.URL{Path: tusname.BasePath + path, RawPath: tusname.BasePath + id}
			}
			header.Set("Authorization", "Bearer "+token)
			header.Set("Tus-Resumable", "1.0.0")
			r.Header = header
			w := httptest.NewRecorder()
			in.handler.ServeHTTP(w, r)
			var p problem.Details
			switch {
			case w.Code >= 500:
				t.Fatalf("%s %q with %v: %d: %s", r.Method, id, header, w.Code, w.Body)
			case w.Code >= 400:
				if w.Header().Get("Content-Type") != problem.ContentType || json.Unmarshal(w.Body.Bytes(), &p) != nil || p.Status != w.Code {
					t.Fatalf("%s %q with %v: %d %v: %s", r.Method, id, header, w.Code, w.Header(), w.Body)
				}
			case w.Code == http.StatusCreated:
				if at := w.Header().Get("Location"); !strings.HasSuffix(at, tusname.Path(session, 0)) {
					t.Fatalf("%v made %q", header, at)
				}
			}
			for name, values := range w.Header() {
				if strings.ContainsAny(name+strings.Join(values, ""), "\r\n") {
					t.Fatalf("header %q: %q", name, values)
				}
			}
		}
		if after := fence(); len(after) != len(before) {
			t.Fatalf("%q and %q left %v", metadata, id, after)
		}
	})
}
