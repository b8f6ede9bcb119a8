package blob

import (
	"context"
	"errors"
	"hash"
	"io"
	"os"
	"sync"
	"sync/atomic"
)

const (
	// chunkBytes is what is read, written and hashed at a time. It fits a core's cache; 1 MiB measured no faster and
	// is four times the memory for each of many slow clients.
	chunkBytes = 256 << 10
	// chunksAhead is how many chunks may wait for each hash, which bounds the memory of one Append to 2 MiB.
	chunksAhead = 4
	// writeBackBytes is how often the kernel is told to begin writing out.
	writeBackBytes = 8 << 20
	// writeBackLag is how many such windows may be under way before Append waits for the oldest: enough to keep a
	// disk busy, few enough that the last sync has little left to do however large the file.
	writeBackLag = 4
)

// chunk is a pooled buffer that several hashes read at once; the last one gives it back.
type chunk struct {
	buf  []byte
	n    int
	refs atomic.Int32
}

// fill reads until buf is full, the reader ends (io.EOF, also with n > 0), or ctx does, whose cause it then returns.
// It looks at ctx between reads only: a reader that may block for long must end by itself when ctx does.
func fill(ctx context.Context, r io.Reader, buf []byte) (n int, err error) {
	for idle := 0; n < len(buf); {
		if ctx.Err() != nil {
			return n, context.Cause(ctx)
		}
		got, err := r.Read(buf[n:])
		n += got
		if err != nil {
			return n, err
		}
		if got > 0 {
			idle = 0
		} else if idle++; idle == 100 {
			return n, io.ErrNoProgress
		}
	}
	return n, nil
}

// pump moves at most limit bytes from r to f at offset and through the hashes, each in a goroutine of its own beside
// the next read and write. It hashes only what the file has taken, so that n, the file and the hashes agree whatever
// fails. readErr is the reader's or ctx's (io.EOF if it ended before limit), writeErr the file's. When pump returns,
// its goroutines have ended.
func (s *Store) pump(
	ctx context.Context, f *os.File, offset, limit int64, r io.Reader, hashes []hash.Hash,
) (n int64, readErr, writeErr error) {
	var running sync.WaitGroup
	feeds := make([]chan *chunk, len(hashes))
	for i, h := range hashes {
		feed := make(chan *chunk, chunksAhead)
		feeds[i] = feed
		running.Go(func() {
			for c := range feed {
				_, _ = h.Write(c.buf[:c.n]) // a hash never fails
				s.release(c)
			}
		})
	}
	defer running.Wait()
	defer func() {
		for _, feed := range feeds {
			close(feed)
		}
	}()

	out := writeBack{f: f, begin: offset, started: offset}
	for n < limit && readErr == nil && writeErr == nil {
		c := s.buffers.Get().(*chunk)
		var got int
		got, readErr = fill(ctx, r, c.buf[:min(limit-n, int64(len(c.buf)))])
		c.n, writeErr = s.disk.WriteAt(f, c.buf[:got], offset+n)
		n += int64(c.n)
		c.refs.Store(int32(len(feeds)) + 1)
		for _, feed := range feeds {
			feed <- c
		}
		s.release(c)
		if writeErr == nil {
			writeErr = out.reached(offset + n)
		}
	}
	return n, readErr, writeErr
}

func (s *Store) release(c *chunk) {
	if c.refs.Add(-1) == 0 {
		s.buffers.Put(c)
	}
}

// writeBack keeps the kernel writing a file out while it grows.
type writeBack struct {
	f       *os.File
	begin   int64 // where the growth began
	started int64 // up to here the kernel has been told
	off     bool  // the file system can't
}

// reached is told how far the file has been written.
func (w *writeBack) reached(end int64) error {
	for !w.off && end-w.started >= writeBackBytes {
		can, err := startWriteBack(w.f, w.started, writeBackBytes)
		if oldest := w.started - writeBackLag*writeBackBytes; can && err == nil && oldest >= w.begin {
			can, err = waitWriteBack(w.f, oldest, writeBackBytes)
		}
		if err != nil {
			return err
		}
		w.off = !can
		w.started += writeBackBytes
	}
	return nil
}

// hashInto reads r to its end through the hashes.
func hashInto(ctx context.Context, r io.Reader, hashes ...hash.Hash) (n int64, err error) {
	buf := make([]byte, chunkBytes)
	for {
		got, err := fill(ctx, r, buf)
		n += int64(got)
		for _, h := range hashes {
			_, _ = h.Write(buf[:got]) // a hash never fails
		}
		if errors.Is(err, io.EOF) {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}
