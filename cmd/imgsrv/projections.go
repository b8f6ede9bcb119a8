package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/imgsrv/imgsrv/internal/client"
)

// ProjectionsCmd is what operators do to projections.
type ProjectionsCmd struct {
	Status  ProjectionsStatusCmd  `cmd:"" default:"withargs" help:"Show how the projections are doing. The same as: imgsrv projections" example:"projections"`
	Rebuild ProjectionsRebuildCmd `cmd:"" help:"Derive a projection's tables anew from the first event, beside the live ones, and put them in their place." example:"projections rebuild catalog"`
	Verify  ProjectionsVerifyCmd  `cmd:"" help:"Compare a projection row by row with what the events make of it; exit code 1 where they differ." example:"projections verify catalog"`
	Replay  ProjectionsReplayCmd  `cmd:"" help:"Show what events do to a projection's tables. Changes nothing." example:"projections replay catalog --from 40 --to 42 --dry-run"`
	Skip    ProjectionsSkipCmd    `cmd:"" help:"Let a projection leave out, for good, an event that it can't apply." example:"projections skip jobs 42 --reason 'a test wrote it'"`
}

// projectionFlags say where the projections are: behind a server, or in the stores of one that doesn't run.
type projectionFlags struct {
	clientFlags `embed:""`

	Offline     bool   `help:"Work on the stores themselves, while no server runs: those in --data-dir, or --nats-url and --postgres-url."`
	PostgresURL string `group:"offline" name:"postgres-url" help:"The server's --postgres-url." placeholder:"URL"`
	NATSURL     string `group:"offline" name:"nats-url" help:"The server's --nats-url." placeholder:"URL"`
	natsFlags   `embed:"" group:"offline"`
}

// projectionWork is what the commands do, on either side.
type projectionWork interface {
	Projections(ctx context.Context) ([]client.Projection, error)
	// Rebuild tells how far it is until it has ended; a cancelled ctx stops it.
	Rebuild(ctx context.Context, name string, told func(*client.Rebuild)) (*client.Rebuild, error)
	VerifyProjection(ctx context.Context, name string, limit int) (*client.Verification, error)
	ReplayProjection(ctx context.Context, name string, from, to uint64, each func(client.Replayed) error) error
	SkipEvent(ctx context.Context, name string, sequence uint64, reason string) error
}

// open gives them and what has to be called after them.
func (f *projectionFlags) open(ctx context.Context, t Terminal) (projectionWork, func() error, error) {
	if f.Offline {
		return openStores(ctx, f, t)
	}
	if f.PostgresURL != "" && f.NATSURL != "" {
		newProgress(t, f.Quiet).note("--nats-url and --postgres-url are for --offline; asking the server")
	}
	if err := f.needToken(); err != nil {
		return nil, nil, err
	}
	c, err := f.connect(newProgress(t, f.Quiet))
	if err != nil {
		return nil, nil, err
	}
	return &online{c}, func() error { return nil }, nil
}

// with runs a command's work between open and close.
func (f *projectionFlags) with(ctx context.Context, t Terminal, work func(projectionWork) error) error {
	o, closeAll, err := f.open(ctx, t)
	if err != nil {
		return err
	}
	return errors.Join(work(o), closeAll())
}

// online is a server's projections.
type online struct{ *client.Client }

const (
	rebuildPoll = 250 * time.Millisecond
	stopTimeout = 30 * time.Second // for a rebuild that is told to stop
)

// Rebuild implements projectionWork. It follows a rebuild that runs there already.
func (o *online) Rebuild(ctx context.Context, name string, told func(*client.Rebuild)) (*client.Rebuild, error) {
	r, err := o.StartRebuild(ctx, name)
	if client.IsProblem(err, client.CodeRebuilding) {
		if r, err = o.Client.Rebuild(ctx, name); err == nil && !r.Running() {
			return nil, errors.New("a rebuild or a comparison of this projection is running on another node, or just now ended: try again")
		}
	}
	for {
		switch {
		case ctx.Err() != nil:
			stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
			defer cancel()
			if r, err = o.StopRebuild(stopping, name); err != nil {
				return nil, fmt.Errorf("stop the rebuild: %w", err)
			}
			return r, ctx.Err()
		case err != nil:
			return nil, err
		case !r.Running():
			return r, nil
		}
		told(r)
		select {
		case <-time.After(rebuildPoll):
			r, err = o.Client.Rebuild(ctx, name)
		case <-ctx.Done():
		}
	}
}

// ProjectionsStatusCmd shows status.
type ProjectionsStatusCmd struct {
	projectionFlags `embed:""`
}

