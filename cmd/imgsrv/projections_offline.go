package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os/user"
	"slices"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/schollz/progressbar/v3"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/internal/client"
	"github.com/imgsrv/imgsrv/projections"
)

// offline is the projections of a server that doesn't run.
type offline struct{ all []*projections.Operator }

func openStores(ctx context.Context, f *projectionFlags, t Terminal) (projectionWork, func() error, error) {
	log := slog.New(slog.NewTextHandler(t.Err, &slog.HandlerOptions{Level: slog.LevelWarn}))
	stream, pool, closeAll, err := openOffline(ctx, ServerFlags{natsFlags: f.natsFlags, DataDir: f.DataDir, PostgresURL: f.PostgresURL, NATSURL: f.NATSURL}, log)
	if err != nil {
		return nil, nil, err
	}
	o := &offline{}
	for _, p := range projectors() {
		o.all = append(o.all, projections.NewOperator(pool, stream, p, nil, projections.RebuildConfig{Log: log, Version: version()}))
	}
	return o, closeAll, nil
}

func (o *offline) find(name string) (*projections.Operator, error) {
	for _, p := range o.all {
		if p.Name() == name {
			return p, nil
		}
	}
	return nil, fmt.Errorf("there is no projection %q: imgsrv projections lists them", name)
}

// Projections implements projectionWork.
func (o *offline) Projections(ctx context.Context) ([]client.Projection, error) {
	out := []client.Projection{}
	for _, p := range o.all {
		r := p.Report(ctx)
		entry := client.Projection{Name: r.Name, Position: uint64(r.Position), Head: uint64(r.Head), LagEvents: r.LagEvents, LagSeconds: r.LagSeconds,
			ActiveNode: r.ActiveNode, Tables: []client.TableRows{}, Error: r.Error, Remedy: r.Remedy(), Trouble: r.Trouble}
		for _, t := range r.Tables {
			entry.Tables = append(entry.Tables, client.TableRows(t))
		}
		for _, e := range r.Skipped {
			entry.Skipped = append(entry.Skipped, client.SkippedEvent{Sequence: uint64(e.Sequence), Type: string(e.EventType), Reason: e.Reason, By: e.By, At: e.At})
		}
		out = append(out, entry)
	}
	return out, nil
}

// Rebuild implements projectionWork.
func (o *offline) Rebuild(ctx context.Context, name string, told func(*client.Rebuild)) (*client.Rebuild, error) {
	p, err := o.find(name)
	if err != nil {
		return nil, err
	}
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	ticker := time.NewTicker(rebuildPoll)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			told(rebuildOf(p))
		case err := <-ended:
			r := rebuildOf(p)
			if r.State == client.RebuildFailed {
				err = nil // r says why
			}
			return r, err
		}
	}
}

func rebuildOf(p *projections.Operator) *client.Rebuild {
	progress := p.Progress()
	out := &client.Rebuild{Projection: p.Name(), State: string(progress.State), Applied: uint64(progress.Applied), Total: uint64(progress.Total),
		EventsPerSecond: progress.PerSecond, ETASeconds: progress.Left.Seconds(), ResumedFrom: uint64(progress.ResumedFrom), StartedAt: progress.StartedAt, EndedAt: progress.EndedAt}
	if progress.Err != nil {
		out.Error = progress.Err.Error()
	}
	var event *projections.EventError
	if errors.As(progress.Err, &event) {
		out.ErrorSequence = uint64(event.Sequence)
	}
	return out
}

// VerifyProjection implements projectionWork.
func (o *offline) VerifyProjection(ctx context.Context, name string, limit int) (*client.Verification, error) {
	p, err := o.find(name)
	if err != nil {
		return nil, err
	}
	found, err := p.Verify(ctx, limit, nil)
	if err != nil {
		return nil, err
	}
	out := &client.Verification{Projection: name, Position: uint64(found.Position), Rows: found.Rows, Total: found.Total,
		Differences: []client.Difference{}, TookSeconds: found.Took.Seconds()}
	for _, d := range found.Differences {
		out.Differences = append(out.Differences, client.Difference{Table: d.Table, Key: json.RawMessage(d.Key), Live: json.RawMessage(d.Live), Derived: json.RawMessage(d.Derived)})
	}
	return out, nil
}

