package backup

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"

	"github.com/klauspost/compress/zstd"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/store/vault"
)

const (
	segmentBytes = 64 << 20 // of events, before compression: what a segment may take of memory is a tenth of it
	maxLineBytes = 32 << 20 // an event has at most 4 MiB, and escapes make it longer
)

// segmentWriter packs records into segments and puts each when it is full.
type segmentWriter struct {
	v       vault.Vault
	limit   int64 // bytes before compression
	current segmentEntry
	plain   int64
	packed  bytes.Buffer
	zip     *zstd.Encoder
	done    []segmentEntry
}

func newSegmentWriter(v vault.Vault) (*segmentWriter, error) {
	w := &segmentWriter{v: v, limit: segmentBytes}
	var err error
	w.zip, err = zstd.NewWriter(&w.packed, zstd.WithEncoderConcurrency(1))
	return w, err
}

func (w *segmentWriter) add(ctx context.Context, record jetstream.Record) error {
	if w.current.First == 0 {
		w.current.First = record.Sequence
	}
	w.current.Last = record.Sequence
	var line bytes.Buffer
	encoder := json.NewEncoder(&line)
	encoder.SetEscapeHTML(false) // the payloads go as they are
	if err := encoder.Encode(record); err != nil {
		return fmt.Errorf("encode event %d: %w", record.Sequence, err)
	}
	n, err := w.zip.Write(line.Bytes())
	if err != nil {
		return fmt.Errorf("pack event %d: %w", record.Sequence, err)
	}
	if w.plain += int64(n); w.plain >= w.limit {
		return w.flush(ctx)
	}
	return nil
}

// flush puts what there is as a segment.
func (w *segmentWriter) flush(ctx context.Context) error {
	if w.current.First == 0 {
		return nil
	}
	if err := w.zip.Close(); err != nil {
		return fmt.Errorf("pack events: %w", err)
	}
	s := w.current
	s.File = fmt.Sprintf("%s/%020d-%020d.jsonl.zst", eventsFolder, s.First, s.Last)
	s.Bytes, s.SHA256 = int64(w.packed.Len()), hexSum(w.packed.Bytes())
	if err := putBytes(ctx, w.v, s.File, w.packed.Bytes()); err != nil {
		return err
	}
	w.done = append(w.done, s)
	w.current, w.plain = segmentEntry{}, 0
	w.packed.Reset()
	w.zip.Reset(&w.packed)
	return nil
}

// close gives the memory back; what wasn't flushed is dropped.
func (w *segmentWriter) close() { _ = w.zip.Close() } // what it packs goes nowhere

// records reads the events of a point up to a sequence, in order. A segment's digest is verified at its end; whoever has to be sure
// before it acts reads twice.
func records(ctx context.Context, v vault.Vault, p pointDocument, upTo events.Sequence) iter.Seq2[jetstream.Record, error] {
	return func(yield func(jetstream.Record, error) bool) {
		for _, s := range p.Segments {
			if s.First > upTo {
				return
			}
			goOn := true
			err := readSegment(ctx, v, s, func(record jetstream.Record) bool {
				if record.Sequence > upTo {
					return true // to its end, for the digest
				}
				goOn = yield(record, nil)
				return goOn
			})
			if !goOn {
				return
			}
			if err != nil {
				yield(jetstream.Record{}, err)
				return
			}
		}
	}
}

// readSegment gives the records of a segment to each, until that says no.
func readSegment(ctx context.Context, v vault.Vault, s segmentEntry, each func(jetstream.Record) bool) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("read %s: %w", s.File, err)
		}
	}()
	r, err := v.Open(ctx, s.File)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	sum := sha256.New()
	packed := io.TeeReader(io.LimitReader(r, s.Bytes+1), sum)
	zip, err := zstd.NewReader(packed, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(64<<20))
	if err != nil {
		return err
	}
	defer zip.Close()
	lines := bufio.NewScanner(zip)
	lines.Buffer(make([]byte, 64<<10), maxLineBytes)
	next := s.First
	for ; lines.Scan(); next++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		var record jetstream.Record
		if err := json.Unmarshal(lines.Bytes(), &record); err != nil {
			return fmt.Errorf("event %d: %w", next, err)
		}
		if record.Sequence != next { // what else is wrong with it, whoever uses it finds out
			return fmt.Errorf("it has event %d where %d is due", record.Sequence, next)
		}
		if !each(record) {
			return nil
		}
	}
	if err := lines.Err(); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, packed); err != nil {
		return err
	}
	if next != s.Last+1 {
		return fmt.Errorf("it ends at event %d, and should at %d", next-1, s.Last)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != s.SHA256 {
		return fmt.Errorf("it has sha256 %s, and should have %s", got, s.SHA256)
	}
	return nil
}
