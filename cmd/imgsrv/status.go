package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/dustin/go-humanize"

	"github.com/imgsrv/imgsrv/internal/client"
)

// StatusCmd shows how a server is doing.
type StatusCmd struct {
	clientFlags `embed:""`
}

// Run shows.
func (cmd *StatusCmd) Run(ctx context.Context, t Terminal) error {
	c, err := cmd.operator(t)
	if err != nil {
		return err
	}
	status, err := c.Status(ctx)
	if err != nil {
		return err
	}
	if cmd.JSON {
		return writeJSON(t.Out, status)
	}
	return printStatus(t.Out, status)
}

func printStatus(w io.Writer, s *client.Status) error {
	word := func(ok bool, problem string) string {
		if ok {
			return "ok"
		}
		return "away: " + orDash(problem)
	}
	t := newTable(w)
	ready := "yes"
	if !s.Readiness.Ready {
		ready = "no"
	}
	t.row("ready\t%s", ready)
	t.row("event log\t%s", word(s.Readiness.NATS.OK, s.Readiness.NATS.Error))
	t.row("PostgreSQL\t%s", word(s.Readiness.Postgres.OK, s.Readiness.Postgres.Error))
	t.row("storage\t%s, %s free", word(s.Readiness.Storage.Writable, s.Readiness.Storage.Error), humanize.IBytes(uint64(max(s.Readiness.Storage.FreeBytes, 0))))
	for _, p := range s.Readiness.Projections {
		text := "up to date"
		if p.LagEvents > 0 {
			text = fmt.Sprintf("%d events behind, for %.0f s", p.LagEvents, p.LagSeconds)
		}
		if p.Error != "" {
			text += "; " + p.Error
		}
		t.row("projection %s\t%s", p.Name, text)
	}
	var jobs []string
	for _, n := range s.Jobs {
		jobs = append(jobs, fmt.Sprintf("%d %s", n.Jobs, n.State))
	}
	t.row("jobs\t%s", orDash(strings.Join(jobs, ", ")))
	if len(s.GivenUp) == 0 {
		t.row("given up\tnothing")
	}
	if err := t.flush(); err != nil {
		return err
	}
	for _, g := range s.GivenUp {
		count := humanize.Comma(g.Count)
		if g.Error != "" {
			count = "unknown (" + g.Error + ")"
		}
		if _, err := fmt.Fprintf(w, "\ngiven up: %s of %s; see: %s\n", printable(count), g.What, printable(g.Look)); err != nil {
			return err
		}
		for _, example := range g.Examples {
			if _, err := fmt.Fprintf(w, "  %s\n", printable(example)); err != nil {
				return err
			}
		}
	}
	return nil
}
