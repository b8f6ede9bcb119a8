package main

import (
	"context"
	"fmt"
	"strings"
)

// HistoryCmd tells an image's story.
type HistoryCmd struct {
	clientFlags `embed:""`

	Who  bool   `help:"Also say who did it, and for whom imgsrv did what it did by itself."`
	What string `arg:"" name:"image[/version]" help:"Image, or image/version."`
}

// Run tells.
func (cmd *HistoryCmd) Run(ctx context.Context, t Terminal) error {
	c, err := cmd.connect(newProgress(t, cmd.Quiet))
	if err != nil {
		return err
	}
	image, version, _ := strings.Cut(cmd.What, "/")
	lines, err := c.History(ctx, image, version)
	if err != nil {
		return err
	}
	if cmd.JSON {
		return writeJSON(t.Out, lines)
	}
	for _, line := range lines {
		about := ""
		if line.Version != "" && version == "" {
			about = line.Version + ": "
		}
		who := ""
		if cmd.Who {
			who = orDash(line.Who)
			if line.Actor != line.Who {
				who += " (by " + line.Actor + ")"
			}
			who = fmt.Sprintf("%-20s  ", printable(who))
		}
		if _, err := fmt.Fprintf(t.Out, "%s  %s%s\n", localTime(line.Time), who, printable(about+line.Text)); err != nil {
			return fmt.Errorf("write the output: %w", err)
		}
	}
	return nil
}
