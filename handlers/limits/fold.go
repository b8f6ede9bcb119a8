package limits

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
)

const (
	followBatch = 200
	followPause = time.Second // before the log is asked again after a failure
)

// Load reads what open sessions there are, and what was declared in the last 24 hours if that is limited. It is called
// once, before Follow.
func (in *Intake) Load(ctx context.Context) error {
	head, err := in.cfg.Events.Head(ctx)
	if err != nil {
		return fmt.Errorf("load the limits: %w", err)
	}
	from := head
	if in.cfg.MaxPerDay > 0 {
		if from, err = in.cfg.Events.SequenceAt(ctx, in.cfg.Clock().Add(-window)); err != nil {
			return fmt.Errorf("load the limits: %w", err)
		}
	}
	folders, err := in.cfg.Store.Sessions()
	if err != nil {
		return fmt.Errorf("load the limits: %w", err)
	}
	for _, folder := range folders { // sessions may be older than the window
		current, err := in.cfg.Events.Upload(ctx, folder.ID)
		if err != nil {
			return fmt.Errorf("load the limits: session %s: %w", folder.ID, err)
		}
		if current.Sequence != 0 {
			in.mu.Lock()
			in.fold(folder.ID, current)
			in.mu.Unlock()
		}
	}
	in.at = from
	for in.at < head {
		err := in.cfg.Events.ReadAfter(ctx, in.at, head, []string{events.SubjectOfKind(events.KindUpload)}, func(event events.Event) error {
			in.apply(event)
			return nil
		})
		var unreadable *jetstream.Undecodable
		switch {
		case errors.As(err, &unreadable): // of a newer release: it counts for nothing here
			in.at = unreadable.Event.Sequence
		case err != nil:
			return fmt.Errorf("load the limits: %w", err)
		default:
			in.at = head
		}
	}
	return nil
}

// Follow keeps up with the events until ctx ends.
func (in *Intake) Follow(ctx context.Context) error {
	for {
		err := in.follow(ctx)
		var unreadable *jetstream.Undecodable
		if errors.As(err, &unreadable) {
			in.at = unreadable.Event.Sequence
			continue
		}
		if ctx.Err() == nil {
			in.cfg.Log.WarnContext(ctx, "the limits don't follow the events; trying again", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(followPause):
		}
	}
}

func (in *Intake) follow(ctx context.Context) error {
	tail, err := in.cfg.Events.TailBuffered(ctx, in.at, followBatch, events.SubjectOfKind(events.KindUpload))
	if err != nil {
		return err
	}
	defer tail.Close()
	for {
		batch, err := tail.Next(ctx, followBatch)
		if err != nil {
			return err
		}
		for _, event := range batch {
			in.apply(event)
			in.at = event.Sequence
		}
	}
}

// apply folds one event.
func (in *Intake) apply(event events.Event) {
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
