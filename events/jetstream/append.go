package jetstream

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/jetstreamext"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/internal/faults"
	"github.com/imgsrv/imgsrv/internal/pause"
	"github.com/imgsrv/imgsrv/internal/tracecontext"
)

// Cause says who wants an append and why; it goes into the envelope.
type Cause struct {
	// Key names the intent, such as "job <id> verify 1": the ids of the events derive from it, so that an
	// append given again after a lost acknowledgement is the same event. Empty: random ids.
	Key         string
	Actor       string
	Correlation string
	Causation   string
}

const (
	appendTimeout   = 5 * time.Second
	lookTimeout     = 5 * time.Second  // for one event: of a log that hangs, who asks hears in time
	batchTimeout    = 10 * time.Second // as long as the server keeps an unfinished one
	queueTimeout    = 20 * time.Second // of a batch for one of the places
	conflictRetries = 10
	busyRetries     = 50
)

// Decide loads, decides and appends: decide reads the states it needs from the log, calls a rule and
// returns its changes. On a conflict it is called again, a bounded number of times; then the error wraps
// ErrConflict. No changes mean that nothing has to happen: the sequence is then 0.
func (l *Log) Decide(ctx context.Context, cause Cause, decide func(context.Context) ([]events.Change, error)) (events.Sequence, error) {
	for attempt := 0; ; attempt++ {
		changes, err := decide(ctx)
		if err != nil || len(changes) == 0 {
			return 0, err
		}
		sequence, err := l.Append(ctx, cause, changes...)
		if !errors.Is(err, ErrConflict) || attempt == conflictRetries {
			return sequence, err
		}
		if pause.For(ctx, time.Duration(1+rand.IntN(5<<min(attempt, 6)))*time.Millisecond) != nil {
			return 0, ctx.Err()
		}
	}
}

// Append stores all changes or none, and answers with the sequence of the last one once they are synced. The events are of the trace
// that ctx belongs to.
// The error wraps ErrConflict when an entity has moved on, ErrUnavailable when the log doesn't answer.
func (l *Log) Append(ctx context.Context, cause Cause, changes ...events.Change) (events.Sequence, error) {
	if l.importing.Load() {
		return 0, fmt.Errorf("append: %w: %w", ErrUnavailable, ErrImporting)
	}
	started := time.Now()
	ctx, span := l.startAppend(ctx, changes)
	traceParent := tracecontext.Of(ctx)
	msgs := make([]*nats.Msg, len(changes))
	ids := make([]string, len(changes))
	now := l.clock()
	for i, change := range changes {
		ids[i] = eventID(cause.Key, change.Fact)
		msg, err := encode(events.Meta{ID: ids[i], Source: l.source, Time: now, Actor: cause.Actor,
			Correlation: cause.Correlation, Causation: cause.Causation, TraceParent: traceParent}, change.Fact)
		if err != nil {
			endAppend(span, 0, err)
			return 0, err
		}
		// The expectation is about the very subject that the message goes to: the server doesn't check that.
		msg.Header[natsjs.ExpectedLastSubjSeqHeader] = []string{strconv.FormatUint(uint64(change.Expect), 10)}
		msg.Header[natsjs.MsgIDHeader] = []string{ids[i]}
		msgs[i] = msg
	}
	if l.before != nil {
		l.before(changes)
	}
	if faults.On {
		faults.Point("before append", typesOf(changes))
		faults.During("append", typesOf(changes))
	}
	sequence, err := l.queue.publish(ctx, l, msgs)
	if err != nil {
		sequence, err = l.settle(ctx, changes, ids, err)
	}
	if faults.On {
		faults.Point("after append", typesOf(changes))
	}
	l.meters.appended(ctx, len(changes), time.Since(started), err)
	endAppend(span, sequence, err)
	return sequence, err
}

// startAppend begins the span of an append; nil where there are no traces.
func (l *Log) startAppend(ctx context.Context, changes []events.Change) (context.Context, trace.Span) {
	if l.tracer == nil || len(changes) == 0 {
		return ctx, nil
	}
	types := make([]string, len(changes))
	for i, c := range changes {
		types[i] = string(c.Fact.Type())
	}
	return l.tracer.Start(ctx, "append "+types[0], trace.WithSpanKind(trace.SpanKindProducer),
		trace.WithAttributes(attribute.StringSlice("imgsrv.event.types", types), attribute.String("imgsrv.event.subject", changes[0].Fact.Entity().Subject())))
}

