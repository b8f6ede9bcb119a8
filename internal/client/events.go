package client

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Event is a recorded fact.
type Event struct {
	Sequence    uint64          `json:"sequence"`
	ID          string          `json:"id"`
	Source      string          `json:"source,omitempty"`
	Type        string          `json:"type"`
	Time        time.Time       `json:"time"`
	Subject     string          `json:"subject"` // what it is about, such as debian-bookworm/12.5.0
	NATSSubject string          `json:"nats_subject,omitempty"`
	Actor       string          `json:"actor,omitempty"`
	Correlation string          `json:"correlation_id,omitempty"`
	Causation   string          `json:"causation_id,omitempty"`
	TraceParent string          `json:"trace_parent,omitempty"`
	Data        json.RawMessage `json:"data"`
}

// EventFilter says which events are wanted; the zero value: all. A type is exact, or a beginning and '*'.
type EventFilter struct {
	Images []string
	Types  []string
}

// Event reads one event.
func (c *Client) Event(ctx context.Context, sequence uint64) (*Event, error) {
	return ask[Event](ctx, c, http.MethodGet, route("api", "events", strconv.FormatUint(sequence, 10)), nil)
}

// Follow gives events to each, in order and without gaps, as they happen, until ctx ends or each has an error:
// that is its own error then. after is the sequence to begin behind, 0 for all events; nil: only new ones. A
// broken connection is resumed after the last event that each got.
func (c *Client) Follow(ctx context.Context, after *uint64, filter EventFilter, each func(Event) error) error {
	query := url.Values{}
	for _, image := range filter.Images {
		query.Add("image", image)
	}
	for _, t := range filter.Types {
		query.Add("type", t)
	}
	f := &following{client: c, ref: "/api/events?" + query.Encode(), each: each}
	if after != nil {
		f.last = strconv.FormatUint(*after, 10)
	}
	if err := c.firstAgain(ctx, func() error { return f.connect(ctx) }); err != nil {
		return err
	}
	tries := attempts{Retry: c.retry}
	for {
		before := f.last
		err := f.read(ctx)
		var own *callerError
		if errors.As(err, &own) {
			return own.error
		}
		for {
			if f.last != before {
				tries.progress()
			}
			if err := tries.wait(ctx, err); err != nil {
				return err
			}
			before = f.last
			if err = f.connect(ctx); err == nil {
				break
			}
			if !transient(err) {
				return err
			}
		}
	}
}

// following is a stream of events over as many connections as it takes.
type following struct {
	client *Client
	ref    string
	last   string // Last-Event-ID; "" before the first
	each   func(Event) error

	answer *http.Response
	moved  func()
	stop   func()
	ctx    context.Context //nolint:containedctx // of the connection, which read ends
}

// callerError is an error of the function that gets the events.
type callerError struct{ error }

func (f *following) connect(ctx context.Context) error {
	watched, moved, stop := f.client.watch(ctx)
	r, err := f.client.request(watched, http.MethodGet, f.ref, nil)
	if err != nil {
		stop()
		return err
	}
	r.Header.Set("Accept", "text/event-stream")
	if f.last != "" {
		r.Header.Set("Last-Event-ID", f.last)
	}
	answer, err := f.client.send(r)
	if err != nil {
		stop()
		return stalled(ctx, watched, f.server(), err)
	}
	f.answer, f.moved, f.stop, f.ctx = answer, moved, stop, watched
	return nil
}

func (f *following) server() string { return f.client.base.Scheme + "://" + f.client.base.Host }

