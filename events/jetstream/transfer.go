package jetstream

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/imgsrv/imgsrv/events"
)

// Record is one event of a history on its way between servers: a line of JSON.
type Record struct {
	Sequence events.Sequence     `json:"sequence"`
	Subject  string              `json:"subject"`
	Headers  map[string][]string `json:"headers"`
	Time     time.Time           `json:"time"` // when the exporting stream stored it; the event's own time is its ce-time
	Data     json.RawMessage     `json:"data,omitempty"`
	// Base64 holds the payload instead of Data where that is no compact JSON, so that every byte survives.
	Base64 []byte `json:"data_base64,omitempty"`
}

// importKey marks the stream while an import isn't finished. The mark outlives the process: until the import
// is complete nothing else may be appended, or the rest of the history would have no place.
const importKey = "imgsrv-import"

// importWindow is how many messages of an import wait for their acknowledgement.
const importWindow = 256

// Errors of an import.
var (
	// ErrNotEmpty: the stream has a history of its own.
	ErrNotEmpty = errors.New("the stream has events already: a history can only be imported into an empty one")
	// ErrDifferent: the stream holds the beginning of another history than the one that is given.
	ErrDifferent = errors.New("the stream holds the beginning of another history")
	// ErrImporting: an import has begun and isn't finished. It wraps into ErrUnavailable where an append is refused.
	ErrImporting = errors.New("a history is being imported: finish it by giving the same import again")
)

// BadRecord is a record that can't be part of a history; nothing of it, or after it, was appended.
type BadRecord struct {
	Line int // from 1
	Err  error
}

func (b *BadRecord) Error() string { return fmt.Sprintf("line %d: %v", b.Line, b.Err) }

func (b *BadRecord) Unwrap() error { return b.Err }

// Export gives each stored event up to a sequence to each, in order. It holds one batch at a time.
func (l *Log) Export(ctx context.Context, upTo events.Sequence, each func(Record) error) error {
	return l.ExportAfter(ctx, 0, upTo, each)
}

// ExportAfter is Export from the event after a sequence on.
func (l *Log) ExportAfter(ctx context.Context, after, upTo events.Sequence, each func(Record) error) error {
	return l.scanAfter(ctx, after, upTo, nil, func(msg natsjs.Msg, meta *natsjs.MsgMetadata) error {
		record := Record{Sequence: events.Sequence(meta.Sequence.Stream), Subject: msg.Subject(), Headers: map[string][]string{}, Time: meta.Timestamp.UTC()}
		for name, values := range msg.Headers() {
			if !isTransport(name) {
				record.Headers[name] = values
			}
		}
		var compact bytes.Buffer
		if err := json.Compact(&compact, msg.Data()); err == nil && bytes.Equal(compact.Bytes(), msg.Data()) {
			record.Data = msg.Data()
		} else {
			record.Base64 = msg.Data()
		}
		return each(record)
	})
}

// isTransport tells headers that were about one append from those that are the event's.
func isTransport(name string) bool {
	return strings.HasPrefix(name, "Nats-") && name != natsjs.MsgIDHeader
}

// Payload is the event's payload.
func (r Record) Payload() []byte {
	if r.Base64 != nil {
		return r.Base64
	}
	return r.Data
}

// Check says what is wrong with a record that should be the event of a sequence.
func (r Record) Check(want events.Sequence) error {
	_, err := r.Event(want)
	return err
}

// Event reads a record that should be the event of a sequence. The error says what is wrong with it.
func (r Record) Event(want events.Sequence) (events.Event, error) {
	if r.Sequence != want {
		return events.Event{}, fmt.Errorf("it is event %d where %d is due: a history has no gaps", r.Sequence, want)
	}
	event, err := decode(r.Headers, r.Payload(), r.Subject, uint64(r.Sequence))
	if err != nil {
		return event, err
	}
	if subject := event.Fact.Entity().Subject(); subject != r.Subject {
		return event, fmt.Errorf("event %d stands under %s and is about %s", r.Sequence, r.Subject, subject)
	}
	if len(r.Subject) > maxSubject {
		return event, fmt.Errorf("event %d stands under a subject of %d bytes, more than %d", r.Sequence, len(r.Subject), maxSubject)
	}
	if event.ID == "" {
		return event, fmt.Errorf("event %d has no %s", r.Sequence, headerID)
	}
	return event, nil
}

// Imported says what an import did.
type Imported struct {
	Appended int             // events that are new in the stream
	Present  int             // events that an earlier, broken import had brought
	Head     events.Sequence // of the stream, after it
}

