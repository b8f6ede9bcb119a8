package projections

import (
	"context"
	"fmt"
	"os"

	"github.com/imgsrv/imgsrv/events"
)

// learnSkipped reads which events an operator told the projection to leave out. A list that grows later doesn't matter to a
// Runner that gets on; one that stands at an event reads it anew with each attempt.
func (r *Runner) learnSkipped(ctx context.Context) error {
	current, err := r.events.Projection(ctx, r.Name())
	if err != nil {
		return fmt.Errorf("read which events are skipped: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.state.skipped = current.State
	return nil
}

func (r *Runner) skips(sequence events.Sequence) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state.skipped.Skips(sequence)
}

// withoutSkipped is the batch without the events that are skipped, each of which is said and counted, and without those of
// other projections that could not be decoded.
func (r *Runner) withoutSkipped(ctx context.Context, batch []events.Event) []events.Event {
	r.mu.Lock()
	skipped := r.state.skipped
	r.mu.Unlock()
	out := make([]events.Event, 0, len(batch))
	for _, event := range batch {
		if skipped.Skips(event.Sequence) {
			r.log.Warn("an event is skipped, as an operator decided", "sequence", event.Sequence, "type", event.Type)
			r.meters.skipped.Add(ctx, 1, r.meters.with)
			continue
		}
		if event.Fact == nil {
			continue
		}
		out = append(out, event)
	}
	return out
}

// Retry ends the pause before the next attempt of a projection that can't go on.
func (r *Runner) Retry() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Remedy says what an operator can do about an event that can't be applied; "" when there is none.
func (s Status) Remedy() string {
	if s.ErrorSequence == 0 {
		return ""
	}
	return fmt.Sprintf("start a release that can apply event %d, and the projection goes on by itself; or leave the event out for good: imgsrv projections skip %s %d --reason TEXT",
		s.ErrorSequence, s.Name, s.ErrorSequence)
}

// nodeName tells nodes apart, in PostgreSQL's list of connections: host and process id.
func nodeName() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	// PostgreSQL cuts application_name at 63 bytes.
	return fmt.Sprintf("%.24s/%d", host, os.Getpid())
}