// Run shows.
func (cmd *ProjectionsStatusCmd) Run(ctx context.Context, t Terminal) error {
	return cmd.with(ctx, t, func(o projectionWork) error {
		all, err := o.Projections(ctx)
		if err != nil {
			return err
		}
		if cmd.JSON {
			return writeJSON(t.Out, all)
		}
		return printProjections(t.Out, all)
	})
}

func printProjections(w io.Writer, all []client.Projection) error {
	t := newTable(w)
	t.row("PROJECTION\tPOSITION\tHEAD\tLAG\tAGE\tACTIVE\tROWS")
	for _, p := range all {
		var rows []string
		for _, table := range p.Tables {
			about := ""
			if table.Estimated {
				about = "~"
			}
			rows = append(rows, fmt.Sprintf("%s=%s%d", table.Table, about, table.Rows))
		}
		active := orDash(p.ActiveNode)
		if p.Active {
			active += " (this server)"
		}
		t.row("%s\t%d\t%d\t%d\t%s\t%s\t%s", p.Name, p.Position, p.Head, p.LagEvents, shortDuration(time.Duration(p.LagSeconds*float64(time.Second))), active, orDash(strings.Join(rows, " ")))
	}
	if err := t.flush(); err != nil {
		return err
	}
	t = newTable(w)
	for _, p := range all {
		if p.Error != "" {
			t.row("\n%s can't go on:", p.Name)
			if p.ErrorSequence != 0 {
				t.row("  event\t%d  %s", p.ErrorSequence, p.ErrorType)
			}
			t.row("  error\t%s", p.Error)
			if !p.ErrorSince.IsZero() {
				t.row("  since\t%s", localTime(p.ErrorSince))
			}
			if p.Remedy != "" {
				t.row("  remedy\t%s", p.Remedy)
			}
		}
		for _, s := range p.Skipped {
			t.row("\n%s skips event %d  %s:\t%s  (%s, %s)", p.Name, s.Sequence, s.Type, s.Reason, s.By, localTime(s.At))
		}
		if p.Trouble != "" {
			t.row("\n%s: not all could be found out:\t%s", p.Name, p.Trouble)
		}
	}
	return t.flush()
}

// ProjectionsRebuildCmd rebuilds.
type ProjectionsRebuildCmd struct {
	projectionFlags `embed:""`

	Name string `arg:"" help:"Projection: catalog, jobs or streams."`
}

// Run rebuilds.
func (cmd *ProjectionsRebuildCmd) Run(ctx context.Context, t Terminal) error {
	return cmd.with(ctx, t, func(o projectionWork) error {
		p := newProgress(t, cmd.Quiet)
		bar := newEventBar(p, "rebuild "+cmd.Name)
		r, err := o.Rebuild(ctx, cmd.Name, bar.show)
		bar.stop()
		switch {
		case ctx.Err() != nil && err != nil:
			at := ""
			if r != nil {
				at = fmt.Sprintf(" after event %d of %d", r.Applied, r.Total)
			}
			return &interruptedError{fmt.Sprintf("the rebuild of %s stopped%s and the live tables are as before; run the same command again to go on there", cmd.Name, at)}
		case err != nil:
			return err
		case r.State != client.RebuildDone:
			text := orDash(r.Error)
			if r.State == client.RebuildStopped {
				text = "somebody stopped it; run the same command again to go on"
			}
			return fmt.Errorf("the rebuild of %s did not finish, the live tables are as before: %s", cmd.Name, text)
		case cmd.JSON:
			return writeJSON(t.Out, r)
		}
		resumed := ""
		if r.ResumedFrom > 0 {
			resumed = fmt.Sprintf(", going on after event %d", r.ResumedFrom)
		}
		_, err = fmt.Fprintf(t.Out, "%s is rebuilt up to event %d in %s (%.0f events/s%s)\n", cmd.Name, r.Applied, shortDuration(r.EndedAt.Sub(r.StartedAt)), r.EventsPerSecond, resumed)
		return err
	})
}

// ProjectionsVerifyCmd compares.
type ProjectionsVerifyCmd struct {
	projectionFlags `embed:""`

	Name  string `arg:"" help:"Projection: catalog, jobs or streams."`
	Limit int    `help:"Show at most so many differences." default:"100" placeholder:"N"`
}

// Run compares.
func (cmd *ProjectionsVerifyCmd) Run(ctx context.Context, t Terminal) error {
	if cmd.Limit < 1 || cmd.Limit > 10_000 {
		return usagef("--limit is from 1 to 10000")
	}
	return cmd.with(ctx, t, func(o projectionWork) error {
		newProgress(t, cmd.Quiet).note("deriving %s again to compare it", cmd.Name)
		found, err := o.VerifyProjection(ctx, cmd.Name, cmd.Limit)
		if err != nil {
			return err
		}
		if cmd.JSON {
			err = writeJSON(t.Out, found)
		} else {
			err = printVerification(t.Out, found)
		}
		if err == nil && found.Total > 0 {
			err = fmt.Errorf("%s differs from its events in %d of %d rows: imgsrv projections rebuild %s puts it right", cmd.Name, found.Total, found.Rows, cmd.Name)
		}
		return err
	})
}