// ReplayProjection implements projectionWork.
func (o *offline) ReplayProjection(ctx context.Context, name string, from, to uint64, each func(client.Replayed) error) error {
	p, err := o.find(name)
	if err != nil {
		return err
	}
	return p.Replay(ctx, events.Sequence(from), events.Sequence(to), func(e projections.Replayed) error {
		line := client.Replayed{Sequence: uint64(e.Sequence), Type: string(e.Type), Subject: e.Subject, Time: e.Time, Skipped: e.Skipped, Error: e.Error}
		for _, c := range e.Changes {
			line.Changes = append(line.Changes, client.RowChange{Op: c.Op, Table: c.Table, Row: json.RawMessage(c.Row)})
		}
		return each(line)
	})
}

// SkipEvent implements projectionWork. Who does it is the user of this machine.
func (o *offline) SkipEvent(ctx context.Context, name string, sequence uint64, reason string) error {
	p, err := o.find(name)
	if err != nil {
		return err
	}
	by := "offline"
	if u, err := user.Current(); err == nil {
		by += ":" + u.Username
	}
	_, err = p.Skip(ctx, events.Sequence(sequence), reason, by)
	return err
}

// column is one column of a row that differs.
type column struct {
	name          string
	live, derived json.RawMessage
}

// changedColumns lists the columns of two rows that aren't the same, by name.
func changedColumns(live, derived json.RawMessage) []column {
	var a, b map[string]json.RawMessage
	if json.Unmarshal(live, &a) != nil || json.Unmarshal(derived, &b) != nil {
		return []column{{"row", live, derived}}
	}
	var out []column
	for _, name := range slices.Sorted(maps.Keys(b)) {
		if !bytes.Equal(a[name], b[name]) {
			out = append(out, column{name, a[name], b[name]})
		}
	}
	return out
}

// eventBar is a measure in events: a bar on a terminal, else a line now and then.
type eventBar struct {
	p     *progress
	label string
	bar   *progressbar.ProgressBar
	last  time.Time
}

func newEventBar(p *progress, label string) *eventBar { return &eventBar{p: p, label: label} }

func (b *eventBar) show(r *client.Rebuild) {
	if b.p.quiet || r.Total == 0 {
		return
	}
	left := "?"
	if r.ETASeconds > 0 {
		left = shortDuration(time.Duration(r.ETASeconds * float64(time.Second)))
	}
	text := fmt.Sprintf("%s: %s of %s events, %s/s, %s left", b.label, humanize.Comma(int64(r.Applied)), humanize.Comma(int64(r.Total)), humanize.Comma(int64(r.EventsPerSecond)), left) //nolint:gosec // far from overflow
	if !b.p.t.Fancy {
		if now := b.p.now(); now.Sub(b.last) >= lineEvery {
			b.last = now
			b.p.note("%s", text)
		}
		return
	}
	if b.bar == nil {
		b.bar = progressbar.NewOptions64(int64(r.Total), progressbar.OptionSetWriter(b.p.t.Err), progressbar.OptionEnableColorCodes(false), //nolint:gosec // as above
			progressbar.OptionSetWidth(24), progressbar.OptionClearOnFinish(), progressbar.OptionSetPredictTime(false), progressbar.OptionSetElapsedTime(false))
	}
	b.bar.ChangeMax64(int64(r.Total)) //nolint:gosec // as above
	b.bar.Describe(text)
	_ = b.bar.Set64(int64(min(r.Applied, r.Total))) //nolint:gosec // as above
}

func (b *eventBar) stop() {
	if b.bar != nil {
		_ = b.bar.Clear()
		_ = b.bar.Exit()
	}
}
