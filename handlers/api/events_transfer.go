package api

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"strconv"
	"time"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/problem"
)

const (
	mediaTypeLines = "application/jsonl"
	maxLineBytes   = 32 << 20         // of an import; an event has at most 4 MiB, and escapes make it longer
	importPause    = 30 * time.Second // that a client may make between two lines
)

// exportEvents answers GET /api/events/export with all events up to now, one jetstream.Record a line, and
// Imgsrv-Sequence: the sequence of the last one. An answer that breaks off has no end (no last chunk).
// Statuses: 200, 401, 403, 503.
func (s *server) exportEvents(w http.ResponseWriter, r *http.Request) {
	head, err := s.Events.Head(r.Context())
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	h := w.Header()
	h.Set("Content-Type", mediaTypeLines)
	h.Set("Cache-Control", "no-store")
	h.Set(headerSequence, strconv.FormatUint(uint64(head), 10))
	paced := &pacedWriter{ResponseWriter: w, request: r, log: s.Log, control: http.NewResponseController(w)}
	defer paced.end()
	if r.Method == http.MethodHead {
		return
	}
	buffered := bufio.NewWriterSize(paced, 64<<10)
	encoder := json.NewEncoder(buffered)
	encoder.SetEscapeHTML(false) // the payloads go as they are
	err = s.Events.Export(r.Context(), head, func(record jetstream.Record) error { return encoder.Encode(record) })
	if err = errors.Join(err, buffered.Flush()); err != nil {
		s.Log.WarnContext(r.Context(), "export broke off", "error", err, "request_id", requestID(r.Context()))
		panic(http.ErrAbortHandler)
	}
}

// importEvents answers POST /api/events/import: it appends the lines of an export to an empty stream. When it
// breaks in the middle, the stream has the beginning, nothing else may be appended, and the same request goes on.
// Statuses: 200 with what was done and Imgsrv-Sequence, 401, 403, 409 the stream has another history, 422 a line
// that can't be part of one, 503.
func (s *server) importEvents(w http.ResponseWriter, r *http.Request) {
	control := http.NewResponseController(w)
	done, err := s.Events.Import(r.Context(), recordsOf(r.Body, func() {
		_ = control.SetReadDeadline(time.Now().Add(importPause)) // a writer that knows no deadlines goes without
	}))
	_ = control.SetReadDeadline(time.Time{})
	var bad *jetstream.BadRecord
	switch {
	case err == nil:
	case errors.Is(err, jetstream.ErrNotEmpty), errors.Is(err, jetstream.ErrDifferent):
		err = problem.New(problem.CodeNotEmpty, err.Error())
	case errors.As(err, &bad):
		text := fmt.Sprintf("line %d can't be imported: %v", bad.Line, bad.Err)
		if done.Head > 0 {
			text += fmt.Sprintf("; the stream has the %d events before it, and takes nothing but the rest of this history", done.Head)
		}
		err = &events.Error{Code: events.CodeInvalid, Text: text}
	case errors.Is(err, errBrokenBody):
		err = problem.New(problem.CodeBadRequest, fmt.Sprintf("the import broke off after event %d: give it again, and it goes on", done.Head))
	}
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	w.Header().Set(headerSequence, strconv.FormatUint(uint64(done.Head), 10))
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"appended": done.Appended, "present": done.Present, "head": done.Head}) // a client that went away asks again
}

var errBrokenBody = errors.New("the request's body broke off")

// recordsOf reads the lines of an import; moved is called now and then, while lines come.
func recordsOf(body io.Reader, moved func()) iter.Seq2[jetstream.Record, error] {
	return func(yield func(jetstream.Record, error) bool) {
		lines := bufio.NewScanner(body)
		lines.Buffer(make([]byte, 64<<10), maxLineBytes)
		number := 0
		for moved(); lines.Scan(); number++ {
			if number%100 == 0 {
				moved()
			}
			var record jetstream.Record
			if err := json.Unmarshal(lines.Bytes(), &record); err != nil {
				yield(record, &jetstream.BadRecord{Line: number + 1, Err: fmt.Errorf("it is no line of an export: %w", err)})
				return
			}
			if !yield(record, nil) {
				return
			}
		}
		switch err := lines.Err(); {
		case errors.Is(err, bufio.ErrTooLong):
			yield(jetstream.Record{}, &jetstream.BadRecord{Line: number + 1, Err: fmt.Errorf("it is longer than %d bytes", maxLineBytes)})
		case err != nil:
			yield(jetstream.Record{}, fmt.Errorf("%w: %w", errBrokenBody, err))
		}
	}
}
