package main

import (
	"context"
	"fmt"
)

// SigningKeyCmd prints a server's public key.
type SigningKeyCmd struct {
	clientFlags `embed:""`
}

// signingKey is what the command writes with --json.
type signingKey struct {
	ID        string `json:"id"`
	PublicKey string `json:"public_key"`
}

// Run prints.
func (cmd *SigningKeyCmd) Run(ctx context.Context, t Terminal) error {
	c, err := cmd.connect(newProgress(t, cmd.Quiet))
	if err != nil {
		return err
	}
	key, err := c.SigningKey(ctx)
	if err != nil {
		return err
	}
	if cmd.JSON {
		return writeJSON(t.Out, signingKey{key.ID(), key.String()})
	}
	_, err = fmt.Fprintln(t.Out, key)
	return err
}
