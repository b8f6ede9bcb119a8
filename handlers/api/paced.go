package api

import (
	"errors"
	"io"
	"log/slog"
	"net/http"
	"time"

	"github.com/imgsrv/imgsrv/handlers/problem"
)

// A client has so long for each piece of a download: about 9 kB/s. A slower or silent one is cut off, and comes
// back with a Range; a whole image may take as long as it takes.
const (
	pieceBytes   = 1 << 20
	pieceTimeout = 2 * time.Minute
)

// pacedWriter stands between http.ServeContent and the connection. It moves the write deadline with each piece
// that is sent; pieces go by ReadFrom straight from the file, so that the kernel copies them (sendfile), which
// leaves no other place to see progress. And it turns ServeContent's own refusals (412, 416) into problems.
type pacedWriter struct {
	http.ResponseWriter
	request *http.Request
	log     *slog.Logger
	control *http.ResponseController
	refused bool
}

// Unwrap is for http.ResponseController.
func (p *pacedWriter) Unwrap() http.ResponseWriter { return p.ResponseWriter }

// WriteHeader sends a status, or the problem of a refusal.
func (p *pacedWriter) WriteHeader(status int) {
	if status < http.StatusBadRequest {
		p.ResponseWriter.WriteHeader(status)
		return
	}
	p.refused = true
	problem.Write(p.ResponseWriter, p.request, p.log, problem.OfStatus(status, refusal(status)))
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
func (p *pacedWriter) Write(b []byte) (int, error) {
	if p.refused {
		return len(b), nil
	}
	if err := p.extend(); err != nil {
		return 0, err
	}
	return p.ResponseWriter.Write(b)
}

// ReadFrom sends what src has, piece by piece.
func (p *pacedWriter) ReadFrom(src io.Reader) (int64, error) {
	if p.refused {
		return io.Copy(io.Discard, src)
	}
	// sendfile wants to see a file, or a file behind exactly one LimitedReader: take ServeContent's off.
	left := int64(1<<63 - 1)
	outer, limited := src.(*io.LimitedReader)
	if limited {
		src, left = outer.R, outer.N
	}
	var sent int64
	for left > 0 {
		if err := p.extend(); err != nil {
			return sent, err
		}
		piece := &io.LimitedReader{R: src, N: min(left, pieceBytes)}
		n, err := io.Copy(p.ResponseWriter, piece) // by its ReadFrom, where it has one
		sent, left = sent+n, left-n
		if limited {
			outer.N = left
		}
		if err != nil || piece.N > 0 { // broken, or at the end
			return sent, err
		}
	}
	return sent, nil
}

// extend gives the client time for one more piece. A writer that knows no deadlines goes without.
func (p *pacedWriter) extend() error {
	err := p.control.SetWriteDeadline(time.Now().Add(pieceTimeout))
	if errors.Is(err, http.ErrNotSupported) {
		return nil
	}
	return err
}

// end takes the deadline off: the next answer on the connection has nothing to do with it.
func (p *pacedWriter) end() {
	if err := p.control.SetWriteDeadline(time.Time{}); err != nil && !errors.Is(err, http.ErrNotSupported) {
		p.log.DebugContext(p.request.Context(), "write deadline not taken off", "error", err)
	}
}
