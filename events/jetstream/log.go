package jetstream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"

	"github.com/imgsrv/imgsrv/events"
)

// StreamName is the stream of all facts.
const StreamName = "IMGSRV_EVENTS"

// identityKey marks the stream with an id of its own, so that a position derived from another stream (a
// restored or imported one) is recognised.
const identityKey = "imgsrv-stream-id"

// Errors that callers decide on.
var (
	// ErrConflict: an entity has moved on since it was read. Read and decide again.
	ErrConflict = errors.New("the entity has changed meanwhile")
	// ErrUnavailable: the event log doesn't answer. Whether an append took place was looked up where
	// possible; after this error the same command with the same cause may be given again.
	ErrUnavailable = errors.New("the event log is unavailable")
)

// Config says how a log is opened.
type Config struct {
	Source   string // ce-source of what this node appends
	Replicas int    // of the stream, where it has to be made; 0 means 1
	Log      *slog.Logger
	Meter    metric.Meter
	Tracer   trace.Tracer     // nil: no traces
	Clock    func() time.Time // nil means time.Now
	// Appending, where given, is called before facts are sent to be stored. It is for tests that look what is on disk by then.
	Appending func([]events.Change)
}

// Log is the stream of facts.
type Log struct {
	js       natsjs.JetStream
	stream   natsjs.Stream
	identity string
	source   string
	log      *slog.Logger
	clock    func() time.Time
	before   func([]events.Change)
	batches  chan struct{} // bounds atomic batches in flight: the server takes 50 a stream
	queue    queue         // of appends that wait to be stored
	meters   meters
	tracer   trace.Tracer // nil: none
	stuck    stuckEvents

	importing atomic.Bool // nothing may be appended; see Import
	importMu  sync.Mutex  // held by the one import
}

// Open finds the stream, or makes it.
func Open(ctx context.Context, nc *nats.Conn, cfg Config) (*Log, error) {
	js, err := natsjs.New(nc)
	if err != nil {
		return nil, fmt.Errorf("open JetStream: %w", err)
	}
	stream, err := ensureStream(ctx, js, cfg.Replicas)
	if err != nil {
		return nil, err
	}
	l := &Log{js: js, stream: stream, source: cfg.Source, log: cfg.Log, tracer: cfg.Tracer, clock: cfg.Clock, before: cfg.Appending, batches: make(chan struct{}, 40), queue: newQueue()}
	if l.clock == nil {
		l.clock = time.Now
	}
	l.identity = stream.CachedInfo().Config.Metadata[identityKey]
	if since := stream.CachedInfo().Config.Metadata[importKey]; since != "" {
		l.importing.Store(true)
		l.log.Warn("an import of events isn't finished; until it is, nothing can be published: give the same import again, or begin with an empty data folder", "since", since)
	}
	if l.meters, err = newMeters(cfg.Meter, l); err != nil {
		return nil, err
	}
	return l, nil
}

func ensureStream(ctx context.Context, js natsjs.JetStream, replicas int) (natsjs.Stream, error) {
	stream, err := js.Stream(ctx, StreamName)
	if err == nil {
		cfg := stream.CachedInfo().Config
		if cfg.Metadata[identityKey] == "" || !cfg.AllowAtomicPublish {
			return nil, fmt.Errorf("stream %s exists and was not made by imgsrv (it lacks %s or allow_atomic): give imgsrv a NATS account of its own", StreamName, identityKey)
		}
		return stream, nil
	}
	if !errors.Is(err, natsjs.ErrStreamNotFound) {
		return nil, fmt.Errorf("look for stream %s: %w", StreamName, err)
	}
	stream, err = js.CreateStream(ctx, natsjs.StreamConfig{
		Name: StreamName, Description: "all that happened in imgsrv", Subjects: []string{events.SubjectAll},
		Storage: natsjs.FileStorage, Replicas: max(replicas, 1), Retention: natsjs.LimitsPolicy, Discard: natsjs.DiscardNew,
		DenyDelete: true, DenyPurge: true, AllowDirect: true, AllowAtomicPublish: true, Duplicates: 2 * time.Minute,
		Metadata: map[string]string{identityKey: uuid.NewString()},
	})
	if errors.Is(err, natsjs.ErrStreamNameAlreadyInUse) { // another node was faster
		return js.Stream(ctx, StreamName)
	}
	if err != nil {
		return nil, fmt.Errorf("make stream %s: %w", StreamName, err)
	}
	return stream, nil
}

// Identity tells this stream from any other, also from one of the same name.
func (l *Log) Identity() string { return l.identity }

// Head is the sequence of the stream's last event; 0 for an empty stream.
func (l *Log) Head(ctx context.Context) (events.Sequence, error) {
	info, err := l.stream.Info(ctx)
	if err != nil {
		return 0, fmt.Errorf("read the stream's head: %w", unavailable(err))
	}
	return events.Sequence(info.State.LastSeq), nil
}

// maxSubject is the length of the longest subject that is asked for, bytes: more than names by the rules can make. A NATS server
// takes 4096 bytes for the line of a request, and ends the connection that sends a longer one; nats.go then never connects again.
const maxSubject = 3000

// Last reads the last event of an entity; ok is false when it has none. A log that gives no answer within five seconds is
// unavailable.
func (l *Log) Last(ctx context.Context, entity events.Entity) (event events.Event, ok bool, err error) {
	subject := entity.Subject()
	if len(subject) > maxSubject { // of a name that no rule lets through
		return events.Event{}, false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	msg, err := l.stream.GetLastMsgForSubject(ctx, subject)
	if errors.Is(err, natsjs.ErrMsgNotFound) {
		return events.Event{}, false, nil
	}
	if err != nil {
		return events.Event{}, false, fmt.Errorf("read the last event of %s %s: %w", entity.Kind, entity.ID, unavailable(err))
	}
	event, err = decode(msg.Header, msg.Data, msg.Subject, msg.Sequence)
	if err != nil {
		return event, true, err
	}
	return event, true, nil
}

// unavailable marks what a caller can only wait out. A cancelled context stays what it is.
func unavailable(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, ErrConflict) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}
