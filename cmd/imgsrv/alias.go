package main

import (
	"context"
	"fmt"
)

// AliasCmd moves and removes aliases by hand.
type AliasCmd struct {
	Move   AliasMoveCmd   `cmd:"" help:"Make an alias or move it, forward or back." example:"alias move debian-bookworm stable 12.5.0"`
	Remove AliasRemoveCmd `cmd:"" help:"Remove an alias. The version that it names stays." example:"alias remove debian-bookworm stable"`
}

// AliasMoveCmd moves one.
type AliasMoveCmd struct {
	clientFlags `embed:""`

	Image   string `arg:"" help:"Image."`
	Alias   string `arg:"" help:"Alias: latest, stable, or any other name."`
	Version string `arg:"" help:"Published version that it is to name."`
}

// Run moves.
func (cmd *AliasMoveCmd) Run(ctx context.Context, t Terminal) error {
	c, err := cmd.operator(t)
	if err != nil {
		return err
	}
	if err := c.MoveAlias(ctx, cmd.Image, cmd.Alias, cmd.Version); err != nil {
		return err
	}
	return cmd.tell(t, map[string]string{"image": cmd.Image, "alias": cmd.Alias, "version": cmd.Version},
		fmt.Sprintf("%s/%s is %s", printable(cmd.Image), printable(cmd.Alias), printable(cmd.Version)))
}

// AliasRemoveCmd removes one.
type AliasRemoveCmd struct {
	clientFlags `embed:""`

	Image string `arg:"" help:"Image."`
	Alias string `arg:"" help:"Alias to remove."`
}

// Run removes.
func (cmd *AliasRemoveCmd) Run(ctx context.Context, t Terminal) error {
	c, err := cmd.operator(t)
	if err != nil {
		return err
	}
	if err := c.RemoveAlias(ctx, cmd.Image, cmd.Alias); err != nil {
		return err
	}
	return cmd.tell(t, map[string]string{"image": cmd.Image, "alias": cmd.Alias}, fmt.Sprintf("%s/%s is removed", printable(cmd.Image), printable(cmd.Alias)))
}

// tell writes what was done: as JSON for programs, else as a line.
func (f *clientFlags) tell(t Terminal, result any, line string) error {
	if f.JSON {
		return writeJSON(t.Out, result)
	}
	_, err := fmt.Fprintln(t.Out, line)
	return err
}
