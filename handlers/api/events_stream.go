package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/access"
	"github.com/imgsrv/imgsrv/handlers/problem"
)

const (
	// followBuffer is how many events are read ahead for one follower; what is beyond stays in the log.
	followBuffer = 64
	// followRetry is when a client that lost the connection comes back.
	followRetry = 2 * time.Second
)

// follow answers GET /api/events with the events as server-sent events (WHATWG HTML, server-sent events), for as
// long as the client listens. Last-Event-ID, or the parameter after, is the sequence to go on behind: 0 means
// from the first event; without one come only new events. Parameters image and type filter. The stream is read
// from the log as fast as the client takes it, so nothing is left out: who is too slow is cut, and resumes.
// Statuses: 200, 400 a wrong parameter, 401 an unknown token or types that need one, 503.
func (s *server) follow(w http.ResponseWriter, r *http.Request) {
	ctx := r.Context()
	filter, err := filterOf(r)
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	after, err := s.followAfter(r)
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	audience := newAudience(s.Events, access.From(ctx))
	subjects, some := filter.subjects(audience)
	if !some {
		s.refuse(w, r, problem.New(problem.CodeUnauthorized, "without a token there are only events of versions, images and aliases; with this filter none is left"))
		return
	}
	leave, ok := s.eventClients.enter(r.RemoteAddr, access.From(ctx).Name)
	if !ok {
		s.refuse(w, r, problem.New(problem.CodeUnavailable, "too many clients follow the events, or too many from here: try again"))
		return
	}
	defer leave()
	tail, err := s.Events.TailBuffered(ctx, after, followBuffer, subjects...)
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	defer func() { tail.Close() }()

	out := s.beginEvents(w)
	if r.Method == http.MethodHead {
		return
	}
	defer out.end()
	// An id without data is no event, but the client remembers it: so a connection that breaks before the first
	// event is resumed where it began.
	if !out.send(fmt.Appendf(nil, "retry: %d\nid: %d\n\n", followRetry.Milliseconds(), after)) {
		return
	}
	for {
		batch, err := s.nextEvents(ctx, tail)
		var unreadable *jetstream.Undecodable
		switch {
		case errors.As(err, &unreadable):
			// A newer release wrote it. Only who sees everything may see what can't be judged.
			if batch = nil; audience.all {
				batch = []events.Event{unreadable.Event}
			}
			tail.Close()
			next, err := s.Events.TailBuffered(ctx, unreadable.Event.Sequence, followBuffer, subjects...)
			if err != nil {
				out.comment("the event log is away; come back")
				return
			}
			tail = next
		case ctx.Err() != nil:
			out.comment("the server stops; come back") // or the client is gone, which needs no comment
			return
		case err != nil:
			s.Log.WarnContext(ctx, "a follower of the events was cut", "error", err, "request_id", requestID(ctx))
			out.comment("the event log is away; come back")
			return
		}
		if !audience.who.Alive() {
			out.comment("the credentials are no longer good, or may do something else now; come back")
			return
		}
		if !s.sendEvents(ctx, out, audience, filter, batch) {
			return
		}
		if time.Since(out.sent) >= s.EventHeartbeat && !out.comment("alive") {
			return
		}
	}
}

// followAfter is the sequence that a follower wants to go on behind.
func (s *server) followAfter(r *http.Request) (events.Sequence, error) {
	value := r.Header.Get("Last-Event-ID")
	if value == "" {
		value = r.URL.Query().Get("after")
	}
	head, err := s.Events.Head(r.Context())
	if err != nil || value == "" {
		return head, err
	}
	number, err := strconv.ParseUint(value, 10, 64)
	if err != nil {
		return 0, problem.New(problem.CodeBadRequest, "Last-Event-ID, or after, is the sequence of an event, or 0 for all events")
	}
	if events.Sequence(number) > head {
		return 0, problem.New(problem.CodeBadRequest, fmt.Sprintf("the last event is %d: sequence %d is of another server", head, number))
	}
	return events.Sequence(number), nil
}

// nextEvents waits for events, at most until the next heartbeat is due; then there may be none.
func (s *server) nextEvents(ctx context.Context, tail *jetstream.Tail) ([]events.Event, error) {
	wait, cancel := context.WithTimeout(ctx, s.EventHeartbeat)
	defer cancel()
	batch, err := tail.Next(wait, followBuffer)
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		return nil, nil
	}
	return batch, err
}

func (s *server) sendEvents(ctx context.Context, out *eventWriter, audience *audience, filter eventFilter, batch []events.Event) bool {
	for _, event := range batch {
		visible, err := audience.maySee(ctx, event)
		if err != nil {
			out.comment("the event log is away; come back")
			return false
		}
		if !visible || !filter.wants(event) {
			continue
		}
		text, err := frame(event)
		if err != nil {
			s.Log.ErrorContext(ctx, "event not sent", "sequence", event.Sequence, "error", err)
			out.comment(fmt.Sprintf("event %d can't be sent", event.Sequence))
			return false
		}
		if !out.send(text) {
			return false
		}
	}
	return true
}

// frame is an event as it goes over the line.
func frame(event events.Event) ([]byte, error) {
	data, err := json.Marshal(eventViewOf(event)) // without line breaks
	if err != nil {
		return nil, fmt.Errorf("encode event %d: %w", event.Sequence, err)
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "id: %d\nevent: %s\ndata: %s\n\n", event.Sequence, event.Type, data)
	return b.Bytes(), nil
}

// eventWriter sends pieces, each within a time of its own.
type eventWriter struct {
	w        http.ResponseWriter
	control  *http.ResponseController
	patience time.Duration
	sent     time.Time // when the last piece was
}

// beginEvents begins an answer of server-sent events.
func (s *server) beginEvents(w http.ResponseWriter) *eventWriter {
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Accel-Buffering", "no") // nginx
	w.WriteHeader(http.StatusOK)
	return &eventWriter{w: w, control: http.NewResponseController(w), patience: s.EventPatience}
}

// send sends one piece whole, or says that there is nobody to send to any more.
func (o *eventWriter) send(piece []byte) bool {
	began := time.Now()
	if !o.write(piece) {
		return false
	}
	if took := time.Since(began); took > o.patience {
		o.write(fmt.Appendf(nil, ": cut: this connection took %s for one event and is too slow; resume with Last-Event-ID\n\n", took.Round(time.Millisecond)))
		return false
	}
	return true
}

func (o *eventWriter) comment(text string) bool { return o.send([]byte(": " + text + "\n\n")) }

func (o *eventWriter) write(piece []byte) bool {
	// A writer that knows no deadlines goes without.
	if err := o.control.SetWriteDeadline(time.Now().Add(3 * o.patience)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return false
	}
	if _, err := o.w.Write(piece); err != nil { //nolint:gosec // G705: an event stream of JSON, with nosniff; no HTML
		return false
	}
	o.sent = time.Now()
	return o.control.Flush() == nil
}

// end takes the deadline off: the next answer on the connection has nothing to do with it.
func (o *eventWriter) end() { _ = o.control.SetWriteDeadline(time.Time{}) }
