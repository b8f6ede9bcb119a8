package limits

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/imgsrv/imgsrv/events"
)

// Load reads what open sessions there are, and what was declared in the last 24 hours if that is limited. It is called
// once, before Follow.
func (in *Intake) Load(ctx context.Context) error {
	if err := in.load(ctx); err != nil {
		return fmt.Errorf("load the limits: %w", err)
	}
	return nil
}

func (in *Intake) load(ctx context.Context) error {
	from, err := in.cfg.Events.Head(ctx)
	if err != nil {
		return err
	}
	if in.cfg.MaxPerDay > 0 {
		if from, err = in.cfg.Events.SequenceAt(ctx, in.cfg.Clock().Add(-window)); err != nil {
			return err
		}
	}
	folders, err := in.cfg.Store.Sessions()
	if err != nil {
		return err
	}
	for _, folder := range folders { // sessions may be older than the window
		current, err := in.cfg.Events.Upload(ctx, folder.ID)
		if err != nil {
			return fmt.Errorf("session %s: %w", folder.ID, err)
		}
		if current.Sequence != 0 {
			in.mu.Lock()
			in.fold(folder.ID, current)
			in.mu.Unlock()
		}
	}
	in.follower.SkipTo(from)
	return in.follower.CatchUp(ctx)
}

// Follow keeps up with the events until ctx ends.
func (in *Intake) Follow(ctx context.Context) error { return in.follower.Run(ctx) }

// apply folds one event. One of a newer release, which can't be read, counts for nothing here.
func (in *Intake) apply(_ context.Context, event events.Event) {
	fact, ok := event.Fact.(events.UploadFact)
	if !ok {
		return
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	u := fact.After()
	in.fold(u.ID, events.Current[events.Upload]{State: u, Sequence: event.Sequence})
	if _, first := fact.(events.UploadInitiated); first {
		in.declare(u, event.Time)
	}
}

// fold puts a session's state in the place of an older one.
func (in *Intake) fold(id string, current events.Current[events.Upload]) {
	known := in.open[id]
	switch {
	case known != nil && known.sequence >= current.Sequence:
	case current.State.State == events.SessionOpen && !current.State.Complete:
		in.open[id] = &session{owner: current.State.InitiatedBy, files: pending(current.State), sequence: current.Sequence}
	default:
		delete(in.open, id)
	}
}

// refresh reads the open sessions' states from the log.
func (in *Intake) refresh(ctx context.Context) error {
	for id, s := range in.open {
		if s.deciding {
			continue
		}
		current, err := in.cfg.Events.Upload(ctx, id)
		if err != nil {
			return err
		}
		if current.Sequence != 0 { // 0: its event was never stored; its folder goes when it expires
			in.fold(id, current)
		}
	}
	return nil
}

// declare counts what a session declared, once.
func (in *Intake) declare(u events.Upload, at time.Time) {
	if in.cfg.MaxPerDay <= 0 {
		return
	}
	bytes := total(pending(u))
	if bytes == 0 {
		return
	}
	of := in.used[u.InitiatedBy]
	if of == nil {
		of = map[string]declared{}
		in.used[u.InitiatedBy] = of
	}
	of[u.ID] = declared{at, bytes}
}

// usedBy is what a principal's sessions, one apart, declared in the last 24 hours; wait is how long it takes until
// that is at most allowed.
func (in *Intake) usedBy(owner, except string, allowed int64) (used int64, wait time.Duration) {
	now := in.cfg.Clock()
	var days []declared
	for id, d := range in.used[owner] {
		if now.Sub(d.at) >= window {
			delete(in.used[owner], id)
		} else if id != except {
			days = append(days, d)
			used += d.bytes
		}
	}
	slices.SortFunc(days, func(a, b declared) int { return cmp.Compare(a.at.UnixNano(), b.at.UnixNano()) })
	left := used
	for _, d := range days {
		if left <= allowed {
			break
		}
		left -= d.bytes
		wait = max(time.Nanosecond, d.at.Add(window).Sub(now))
	}
	return used, wait
}