func endAppend(span trace.Span, sequence events.Sequence, err error) {
	if span == nil {
		return
	}
	span.SetAttributes(attribute.Int64("imgsrv.event.sequence", int64(sequence)))
	if err != nil {
		span.SetStatus(codes.Error, err.Error())
	}
	span.End()
}

// publishAlone sends what one append stores, and answers with the sequence of its last message.
func (l *Log) publishAlone(ctx context.Context, msgs []*nats.Msg) (events.Sequence, error) {
	if len(msgs) == 1 {
		ctx, cancel := context.WithTimeout(ctx, appendTimeout)
		defer cancel()
		ack, err := l.js.PublishMsg(ctx, msgs[0])
		if err != nil {
			return 0, err
		}
		return events.Sequence(ack.Sequence), nil
	}
	// Many that wait their turn are no outage of the log: the time to append begins with the turn.
	queued := time.NewTimer(queueTimeout)
	defer queued.Stop()
	select {
	case l.batches <- struct{}{}:
		defer func() { <-l.batches }()
	case <-queued.C:
		return 0, context.DeadlineExceeded
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	return l.publishBatch(ctx, msgs)
}

// publishBatch sends messages as one atomic batch, which the server may have no place for at once.
func (l *Log) publishBatch(ctx context.Context, msgs []*nats.Msg) (events.Sequence, error) {
	ctx, cancel := context.WithTimeout(ctx, batchTimeout)
	defer cancel()
	for attempt := 0; ; attempt++ {
		ack, err := jetstreamext.PublishMsgBatch(ctx, l.js, msgs)
		if err == nil {
			return events.Sequence(ack.Sequence), nil
		}
		// Other nodes' batches count too.
		if code := apiCode(err); attempt == busyRetries || code != jetstreamext.JSErrCodeBatchPublishTooManyInflight && code != jetstreamext.JSErrCodeAtomicPublishTooManyInflight {
			return 0, err
		}
		if pause.For(ctx, time.Duration(1+rand.IntN(20))*time.Millisecond) != nil {
			return 0, ctx.Err()
		}
	}
}

// typesOf names what is appended, for the places of package faults.
func typesOf(changes []events.Change) string {
	names := make([]string, len(changes))
	for i, change := range changes {
		names[i] = strings.TrimPrefix(string(change.Fact.Type()), "imgsrv.")
	}
	return strings.Join(names, "+")
}

// settle finds out what a failed append left behind. The batch is atomic, so the last change stands for all.
func (l *Log) settle(ctx context.Context, changes []events.Change, ids []string, cause error) (events.Sequence, error) {
	last := len(changes) - 1
	// The request may be gone, yet the answer decides whether its bytes may be dropped.
	ctx = context.WithoutCancel(ctx)
	event, ok, err := l.Last(ctx, changes[last].Fact.Entity())
	if err == nil && ok && event.ID == ids[last] {
		return event.Sequence, nil
	}
	code := apiCode(cause)
	switch {
	case code == natsjs.JSErrCodeStreamWrongLastSequence, code == natsjs.JSErrCodeStreamWrongLastSequenceConstant,
		code == jetstreamext.JSErrCodeBatchPublishDuplicateMsgID:
		return 0, fmt.Errorf("append %s: %w", changes[0].Fact.Type(), ErrConflict)
	case code != 0 && code != jetstreamext.JSErrCodeBatchPublishTooManyInflight && code != jetstreamext.JSErrCodeAtomicPublishTooManyInflight:
		// A refusal by the server with a code of its own: waiting alone may not help, the operator must see it.
		return 0, fmt.Errorf("append %s: %w: %w", changes[0].Fact.Type(), ErrUnavailable, cause)
	}
	return 0, fmt.Errorf("append %s: %w", changes[0].Fact.Type(), unavailable(cause))
}

func apiCode(err error) natsjs.ErrorCode {
	var api *natsjs.APIError
	if errors.As(err, &api) {
		return api.ErrorCode
	}
	var js natsjs.JetStreamError
	if errors.As(err, &js) && js.APIError() != nil {
		return js.APIError().ErrorCode
	}
	return 0
}

// eventNamespace is the UUIDv5 namespace of events with a cause.
var eventNamespace = uuid.MustParse("6d1f8a5e-5d0e-4b0e-9a43-1c1c1f0f7a51")

func eventID(key string, fact events.Fact) string {
	if key == "" {
		return uuid.Must(uuid.NewV7()).String()
	}
	return uuid.NewSHA1(eventNamespace, []byte(key+"\x00"+fact.Entity().Subject()+"\x00"+string(fact.Type()))).String()
}
