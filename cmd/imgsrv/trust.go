package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/imgsrv/imgsrv/internal/client"
)

// TrustCmd manages trust rules.
type TrustCmd struct {
	List   TrustListCmd   `cmd:"" default:"withargs" help:"List trust rules. The same as: imgsrv trust" example:"trust"`
	Add    TrustAddCmd    `cmd:"" help:"Give roles to whoever brings an OIDC token of an issuer with certain claims." example:"trust add github-main --issuer https://token.actions.githubusercontent.com \\\n      --audience https://images.example.org --claim repository=acme/images --role publisher"`
	Remove TrustRemoveCmd `cmd:"" help:"End a trust rule, and the tokens that came by it." example:"trust remove 0199a1b2-3c4d-7e5f-8a6b-7c8d9e0f1a2b"`
}

// TrustListCmd lists rules.
type TrustListCmd struct {
	clientFlags `embed:""`
}

// Run lists.
func (cmd *TrustListCmd) Run(ctx context.Context, t Terminal) error {
	c, err := cmd.operator(t)
	if err != nil {
		return err
	}
	rules, err := c.TrustRules(ctx)
	if err != nil {
		return err
	}
	if cmd.JSON {
		return writeJSON(t.Out, rules)
	}
	return printTrust(t.Out, rules)
}

// TrustAddCmd adds a rule.
type TrustAddCmd struct {
	clientFlags `embed:""`
	Role        []string `help:"Role: reader, publisher or operator; may be repeated." enum:"reader,publisher,operator" placeholder:"ROLE"`
	Images      []string `help:"Images that the roles are for, with * for any characters: 'team-a-*'; may be repeated. Default: the whole server." placeholder:"PATTERN"`

	Name     string            `arg:"" help:"Name of the rule, such as github-main."`
	Issuer   string            `required:"" help:"URL of the issuer, exactly as in the tokens' iss: https://token.actions.githubusercontent.com." placeholder:"URL"`
	Audience string            `required:"" help:"What the tokens' aud has to hold; this server's URL is a good choice." placeholder:"TEXT"`
	Claim    map[string]string `required:"" mapsep:"none" help:"Claim that a token has to make, with * for any characters: repository=acme/images; may be repeated, and all have to hold." placeholder:"NAME=VALUE"`
	TokenTTL time.Duration     `name:"token-ttl" help:"How long a token lives at most that comes in exchange for an OIDC token. Default: 1h." placeholder:"DURATION"`
}

// Run adds.
func (cmd *TrustAddCmd) Run(ctx context.Context, t Terminal) error {
	roles, err := roleFlags{cmd.Role, cmd.Images}.roles()
	if err != nil {
		return err
	}
	if len(roles) == 0 {
		return usagef("--role is needed: what the tokens allow")
	}
	rule := client.NewTrustRule{Name: cmd.Name, Issuer: cmd.Issuer, Audience: cmd.Audience, Claims: cmd.Claim, Roles: roles}
	switch {
	case cmd.TokenTTL < 0:
		return usagef("--token-ttl is a duration such as 2h")
	case cmd.TokenTTL > 0:
		rule.TokenTTL = cmd.TokenTTL.String()
	}
	c, err := cmd.operator(t)
	if err != nil {
		return err
	}
	added, err := c.AddTrustRule(ctx, rule)
	if err != nil {
		return err
	}
	if cmd.JSON {
		return writeJSON(t.Out, added)
	}
	return printTrust(t.Out, []client.TrustRule{*added})
}

// TrustRemoveCmd ends a rule.
type TrustRemoveCmd struct {
	clientFlags `embed:""`

	ID string `arg:"" help:"Id of the rule to remove."`
}

// Run ends it.
func (cmd *TrustRemoveCmd) Run(ctx context.Context, t Terminal) error {
	c, err := cmd.operator(t)
	if err != nil {
		return err
	}
	return c.RemoveTrustRule(ctx, cmd.ID)
}

func printTrust(w io.Writer, rules []client.TrustRule) error {
	t := newTable(w)
	t.row("RULE\tNAME\tISSUER\tAUDIENCE\tCLAIMS\tROLES\tTOKENS")
	for _, r := range rules {
		var claims, roles []string
		for _, name := range slices.Sorted(maps.Keys(r.Claims)) {
			claims = append(claims, name+"="+r.Claims[name])
		}
		for _, role := range r.Roles {
			if role.Images == "" {
				roles = append(roles, role.Role)
			} else {
				roles = append(roles, fmt.Sprintf("%s on %s", role.Role, role.Images))
			}
		}
		t.row("%s\t%s\t%s\t%s\t%s\t%s\t%s", r.ID, r.Name, r.Issuer, r.Audience, strings.Join(claims, " "), strings.Join(roles, ", "), r.TokenTTL)
	}
	return t.flush()
}