func printVerification(w io.Writer, v *client.Verification) error {
	var b strings.Builder
	for _, d := range v.Differences {
		switch {
		case len(d.Derived) == 0:
			fmt.Fprintf(&b, "%s %s is there, but no event makes it:\n  live    %s\n", d.Table, d.Key, shortRow(d.Live))
		case len(d.Live) == 0:
			fmt.Fprintf(&b, "%s %s is missing:\n  events  %s\n", d.Table, d.Key, shortRow(d.Derived))
		default:
			fmt.Fprintf(&b, "%s %s is not the same:\n", d.Table, d.Key)
			for _, c := range changedColumns(d.Live, d.Derived) {
				fmt.Fprintf(&b, "  %s\n    live    %s\n    events  %s\n", c.name, shortRow(c.live), shortRow(c.derived))
			}
		}
	}
	if more := v.Total - int64(len(v.Differences)); more > 0 {
		fmt.Fprintf(&b, "and %d more\n", more)
	}
	if v.Total == 0 {
		fmt.Fprintf(&b, "%s is what its events make of it: %d rows at event %d compared in %s\n", v.Projection, v.Rows, v.Position,
			shortDuration(time.Duration(v.TookSeconds*float64(time.Second))))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// maxShown bounds what people see of a row: documents have megabytes.
const maxShown = 400

func shortRow(row json.RawMessage) string {
	text := printable(string(row))
	if len(text) > maxShown {
		return strings.ToValidUTF8(text[:maxShown], "") + fmt.Sprintf("… (%d bytes)", len(row))
	}
	return text
}

// ProjectionsReplayCmd shows what events would do.
type ProjectionsReplayCmd struct {
	projectionFlags `embed:""`

	Name   string `arg:"" help:"Projection: catalog, jobs or streams."`
	From   uint64 `required:"" help:"First event." placeholder:"SEQ"`
	To     uint64 `required:"" help:"Last event." placeholder:"SEQ"`
	DryRun bool   `help:"Needed: nothing is ever applied to the live tables out of turn."`
}

// Run shows.
func (cmd *ProjectionsReplayCmd) Run(ctx context.Context, t Terminal) error {
	switch {
	case !cmd.DryRun:
		return usagef("replay only shows: give --dry-run. To have events applied again, rebuild the projection: imgsrv projections rebuild %s", cmd.Name)
	case cmd.From < 1 || cmd.To < cmd.From:
		return usagef("--from and --to are sequences from 1, --to not before --from")
	}
	return cmd.with(ctx, t, func(o projectionWork) error {
		var failed error
		err := o.ReplayProjection(ctx, cmd.Name, cmd.From, cmd.To, func(e client.Replayed) error {
			if e.Error != "" {
				failed = fmt.Errorf("event %d can't be applied: %s", e.Sequence, e.Error)
			}
			if cmd.JSON {
				encode := json.NewEncoder(t.Out)
				encode.SetEscapeHTML(false)
				return encode.Encode(e)
			}
			return printReplayed(t.Out, e)
		})
		if failed != nil {
			return failed
		}
		return err
	})
}

func printReplayed(w io.Writer, e client.Replayed) error {
	what := ""
	switch {
	case e.Skipped:
		what = "  (skipped)"
	case e.Error != "":
		what = "  can't be applied: " + e.Error
	case len(e.Changes) == 0:
		what = "  (no row)"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%d  %s  %s  %s%s\n", e.Sequence, localTime(e.Time), printable(e.Type), printable(e.Subject), printable(what))
	for _, c := range e.Changes {
		fmt.Fprintf(&b, "    %s %s  %s\n", c.Op, c.Table, shortRow(c.Row))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// ProjectionsSkipCmd skips.
type ProjectionsSkipCmd struct {
	projectionFlags `embed:""`

	Name     string `arg:"" help:"Projection: catalog, jobs or streams."`
	Sequence uint64 `arg:"" name:"seq" help:"The event that it stands at; status shows it."`
	Reason   string `required:"" help:"Why. It is kept in the log, with who said so." placeholder:"TEXT"`
}

// Run skips.
func (cmd *ProjectionsSkipCmd) Run(ctx context.Context, t Terminal) error {
	return cmd.with(ctx, t, func(o projectionWork) error {
		if err := o.SkipEvent(ctx, cmd.Name, cmd.Sequence, cmd.Reason); err != nil {
			return err
		}
		_, err := fmt.Fprintf(t.Out, "%s leaves event %d out from now on; the log keeps the event and the reason\n", cmd.Name, cmd.Sequence)
		return err
	})
}