// Import appends a history to an empty stream: same order, sequences, ids, times. It is checked line by line
// while it comes, so it may break in the middle. The stream then holds the beginning of the history and takes
// nothing but the same import again ([ErrImporting]), which skips what is there. Only one node may run during
// an import. Errors: ErrNotEmpty, ErrDifferent, [*BadRecord], ErrUnavailable, and those of the sequence.
func (l *Log) Import(ctx context.Context, records iter.Seq2[Record, error]) (Imported, error) {
	var done Imported
	if !l.importMu.TryLock() {
		return done, fmt.Errorf("%w: another request does it now", ErrNotEmpty)
	}
	defer l.importMu.Unlock()
	was := l.importing.Swap(true)
	info, err := l.stream.Info(ctx)
	if err != nil {
		l.importing.Store(was)
		return done, fmt.Errorf("begin the import: %w", unavailable(err))
	}
	have := events.Sequence(info.State.LastSeq)
	if info.Config.Metadata[importKey] == "" {
		if have > 0 {
			l.importing.Store(was)
			return done, ErrNotEmpty
		}
		if err := l.markImport(ctx, time.Now().UTC().Format(time.RFC3339)); err != nil {
			l.importing.Store(was)
			return done, err
		}
	}
	done, err = l.bring(ctx, have, records)
	if err == nil || have == 0 && done.Appended == 0 {
		// Finished, or never begun: the stream is like any other.
		if markErr := l.markImport(context.WithoutCancel(ctx), ""); markErr != nil {
			return done, errors.Join(err, markErr)
		}
		l.importing.Store(false)
	}
	return done, err
}

// bring appends the records that the stream doesn't have.
func (l *Log) bring(ctx context.Context, have events.Sequence, records iter.Seq2[Record, error]) (done Imported, err error) {
	var waiting []natsjs.PubAckFuture
	settle := func(atMost int) error {
		for len(waiting) > atMost {
			if err := acknowledged(ctx, waiting[0], done.Head+1); err != nil {
				return err
			}
			waiting = waiting[1:]
			done.Appended++
			done.Head++
		}
		return nil
	}
	done.Head = have
	next := events.Sequence(1)
	for record, err := range records {
		if err != nil {
			return done, errors.Join(err, settle(0))
		}
		if err := record.Check(next); err != nil {
			return done, errors.Join(&BadRecord{Line: int(next), Err: err}, settle(0))
		}
		if next <= have {
			if err := l.same(ctx, record); err != nil {
				return done, err
			}
			done.Present++
			next++
			continue
		}
		msg := &nats.Msg{Subject: record.Subject, Header: nats.Header{}, Data: record.Payload()}
		for name, values := range record.Headers {
			if !isTransport(name) {
				msg.Header[name] = values
			}
		}
		msg.Header[natsjs.MsgIDHeader] = []string{first(msg.Header, headerID)}
		future, err := l.js.PublishMsgAsync(msg, natsjs.WithExpectLastSequence(uint64(next-1)))
		if err != nil {
			return done, errors.Join(fmt.Errorf("import event %d: %w", next, unavailable(err)), settle(0))
		}
		waiting = append(waiting, future)
		if err := settle(importWindow); err != nil {
			return done, err
		}
		next++
	}
	if err := settle(0); err != nil {
		return done, err
	}
	if next <= have {
		return done, fmt.Errorf("%w: this one ends at event %d, the stream at %d", ErrDifferent, next-1, have)
	}
	return done, nil
}

func acknowledged(ctx context.Context, future natsjs.PubAckFuture, want events.Sequence) error {
	select {
	case ack := <-future.Ok():
		if ack.Sequence != uint64(want) {
			return fmt.Errorf("import event %d: the stream made it %d: %w", want, ack.Sequence, ErrDifferent)
		}
		return nil
	case err := <-future.Err():
		if apiCode(err) == natsjs.JSErrCodeStreamWrongLastSequence || apiCode(err) == natsjs.JSErrCodeStreamWrongLastSequenceConstant {
			return fmt.Errorf("import event %d: somebody else appends to the stream: %w", want, ErrNotEmpty)
		}
		return fmt.Errorf("import event %d: %w", want, unavailable(err))
	case <-ctx.Done():
		return ctx.Err()
	}
}

// same compares a record with what the stream has in its place.
func (l *Log) same(ctx context.Context, record Record) error {
	msg, ok, err := l.raw(ctx, record.Sequence)
	if err != nil {
		return err
	}
	if !ok || msg.Subject != record.Subject || first(msg.Header, headerID) != first(record.Headers, headerID) || !bytes.Equal(msg.Data, record.Payload()) {
		return fmt.Errorf("%w: event %d differs", ErrDifferent, record.Sequence)
	}
	return nil
}

// markImport sets the stream's mark, or takes it off.
func (l *Log) markImport(ctx context.Context, mark string) error {
	info, err := l.stream.Info(ctx)
	if err != nil {
		return fmt.Errorf("mark the stream for an import: %w", unavailable(err))
	}
	cfg := info.Config
	metadata := map[string]string{}
	for key, value := range cfg.Metadata {
		if !strings.HasPrefix(key, "_nats.") { // the server's own
			metadata[key] = value
		}
	}
	if metadata[importKey] = mark; mark == "" {
		delete(metadata, importKey)
	}
	cfg.Metadata = metadata
	if _, err := l.js.UpdateStream(ctx, cfg); err != nil {
		return fmt.Errorf("mark the stream for an import: %w", unavailable(err))
	}
	return nil
}
