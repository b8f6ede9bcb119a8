package client

import (
	"errors"
	"io"
	"sync"
)

// meteredReader tells how much was read through it. HTTP transports read a request's body on a goroutine of their own and
// may still do so when the answer is there, hence the lock.
type meteredReader struct {
	r     io.Reader
	want  int64         // bytes that r must give; fewer is its error
	moved func(n int64) // all bytes so far

	mu  sync.Mutex
	n   int64
	err error
}

func (m *meteredReader) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	m.mu.Lock()
	m.n += int64(n)
	total := m.n
	switch {
	case errors.Is(err, io.EOF) && total < m.want:
		err = io.ErrUnexpectedEOF
		m.err = err
	case err != nil && !errors.Is(err, io.EOF):
		m.err = err
	}
	m.mu.Unlock()
	if n > 0 {
		m.moved(total)
	}
	return n, err
}

// failed is the error of the source, as opposed to the line's.
func (m *meteredReader) failed() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err
}
