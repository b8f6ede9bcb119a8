package client

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"
	"unicode"
)

// FuzzProblem reads answers that are errors, from a server that may be anybody. What is told to people is one line that moves no
// cursor, and the status is the answer's.
func FuzzProblem(f *testing.F) {
	for _, body := range []string{
		`{"title":"Not found","status":404,"detail":"there is nothing"}`, `{"errors":[{"location":"a","message":"b"},null]}`, "null", "[]", "<html>", "",
		`{"detail":"\u001b]0;title\u0007\u001b[2J\r\nimgsrv: all is well\u202e"}`, `{"title":"\u0000","retryAfter":-1,"status_url":"file:///etc/passwd"}`,
	} {
		f.Add(404, "application/problem+json", "1", []byte(body))
	}
	f.Add(999, "text/html; charset=\"", "-5", []byte("\x1b[31m"))
	f.Fuzz(func(t *testing.T, status int, contentType, retry string, body []byte) {
		p := problemOf(&http.Response{StatusCode: status, Body: io.NopCloser(bytes.NewReader(body)),
			Header: http.Header{"Content-Type": {contentType}, "Retry-After": {retry}}})
		if p.Status != status || p.Title == "" || p.retryAfter < 0 {
			t.Fatalf("%+v", p)
		}
		text := p.Error()
		if strings.TrimSpace(text) == "" || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Fatalf("told as %q", text)
		}
	})
}
