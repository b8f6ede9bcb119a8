package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"
)

// Codes of problems that a publisher decides on; the server's documentation lists all.
const (
	CodeVersionExists     = "version-exists"
	CodeVersionInProgress = "version-in-progress"
	CodeFileComplete      = "file-complete"
	CodeUnauthorized      = "unauthorized"
	CodeNotFound          = "not-found"
	CodeBlobDamaged       = "blob-damaged"
)

// Problem is a refusal or failure told by the server (RFC 9457). An answer that is no problem document, from a proxy say,
// becomes one with just Title and Status.
type Problem struct {
	Type      string  `json:"type,omitempty"`
	Title     string  `json:"title"`
	Status    int     `json:"status"`
	Detail    string  `json:"detail,omitempty"`
	Code      string  `json:"code,omitempty"`
	Errors    []Field `json:"errors,omitempty"`
	StatusURL string  `json:"status_url,omitempty"` // the upload session that stands in the way

	retryAfter time.Duration
}

// Field is one broken rule of a request.
type Field struct {
	Location string `json:"location"`
	Message  string `json:"message"`
}

// Error is the problem in one line for people; what a server says can't move their cursor.
func (p *Problem) Error() string {
	text := p.Detail
	if text == "" {
		text = fmt.Sprintf("%s (HTTP %d)", p.Title, p.Status)
	}
	var rules []string
	for _, f := range p.Errors {
		if !strings.Contains(text, f.Message) {
			rules = append(rules, strings.TrimPrefix(f.Location+": "+f.Message, ": "))
		}
	}
	if len(rules) > 0 {
		text += ": " + strings.Join(rules, "; ")
	}
	if text = printable(text); text == "" {
		text = fmt.Sprintf("HTTP %d", p.Status)
	}
	return text
}

// printable is a text in one line, without characters that a terminal obeys.
func printable(text string) string {
	text = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, text)
	return strings.Join(strings.Fields(text), " ")
}

// IsProblem says whether err is, or wraps, a problem of this code.
func IsProblem(err error, code string) bool {
	var p *Problem
	return errors.As(err, &p) && p.Code == code
}

func problemOf(answer *http.Response) *Problem {
	p := &Problem{}
	kind, _, _ := mime.ParseMediaType(answer.Header.Get("Content-Type"))
	if kind == "application/problem+json" || kind == "application/json" {
		data, err := io.ReadAll(io.LimitReader(answer.Body, 1<<20))
		if err != nil || json.Unmarshal(data, p) != nil {
			p = &Problem{}
		}
	}
	if p.Code == "" { // an answer to HEAD has no document
		if p.Code = answer.Header.Get("Imgsrv-Problem"); p.Code == CodeBlobDamaged {
			p.Detail = "the file is damaged in the server's storage; its operators can repair it"
		}
	}
	p.Status = answer.StatusCode
	if p.Title == "" {
		p.Title = http.StatusText(answer.StatusCode)
	}
	if p.Title == "" {
		p.Title = "unexpected answer"
	}
	if seconds, err := strconv.Atoi(answer.Header.Get("Retry-After")); err == nil && seconds > 0 {
		p.retryAfter = time.Duration(seconds) * time.Second
	}
	return p
}

// ConnectionError says that no whole answer came from the server. A transfer may be resumed after it.
type ConnectionError struct {
	Server string // scheme and host
	Err    error
}

func (e *ConnectionError) Error() string {
	return fmt.Sprintf("no answer from %s: %v", e.Server, e.Err)
}

func (e *ConnectionError) Unwrap() error { return e.Err }

// Refused says whether nobody listens at the server's address.
func (e *ConnectionError) Refused() bool { return errors.Is(e.Err, syscall.ECONNREFUSED) }

// neverSent says that the request can't have reached the server.
func (e *ConnectionError) neverSent() bool {
	var op *net.OpError
	return errors.As(e.Err, &op) && op.Op == "dial"
}

// transient says whether a request that failed so may succeed when it is made again. Each use decides on 409 itself.
func transient(err error) bool {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return false
	}
	var p *Problem
	if errors.As(err, &p) {
		if p.Code == CodeBlobDamaged {
			return false // somebody has to do something first
		}
		switch p.Status {
		case http.StatusRequestTimeout, http.StatusLocked, http.StatusTooEarly, http.StatusTooManyRequests:
			return true
		case http.StatusNotImplemented, http.StatusHTTPVersionNotSupported, http.StatusInsufficientStorage:
			return false
		}
		return p.Status >= 500
	}
	var c *ConnectionError
	return errors.As(err, &c) && !certificateError(c.Err)
}
