package jetstream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel/metric/noop"

	"github.com/imgsrv/imgsrv/events"
)

// SubscribeConfig says what a subscriber wants and how it is remembered.
type SubscribeConfig struct {
	// Durable is the name under which the server remembers how far the subscriber has come: the name that it was
	// added by. Two processes with one name share the events between them. Required.
	Durable string
	// From is the first event that a new name gets; 0 and 1: the stream's first. Subscribers that were added have
	// a name that the server knows already: From, Forget and the order were then said at `imgsrv subscribers add`.
	From events.Sequence
	// Images, where given, leaves only events about these images.
	Images []string
	// Workers, where more than one, are how many events are handled at once, in no particular order. With 0 or 1
	// each event waits until the one before it is handled.
	Workers int
	// Forget is how long after the subscriber's last visit the server forgets it; 0 means 30 days.
	Forget time.Duration
	// Logger gets what goes wrong on the way; nil for none.
	Logger *slog.Logger
}

// forgetSubscriber is how long a subscriber may stay away: the server has room for a bounded number.
const forgetSubscriber = 30 * 24 * time.Hour

// Handler is a function for the events of one type; [Handle] makes one.
type Handler struct {
	kind   string // of the entities that its facts are about; "" for a type that can't be one
	handle func(context.Context, Delivery) (mine bool, err error)
}

// Handle calls a function for each event of one type of fact, whatever version of the type it was stored as:
//
//	jetstream.Handle(func(ctx context.Context, d jetstream.Delivery, p events.VersionPublished) error { … })
//
// The event is acknowledged when the function returns nil. After an error it comes again: after the delay of
// a [*RetryAfter], else after a growing delay of up to about a minute, for as long as it takes. An event may
// come twice, when an acknowledgement was lost; its ID and Sequence are then the same. A function may take
// long: the server is told that it works.
func Handle[F events.Fact](f func(context.Context, Delivery, F) error) Handler {
	var zero F
	h := Handler{handle: func(ctx context.Context, d Delivery) (bool, error) {
		fact, ok := d.Fact.(F)
		if !ok {
			return false, nil
		}
		return true, f(ctx, d, fact)
	}}
	if any(zero) != nil { // an interface is no type of fact
		h.kind = zero.Entity().Kind
	}
	return h
}

// Subscribe hands the events that the handlers want to them, at least once each, until ctx ends; then it waits
// for the handler that runs and returns nil. The connection is a subscriber's (see [Connect]), whose name is then the
// durable's, or one with the right to make consumers. Broken, it is waited for, if its options let it reconnect. The
// error wraps ErrUnavailable when the server doesn't answer, as it doesn't to who asks for another's durable, or
// when the connection is closed.
//
// A process that begins again under the same name goes on after the last event that was acknowledged.
func Subscribe(ctx context.Context, nc *nats.Conn, cfg SubscribeConfig, handlers ...Handler) error {
	var subjects []string
	for _, h := range handlers {
		if h.kind == "" {
			return errors.New("subscribe: a handler is for one type of fact, such as events.VersionPublished")
		}
		for _, subject := range events.SubjectsAbout(h.kind, cfg.Images...) {
			if !slices.Contains(subjects, subject) {
				subjects = append(subjects, subject)
			}
		}
	}
	if cfg.Durable == "" || len(handlers) == 0 {
		return errors.New("subscribe: a subscriber has a durable name and at least one handler")
	}
	l, err := openReader(nc, cfg.Logger)
	if err != nil {
		return fmt.Errorf("subscribe %s: %w", cfg.Durable, err)
	}
	if cfg.Forget == 0 {
		cfg.Forget = forgetSubscriber
	}
	consumer := Consumer{Forget: cfg.Forget, Name: cfg.Durable, Subjects: subjects, From: cfg.From, Workers: cfg.Workers, InOrder: cfg.Workers <= 1}
	err = l.Consume(ctx, consumer, func(ctx context.Context, d Delivery) error {
		if len(cfg.Images) > 0 && !slices.Contains(cfg.Images, events.ImageOf(d.Fact)) {
			return nil
		}
		for _, h := range handlers {
			if mine, err := h.handle(ctx, d); mine && err != nil {
				return err
			}
		}
		return nil
	})
	return explain(nc, err)
}

// explain adds what NATS said about a subject that the client has no right to: a request to it is just not
// answered.
func explain(nc *nats.Conn, err error) error {
	if violation := nc.LastError(); err != nil && errors.Is(violation, nats.ErrPermissionViolation) {
		return fmt.Errorf("%w (%w: a subscriber has the durable of its own name, and no other)", err, violation)
	}
	return err
}

// Position says how far a durable subscriber has come.
type Position struct {
	Acknowledged events.Sequence // every event up to it that the subscriber wants is handled
	Pending      uint64          // events that it wants and that weren't delivered yet
	Unsettled    int             // events that are being handled or wait to be tried again
}

// SubscriberPosition reads how far a durable subscriber has come; ok is false for a name that the server
// doesn't know.
func SubscriberPosition(ctx context.Context, nc *nats.Conn, durable string) (p Position, ok bool, err error) {
	l, err := openReader(nc, nil)
	if err != nil {
		return p, false, fmt.Errorf("read the position of %s: %w", durable, err)
	}
	p, ok, err = l.position(ctx, durable)
	return p, ok, explain(nc, err)
}

func (l *Log) position(ctx context.Context, durable string) (p Position, ok bool, err error) {
	consumer, err := l.js.Consumer(ctx, StreamName, durable)
	if errors.Is(err, natsjs.ErrConsumerNotFound) {
		return p, false, nil
	}
	if err != nil {
		return p, false, fmt.Errorf("read the position of %s: %w", durable, unavailable(err))
	}
	info := consumer.CachedInfo()
	return Position{Acknowledged: events.Sequence(info.AckFloor.Stream), Pending: info.NumPending, Unsettled: info.NumAckPending}, true, nil
}

// Unsubscribe forgets a durable name. One that the server doesn't know is no error. It needs the right to remove
// consumers, which subscribers don't have: theirs go with `imgsrv subscribers remove`.
func Unsubscribe(ctx context.Context, nc *nats.Conn, durable string) error {
	l, err := openReader(nc, nil)
	if err != nil {
		return fmt.Errorf("unsubscribe %s: %w", durable, err)
	}
	if err := l.js.DeleteConsumer(ctx, StreamName, durable); err != nil && !errors.Is(err, natsjs.ErrConsumerNotFound) {
		return explain(nc, fmt.Errorf("unsubscribe %s: %w", durable, unavailable(err)))
	}
	return nil
}

// openReader is Open for somebody who may only read: it makes no stream, asks for none, and measures nothing.
func openReader(nc *nats.Conn, log *slog.Logger) (*Log, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	js, err := natsjs.New(nc)
	if err != nil {
		return nil, fmt.Errorf("open JetStream: %w", err)
	}
	l := &Log{js: js, log: log, clock: time.Now}
	if l.meters, err = newMeters(noop.Meter{}, l); err != nil {
		return nil, err
	}
	return l, nil
}
