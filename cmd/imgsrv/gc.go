package main

import (
	"context"
	"fmt"
	"io"

	"github.com/imgsrv/imgsrv/internal/client"
)

// GCCmd has the server remove what nothing needs any more.
type GCCmd struct {
	clientFlags `embed:""`

	DryRun        bool   `help:"Only show what would go, and remove nothing."`
	Grace         string `help:"How long bytes stay after the last need of them, at least 1h. Default: as the server is set (--gc-grace)." placeholder:"DURATION"`
	KeepWithdrawn string `help:"How long withdrawn versions can be restored, at least --grace. Default: as the server is set." placeholder:"DURATION"`
}

// Run collects.
func (cmd *GCCmd) Run(ctx context.Context, t Terminal) error {
	var result client.Garbage
	request := client.GarbageRequest{DryRun: cmd.DryRun, Grace: cmd.Grace, KeepWithdrawn: cmd.KeepWithdrawn}
	if err := cmd.runOperation(ctx, t, "the collection of garbage", client.PathGarbage, request, &result); err != nil {
		return err
	}
	if cmd.JSON {
		return writeJSON(t.Out, result)
	}
	return printGarbage(t.Out, result)
}

func printGarbage(w io.Writer, g client.Garbage) error {
	if g.DryRun && len(g.Items) > 0 {
		t := newTable(w)
		t.row("KIND\tNAME\tSIZE\tWHY")
		for _, item := range g.Items {
			bytes := size(item.Bytes)
			if item.Bytes == 0 {
				bytes = "-"
			}
			t.row("%s\t%s\t%s\t%s", item.Kind, item.Name, bytes, item.Reason)
		}
		if err := t.flush(); err != nil {
			return err
		}
		if g.More > 0 {
			_, _ = fmt.Fprintf(w, "and %d more\n", g.More) // an error shows below
		}
	}
	what := "collected"
	if g.DryRun {
		what = "would go"
	}
	_, err := fmt.Fprintf(w, "%s: %s in %d blobs, %d withdrawn versions, %d derived files, %d abandoned uploads, %d folders of ended jobs\n",
		what, size(g.Bytes), g.Blobs, g.Versions, g.Derived, g.Sessions, g.Ingress)
	return err
}
