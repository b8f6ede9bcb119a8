package mirrors

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/imgsrv/imgsrv/handlers/access"
)

// inProcess makes requests of a handler in this process, as a principal: what a mirror publishes takes the way that every
// publication takes, and no token and no listener is needed for it.
type inProcess struct {
	handler   http.Handler
	principal access.Principal
}

// RoundTrip calls the handler, and returns when it does. The body is read while it runs; the answer is kept whole, since those
// of the API are small.
func (t *inProcess) RoundTrip(r *http.Request) (answer *http.Response, err error) {
	ctx := access.Authenticated(r.Context(), t.principal, nil)
	in := r.Clone(ctx)
	in.RequestURI, in.RemoteAddr, in.Host = r.URL.RequestURI(), "mirror", r.URL.Host
	if in.Body == nil {
		in.Body = http.NoBody
	}
	defer in.Body.Close() //nolint:errcheck // only read
	w := &answerWriter{header: http.Header{}}
	defer func() {
		if p := recover(); p != nil { // http.ErrAbortHandler, by which handlers cut a connection
			answer, err = nil, fmt.Errorf("the request was cut: %v", p)
		}
	}()
	t.handler.ServeHTTP(w, in)
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	w.WriteHeader(http.StatusOK)
	return &http.Response{Status: http.StatusText(w.status), StatusCode: w.status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: w.sent, Body: io.NopCloser(&w.body), ContentLength: int64(w.body.Len()), Request: r}, nil
}

// answerWriter keeps an answer. There is no connection, and so no deadline to be set.
type answerWriter struct {
	header, sent http.Header
	status       int
	body         bytes.Buffer
}

func (w *answerWriter) Header() http.Header { return w.header }

func (w *answerWriter) WriteHeader(status int) {
	if w.status == 0 && status >= http.StatusOK {
		w.status, w.sent = status, w.header.Clone()
	}
}

func (w *answerWriter) Write(data []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	return w.body.Write(data)
}

func (w *answerWriter) Flush() {}

func (w *answerWriter) SetReadDeadline(time.Time) error { return nil }

func (w *answerWriter) SetWriteDeadline(time.Time) error { return nil }
