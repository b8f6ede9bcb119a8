package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/imgsrv/imgsrv/internal/client"
)

// WithdrawCmd takes a version out of lists and streams, or brings it back.
type WithdrawCmd struct {
	clientFlags `embed:""`

	Version     string `arg:"" name:"image/version" help:"Version to withdraw, as IMAGE/VERSION."`
	Reason      string `help:"Why; whoever asks for the version is told. Needed, but for --undo." placeholder:"TEXT" xor:"what"`
	Undo        bool   `help:"Bring a withdrawn version back, as long as its bytes are there." xor:"what"`
	MoveAlias   string `help:"Version that aliases of the withdrawn one are to name from then on." placeholder:"VERSION" xor:"alias"`
	RemoveAlias bool   `help:"Remove the aliases of the withdrawn version." xor:"alias"`
}

// Run withdraws or restores.
func (cmd *WithdrawCmd) Run(ctx context.Context, t Terminal) error {
	switch {
	case !cmd.Undo && cmd.Reason == "":
		return usagef("a withdrawal takes a --reason, which whoever asks for the version is told; --undo brings a version back")
	case cmd.Undo && (cmd.MoveAlias != "" || cmd.RemoveAlias):
		return usagef("--undo brings no aliases back: move them with imgsrv alias move")
	}
	return changeVersion(t, cmd.clientFlags, cmd.Version, func(c *client.Client, image, version string) (*client.VersionState, error) {
		if cmd.Undo {
			return c.Restore(ctx, image, version)
		}
		return c.Withdraw(ctx, image, version, client.Withdrawal{Reason: cmd.Reason, MoveAlias: cmd.MoveAlias, RemoveAlias: cmd.RemoveAlias})
	})
}

func changeVersion(t Terminal, flags clientFlags, name string, change func(c *client.Client, image, version string) (*client.VersionState, error)) error {
	image, version, ok := strings.Cut(name, "/")
	if !ok || image == "" || version == "" {
		return usagef("%q is no version: give it as IMAGE/VERSION", name)
	}
	if err := flags.needToken(); err != nil {
		return err
	}
	c, err := flags.connect(newProgress(t, flags.Quiet))
	if err != nil {
		return err
	}
	state, err := change(c, image, version)
	if err != nil {
		return err
	}
	if flags.JSON {
		return writeJSON(t.Out, state)
	}
	_, err = fmt.Fprintf(t.Out, "%s/%s is %s\n", printable(state.Image), printable(state.Version), printable(state.State))
	return err
}
