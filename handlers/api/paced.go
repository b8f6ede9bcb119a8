package api

import (
	"errors"
	"io"
	"log/slog"
	"net/http"
	"syscall"
	"time"
)

// A client has so long for each piece of a download: about 9 kB/s. A slower or silent one is cut off, and comes
// back with a Range; a whole image may take as long as it takes.
const (
	pieceBytes   = 1 << 20
	pieceTimeout = 2 * time.Minute
)

// pacedWriter stands between problem.ServeContent and the connection. It moves the write deadline with each piece
// that is sent; pieces go by ReadFrom straight from the file, so that the kernel copies them (sendfile), which
// leaves no other place to see progress.
type pacedWriter struct {
	http.ResponseWriter
	request *http.Request
	log     *slog.Logger
	control *http.ResponseController
	good    func() error // optional, is asked before each piece whether the file is still one to be sent
	bad     bool         // it isn't, or it has ended too early, or the disk doesn't give it
}

// Unwrap is for http.ResponseController.
func (p *pacedWriter) Unwrap() http.ResponseWriter { return p.ResponseWriter }

// Write sends bytes.
func (p *pacedWriter) Write(b []byte) (int, error) {
	if err := p.extend(); err != nil {
		return 0, err
	}
	return p.ResponseWriter.Write(b)
}

// ReadFrom sends what src has, piece by piece.
func (p *pacedWriter) ReadFrom(src io.Reader) (int64, error) {
	// sendfile wants to see a file, or a file behind exactly one LimitedReader: take ServeContent's off.
	left := int64(1<<63 - 1)
	outer, limited := src.(*io.LimitedReader)
	if limited {
		src, left = outer.R, outer.N
	}
	var sent int64
	piece := &io.LimitedReader{R: src}
	for left > 0 {
		if err := p.extend(); err != nil {
			return sent, err
		}
		piece.N = min(left, pieceBytes)
		n, err := io.Copy(p.ResponseWriter, piece) // by its ReadFrom, where it has one
		sent, left = sent+n, left-n
		if limited {
			outer.N = left
		}
		if err != nil || piece.N > 0 { // broken, or at the end
			p.bad = p.bad || errors.Is(err, syscall.EIO) || err == nil && limited && left > 0
			return sent, err
		}
	}
	return sent, nil
}

// extend gives the client time for one more piece, if the file is good for it. A writer that knows no deadlines goes without.
func (p *pacedWriter) extend() error {
	if p.good != nil {
		if err := p.good(); err != nil {
			p.bad = true
			return err
		}
	}
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
