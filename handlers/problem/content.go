package problem

import (
	"io"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"
)

// maxRanges is how many parts of a file one request may ask for. Each part costs a header of its own in the answer, some fifty
// times the bytes that asked for it; clients that resume ask for one.
const maxRanges = 16

// ServeContent is http.ServeContent with two differences: its refusals (412, 416) are problem documents, and a Range of more
// than 16 parts is refused as RFC 9110, 15.5.17 allows.
func ServeContent(w http.ResponseWriter, r *http.Request, log *slog.Logger, modified time.Time, content io.ReadSeeker) {
	if strings.Count(r.Header.Get("Range"), ",") >= maxRanges {
		Write(w, r, log, New(CodeRange, "the Range has too many parts: ask for at most 16 at once"))
		return
	}
	http.ServeContent(&contentWriter{ResponseWriter: w, request: r, log: log}, r, "", modified, content)
}

// contentWriter turns ServeContent's own refusals into problems.
type contentWriter struct {
	http.ResponseWriter
	request *http.Request
	log     *slog.Logger
	refused bool
}

// Unwrap is for http.ResponseController.
func (c *contentWriter) Unwrap() http.ResponseWriter { return c.ResponseWriter }

// WriteHeader sends a status, or the problem of a refusal.
func (c *contentWriter) WriteHeader(status int) {
	if status < http.StatusBadRequest {
		c.ResponseWriter.WriteHeader(status)
		return
	}
	c.refused = true
	Write(c.ResponseWriter, c.request, c.log, OfStatus(status, refusal(status)))
}

func refusal(status int) string {
	switch status {
	case http.StatusRequestedRangeNotSatisfiable:
		return "no part of the Range is in the file; Content-Range says how long it is"
	case http.StatusPreconditionFailed:
		return "the file is not the one that the request's precondition names"
	}
	return "the file can't be sent"
}

// Write sends bytes; the text that ServeContent adds to a refusal is dropped.
func (c *contentWriter) Write(b []byte) (int, error) {
	if c.refused {
		return len(b), nil
	}
	return c.ResponseWriter.Write(b)
}

// ReadFrom sends what src has, by the writer's own ReadFrom, where it has one.
func (c *contentWriter) ReadFrom(src io.Reader) (int64, error) {
	if c.refused {
		return io.Copy(io.Discard, src)
	}
	if fromFile(src) {
		return io.Copy(c.ResponseWriter, src) // the kernel's matter, where the writer can (sendfile)
	}
	buf := buffers.Get().(*[bufferSize]byte)
	defer buffers.Put(buf)
	return io.CopyBuffer(onlyWriter{c.ResponseWriter}, src, buf[:])
}

// bufferSize is how much of what is in memory is written at once: net/http would do it by 32 KiB, with a system call for each.
const bufferSize = 256 << 10

var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// onlyWriter hides what else a writer can do.
type onlyWriter struct{ io.Writer }

func fromFile(src io.Reader) bool {
	if limited, ok := src.(*io.LimitedReader); ok {
		src = limited.R
	}
	_, ok := src.(*os.File)
	return ok
}
