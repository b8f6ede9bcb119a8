package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/google/uuid"

	"github.com/imgsrv/imgsrv/handlers/access"
	"github.com/imgsrv/imgsrv/internal/client"
)

// TokensCmd manages tokens.
type TokensCmd struct {
	List   TokensListCmd   `cmd:"" default:"withargs" help:"List tokens. The same as: imgsrv tokens" example:"tokens --principal ci"`
	Create TokensCreateCmd `cmd:"" help:"Issue a token, and print it, this once." example:"tokens create --principal ci --name 'build machine' --expires 2160h"`
	Rotate TokensRotateCmd `cmd:"" help:"Put a new token in a token's place, and print it, this once." example:"tokens rotate"`
	Revoke TokensRevokeCmd `cmd:"" help:"End a token, at once and for good." example:"tokens revoke 0199a1b2-3c4d-7e5f-8a6b-7c8d9e0f1a2b"`
}

// TokensListCmd lists tokens.
type TokensListCmd struct {
	clientFlags `embed:""`

	Principal string `help:"Only those of this principal." placeholder:"NAME"`
	Ended     bool   `help:"Also those that are revoked, expired or of somebody who was removed."`
}

// Run lists.
func (cmd *TokensListCmd) Run(ctx context.Context, t Terminal) error {
	c, err := cmd.operator(t)
	if err != nil {
		return err
	}
	list, err := c.Tokens(ctx, cmd.Principal, cmd.Ended)
	if err != nil {
		return err
	}
	if cmd.JSON {
		return writeJSON(t.Out, list)
	}
	return printTokens(t.Out, list)
}

// TokensCreateCmd issues a token.
type TokensCreateCmd struct {
	clientFlags `embed:""`
	roleFlags   `embed:""`

	Principal string        `help:"Whose token it is. Default: yours." placeholder:"NAME"`
	Name      string        `help:"For people: where the token is used." placeholder:"TEXT"`
	Expires   time.Duration `help:"How long it lives, such as 720h. Default: until it is revoked." placeholder:"DURATION"`
}

// Run issues it.
func (cmd *TokensCreateCmd) Run(ctx context.Context, t Terminal) error {
	roles, err := cmd.roles()
	if err != nil {
		return err
	}
	asked := client.NewToken{Principal: cmd.Principal, Name: cmd.Name, Roles: roles}
	switch {
	case cmd.Expires < 0:
		return usagef("--expires is a duration from now on, such as 720h")
	case cmd.Expires > 0:
		asked.ExpiresIn = cmd.Expires.String()
	}
	c, err := cmd.operator(t)
	if err != nil {
		return err
	}
	issued, err := c.CreateToken(ctx, asked)
	if err != nil {
		return err
	}
	return cmd.printIssued(t, issued)
}

// TokensRotateCmd replaces a token.
type TokensRotateCmd struct {
	clientFlags `embed:""`

	ID string `arg:"" optional:"" help:"Token to replace. Default: the one that this command uses; where that is <data-dir>/admin.token, the new one is kept there."`
}

// Run replaces it.
func (cmd *TokensRotateCmd) Run(ctx context.Context, t Terminal) error {
	c, err := cmd.operator(t)
	if err != nil {
		return err
	}
	who, err := c.WhoAmI(ctx)
	if err != nil {
		return err
	}
	if cmd.ID == "" {
		cmd.ID = who.TokenID
	}
	if cmd.ID != "" {
		if err := checkTokenID(cmd.ID); err != nil {
			return err
		}
	}
	if cmd.ID == "" {
		return errors.New("this command doesn't use a token: say which one to replace")
	}
	fromFile := cmd.ID == who.TokenID && cmd.tokenIsFromFile()
	if fromFile {
		// Before the old token ends: a folder that can't be written would lock us out.
		if err := access.CheckWritable(cmd.tokenFile()); err != nil {
			return err
		}
	}
	issued, err := c.RotateToken(ctx, cmd.ID)
	if err != nil {
		return err
	}
	if fromFile {
		if err := access.KeepToken(cmd.tokenFile(), issued.Token); err != nil {
			_ = cmd.printIssued(t, issued) // the old one has ended: nobody else knows this one
			return err
		}
		if !cmd.Quiet {
			_, _ = fmt.Fprintf(t.Err, "kept in %s\n", cmd.tokenFile())
		}
	}
	return cmd.printIssued(t, issued)
}

// checkTokenID keeps what is no id, which may be the token itself, out of the request's path.
func checkTokenID(id string) error {
	if _, err := uuid.Parse(id); err != nil {
		return usagef("say which token by its id, as imgsrv tokens lists it: not by the token itself")
	}
	return nil
}

// tokenIsFromFile says whether the command found its token on this machine.
func (f *clientFlags) tokenIsFromFile() bool {
	base, err := client.ParseServer(f.Server)
	return err == nil && f.Token == "" && f.OIDCTokenFile == "" && isLoopback(base.Hostname())
}

// TokensRevokeCmd ends a token.
type TokensRevokeCmd struct {
	clientFlags `embed:""`

	ID string `arg:"" help:"Token to revoke: its id, not the token itself."`
}

// Run ends it.
func (cmd *TokensRevokeCmd) Run(ctx context.Context, t Terminal) error {
	if err := checkTokenID(cmd.ID); err != nil {
		return err
	}
	c, err := cmd.operator(t)
	if err != nil {
		return err
	}
	return c.RevokeToken(ctx, cmd.ID)
}

func (f *clientFlags) printIssued(t Terminal, issued *client.Token) error {
	if f.JSON {
		return writeJSON(t.Out, issued)
	}
	table := newTable(t.Out)
	table.row("id\t%s", issued.ID)
	table.row("token\t%s", issued.Token)
	table.row("principal\t%s", issued.Principal)
	table.row("roles\t%s", describeRoles(issued.Roles, "all of the principal's"))
	if issued.ExpiresAt != nil {
		table.row("expires\t%s", localTime(*issued.ExpiresAt))
	}
	return table.flush()
}

func printTokens(w io.Writer, list []client.Token) error {
	t := newTable(w)
	t.row("TOKEN\tPRINCIPAL\tNAME\tROLES\tEXPIRES\tLAST USED\tSTATE")
	for _, token := range list {
		expires, state := "never", "good"
		if token.ExpiresAt != nil {
			expires = localTime(*token.ExpiresAt)
		}
		if token.Ended != "" {
			state = token.Ended
		}
		t.row("%s\t%s\t%s\t%s\t%s\t%s\t%s", token.ID, token.Principal, orDash(token.Name), describeRoles(token.Roles, "all"), expires, orDash(token.LastUsed), state)
	}
	return t.flush()
}
