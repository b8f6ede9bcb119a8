package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/internal/client"
)

// EventsCmd shows events and moves histories.
type EventsCmd struct {
	Tail   EventsTailCmd   `cmd:"" help:"Follow the events, until Ctrl-C. A broken connection is resumed without gaps." example:"events tail --image debian-bookworm --from 1"`
	Show   EventsShowCmd   `cmd:"" help:"Show one event with its envelope." example:"events show 42"`
	Export EventsExportCmd `cmd:"" help:"Write the whole history to standard output, one event a line." example:"events export > history.jsonl"`
	Import EventsImportCmd `cmd:"" help:"Give an exported history to a server that has none. The bytes of the images don't come along." example:"events import history.jsonl"`
}

// EventsTailCmd follows the events.
type EventsTailCmd struct {
	clientFlags `embed:""`

	From    *uint64  `help:"First event to show; 0 and 1: from the first. Default: only new ones." placeholder:"SEQ"`
	Subject string   `help:"Only events about this, such as debian/12.5.0; a * at the end stands for anything." placeholder:"SUBJECT"`
	Image   []string `help:"Only events about this image; may be repeated." placeholder:"NAME"`
	Type    []string `help:"Only events of this type, such as imgsrv.version.published.v1; a * at the end stands for anything; may be repeated." placeholder:"TYPE"`
}

// Run follows.
func (cmd *EventsTailCmd) Run(ctx context.Context, t Terminal) error {
	c, err := cmd.connect(newProgress(t, cmd.Quiet))
	if err != nil {
		return err
	}
	var after *uint64
	if cmd.From != nil {
		before := max(*cmd.From, 1) - 1
		after = &before
	}
	err = c.Follow(ctx, after, client.EventFilter{Images: cmd.Image, Types: cmd.Type}, func(e client.Event) error {
		if prefix, open := strings.CutSuffix(cmd.Subject, "*"); cmd.Subject != "" && e.Subject != cmd.Subject && (!open || !strings.HasPrefix(e.Subject, prefix)) {
			return nil
		}
		var err error
		if cmd.JSON {
			err = writeLine(t.Out, e)
		} else {
			_, err = fmt.Fprintf(t.Out, "%8d  %s  %-32s %-40s %s\n", e.Sequence, localTime(e.Time), printable(strings.TrimPrefix(e.Type, "imgsrv.")), printable(e.Subject), printable(e.Actor))
		}
		if err != nil {
			return fmt.Errorf("write the output: %w", err)
		}
		return nil
	})
	if ctx.Err() != nil {
		return nil // Ctrl-C is how it ends
	}
	return err
}

func writeLine(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// EventsShowCmd shows one event.
type EventsShowCmd struct {
	clientFlags `embed:""`

	Sequence uint64 `arg:"" help:"Sequence of the event."`
}

// Run shows.
func (cmd *EventsShowCmd) Run(ctx context.Context, t Terminal) error {
	c, err := cmd.connect(newProgress(t, cmd.Quiet))
	if err != nil {
		return err
	}
	e, err := c.Event(ctx, cmd.Sequence)
	if err != nil {
		return err
	}
	if cmd.JSON {
		return writeJSON(t.Out, e)
	}
	table := newTable(t.Out)
	for _, row := range [][2]string{{"sequence", fmt.Sprint(e.Sequence)}, {"type", e.Type}, {"about", e.Subject}, {"time", localTime(e.Time)}, {"actor", e.Actor}, {"id", e.ID},
		{"source", e.Source}, {"stored under", e.NATSSubject}, {"correlation", e.Correlation}, {"causation", e.Causation}, {"trace", e.TraceParent}} {
		if row[1] != "" {
			table.row("%s\t%s", row[0], row[1])
		}
	}
	if err := table.flush(); err != nil {
		return err
	}
	return writeJSON(t.Out, e.Data)
}

// EventsExportCmd writes the history.
type EventsExportCmd struct {
	clientFlags `embed:""`
}

// Run exports.
func (cmd *EventsExportCmd) Run(ctx context.Context, t Terminal) error {
	if err := cmd.needToken(); err != nil {
		return err
	}
	p := newProgress(t, cmd.Quiet)
	c, err := cmd.connect(p)
	if err != nil {
		return err
	}
	out := bufio.NewWriterSize(t.Out, 64<<10)
	head, err := c.Export(ctx, out)
	if err != nil {
		return err
	}
	if err := out.Flush(); err != nil {
		return fmt.Errorf("write the export: %w", err)
	}
	p.note("exported %d events", head)
	return nil
}

// EventsImportCmd gives a history to a server.
type EventsImportCmd struct {
	clientFlags `embed:""`

	File string `arg:"" optional:"" default:"-" help:"File that imgsrv events export has written; - for standard input."`
}

// Run imports. A file is checked whole before anything is sent, so that a broken one leaves no half of a history.
func (cmd *EventsImportCmd) Run(ctx context.Context, t Terminal) error {
	if err := cmd.needToken(); err != nil {
		return err
	}
	p := newProgress(t, cmd.Quiet)
	c, err := cmd.connect(p)
	if err != nil {
		return err
	}
	from := t.In
	if cmd.File != "-" {
		f, err := os.Open(cmd.File)
		if err != nil {
			return fmt.Errorf("open the export: %w", err)
		}
		defer f.Close() //nolint:errcheck // only read
		if err := checkExport(f); err != nil {
			return fmt.Errorf("%s is no whole export, nothing was sent: %w", cmd.File, err)
		}
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return fmt.Errorf("read the export: %w", err)
		}
		from = f
	}
	done, err := c.Import(ctx, from)
	if err != nil {
		var connection *client.ConnectionError
		if errors.As(err, &connection) && !connection.Refused() {
			return fmt.Errorf("%w: the server may have a part of it; give it the same import again, and it goes on", err)
		}
		return err
	}
	if cmd.JSON {
		return writeJSON(t.Out, done)
	}
	p.note("imported %d events (%d were there), the last is %d", done.Appended, done.Present, done.Head)
	return nil
}

// checkExport reads a file of lines as a server would.
func checkExport(r io.Reader) error {
	lines := bufio.NewReaderSize(r, 64<<10)
	for number := events.Sequence(1); ; number++ {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) && len(bytes.TrimSpace(line)) == 0 {
			return nil
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		var record jetstream.Record
		if err := json.Unmarshal(line, &record); err != nil {
			return fmt.Errorf("line %d: %w", number, err)
		}
		if err := record.Check(number); err != nil {
			return fmt.Errorf("line %d: %w", number, err)
		}
	}
}