// read gives the events of one connection to each. It always ends with an error.
func (f *following) read(ctx context.Context) error {
	defer f.stop()
	defer f.answer.Body.Close() //nolint:errcheck // only read
	lines := bufio.NewReaderSize(f.answer.Body, 64<<10)
	var id, data, comment string
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = errors.New("the server ended the stream: " + orElse(comment, "no reason given"))
			}
			return stalled(ctx, f.ctx, f.server(), &ConnectionError{Server: f.server(), Err: err})
		}
		f.moved()
		line = strings.TrimRight(line, "\r\n")
		name, value, _ := strings.Cut(line, ":")
		value = strings.TrimPrefix(value, " ")
		switch {
		case line == "":
			if data != "" {
				var e Event
				if err := json.Unmarshal([]byte(data), &e); err != nil {
					return &callerError{fmt.Errorf("event %s: the answer is not imgsrv's: %w", id, err)}
				}
				if err := f.each(e); err != nil {
					return &callerError{err}
				}
			}
			if id != "" {
				f.last = id
			}
			id, data = "", ""
		case name == "":
			comment = value
		case name == "id":
			id = value
		case name == "data":
			data += value
		}
	}
}

func orElse(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// Export writes the whole history to w, one event a line, and gives the sequence of the last. An answer that
// breaks off is an error.
func (c *Client) Export(ctx context.Context, w io.Writer) (head uint64, err error) {
	r, err := c.request(ctx, http.MethodGet, "/api/events/export", nil)
	if err != nil {
		return 0, err
	}
	answer, err := c.send(r)
	if err != nil {
		return 0, err
	}
	defer answer.Body.Close() //nolint:errcheck // only read
	if head, err = strconv.ParseUint(answer.Header.Get("Imgsrv-Sequence"), 10, 64); err != nil {
		return 0, errors.New("the answer is not imgsrv's: it has no Imgsrv-Sequence")
	}
	lines := &lineCounter{w: w}
	if _, err := io.Copy(lines, answer.Body); err != nil {
		if lines.failed != nil {
			return 0, fmt.Errorf("write the export: %w", lines.failed)
		}
		return 0, &ConnectionError{Server: c.base.Scheme + "://" + c.base.Host, Err: err}
	}
	if lines.count != head {
		return 0, fmt.Errorf("the export has %d of %d events: do it again", lines.count, head)
	}
	return head, nil
}

type lineCounter struct {
	w      io.Writer
	count  uint64
	failed error
}

func (l *lineCounter) Write(b []byte) (int, error) {
	n, err := l.w.Write(b)
	l.count += uint64(strings.Count(string(b[:n]), "\n"))
	l.failed = err
	return n, err
}

// Imported says what an import did.
type Imported struct {
	Appended int    `json:"appended"` // new in the stream
	Present  int    `json:"present"`  // brought by an earlier, broken import
	Head     uint64 `json:"head"`
}

// Import gives an export to a server whose stream is empty, or holds the beginning of the same export.
func (c *Client) Import(ctx context.Context, lines io.Reader) (*Imported, error) {
	r, err := c.request(ctx, http.MethodPost, "/api/events/import", lines)
	if err != nil {
		return nil, err
	}
	r.Header.Set("Content-Type", "application/jsonl")
	r.Header.Set("Expect", "100-continue") // a refusal comes before gigabytes are sent
	answer, err := c.send(r)
	if err != nil {
		return nil, err
	}
	defer discard(answer)
	var done Imported
	if err := json.NewDecoder(io.LimitReader(answer.Body, maxAnswerBytes)).Decode(&done); err != nil {
		return nil, fmt.Errorf("the answer is not imgsrv's: %w", err)
	}
	return &done, nil
}

// HistoryEvent is a line of an image's story.
type HistoryEvent struct {
	Sequence uint64    `json:"sequence"`
	Time     time.Time `json:"time"`
	Type     string    `json:"type"`
	Actor    string    `json:"actor,omitempty"`
	Who      string    `json:"who,omitempty"` // the principal behind it
	Version  string    `json:"version,omitempty"`
	Text     string    `json:"text"`
}

// History reads an image's story, oldest first; version "" for all of it.
func (c *Client) History(ctx context.Context, image, version string) ([]HistoryEvent, error) {
	ref := route("api", "images", image, "history")
	if version != "" {
		ref += "?" + url.Values{"version": {version}}.Encode()
	}
	var page struct {
		Events []HistoryEvent `json:"events"`
	}
	if err := c.call(ctx, http.MethodGet, ref, nil, &page); err != nil {
		return nil, err
	}
	return page.Events, nil
}
