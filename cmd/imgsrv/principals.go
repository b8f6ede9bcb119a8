package main

import (
	"context"
	"io"
	"strings"

	"github.com/imgsrv/imgsrv/internal/client"
)

// PrincipalsCmd manages who may do what.
type PrincipalsCmd struct {
	List   PrincipalsListCmd   `cmd:"" default:"withargs" help:"List principals and their roles. The same as: imgsrv principals" example:"principals"`
	Create PrincipalsCreateCmd `cmd:"" help:"Make a principal: a person or a service." example:"principals create ci --description 'builds the images'"`
	Grant  PrincipalsGrantCmd  `cmd:"" help:"Give a principal a role." example:"principals grant ci publisher --images 'debian-*'"`
	Revoke PrincipalsRevokeCmd `cmd:"" help:"Take a role from a principal." example:"principals revoke ci publisher --images 'debian-*'"`
	Remove PrincipalsRemoveCmd `cmd:"" help:"End a principal and all its tokens." example:"principals remove ci"`
}

// roleFlags name roles; each --images belongs to all of them.
type roleFlags struct {
	Role   []string `help:"Role: reader, publisher, operator or admin; may be repeated." enum:"reader,publisher,operator,admin" placeholder:"ROLE"`
	Images []string `help:"Images that the roles are for, with * for any characters: 'team-a-*'; may be repeated. Default: the whole server." placeholder:"PATTERN"`
}

func (f roleFlags) roles() ([]client.Role, error) {
	if len(f.Role) == 0 && len(f.Images) > 0 {
		return nil, usagef("--images says what --role is for: give that too")
	}
	var roles []client.Role
	for _, role := range f.Role {
		if len(f.Images) == 0 {
			roles = append(roles, client.Role{Role: role})
		}
		for _, images := range f.Images {
			roles = append(roles, client.Role{Role: role, Images: images})
		}
	}
	return roles, nil
}

// oneRole is a role that a command is about.
type oneRole struct {
	Role   string `arg:"" help:"Role: reader, publisher, operator or admin." enum:"reader,publisher,operator,admin"`
	Images string `help:"Images that the role is for, with * for any characters. Default: the whole server." placeholder:"PATTERN"`
}

// PrincipalsListCmd lists principals.
type PrincipalsListCmd struct {
	clientFlags `embed:""`
}

// Run lists.
func (cmd *PrincipalsListCmd) Run(ctx context.Context, t Terminal) error {
	c, err := cmd.operator(t)
	if err != nil {
		return err
	}
	list, err := c.Principals(ctx)
	if err != nil {
		return err
	}
	if cmd.JSON {
		return writeJSON(t.Out, list)
	}
	return printPrincipals(t.Out, list)
}

// PrincipalsCreateCmd makes a principal.
type PrincipalsCreateCmd struct {
	clientFlags `embed:""`
	roleFlags   `embed:""`

	Name        string `arg:"" help:"Name: lower-case letters, digits, '.', '_', '@', '+' and '-'."`
	Kind        string `help:"Whether it is a person or a service." enum:"person,service" default:"service"`
	Description string `help:"For people." placeholder:"TEXT"`
}

// Run makes it.
func (cmd *PrincipalsCreateCmd) Run(ctx context.Context, t Terminal) error {
	roles, err := cmd.roles()
	if err != nil {
		return err
	}
	c, err := cmd.operator(t)
	if err != nil {
		return err
	}
	p, err := c.CreatePrincipal(ctx, client.Principal{Name: cmd.Name, Kind: cmd.Kind, Description: cmd.Description, Roles: roles})
	return cmd.print(t, p, err)
}

func (f *clientFlags) print(t Terminal, p *client.Principal, err error) error {
	if err != nil {
		return err
	}
	if f.JSON {
		return writeJSON(t.Out, p)
	}
	return printPrincipals(t.Out, []client.Principal{*p})
}

// PrincipalsGrantCmd gives a role.
type PrincipalsGrantCmd struct {
	clientFlags `embed:""`

	Name string `arg:"" help:"Principal that gets the role."`
	oneRole
}

// Run gives it.
func (cmd *PrincipalsGrantCmd) Run(ctx context.Context, t Terminal) error {
	c, err := cmd.operator(t)
	if err != nil {
		return err
	}
	p, err := c.GrantRole(ctx, cmd.Name, client.Role{Role: cmd.Role, Images: cmd.Images})
	return cmd.print(t, p, err)
}

// PrincipalsRevokeCmd takes a role.
type PrincipalsRevokeCmd struct {
	clientFlags `embed:""`

	Name string `arg:"" help:"Principal that loses the role."`
	oneRole
}

// Run takes it.
func (cmd *PrincipalsRevokeCmd) Run(ctx context.Context, t Terminal) error {
	c, err := cmd.operator(t)
	if err != nil {
		return err
	}
	p, err := c.RevokeRole(ctx, cmd.Name, client.Role{Role: cmd.Role, Images: cmd.Images})
	return cmd.print(t, p, err)
}

// PrincipalsRemoveCmd ends a principal.
type PrincipalsRemoveCmd struct {
	clientFlags `embed:""`

	Name string `arg:"" help:"Principal to remove."`
}

// Run ends it.
func (cmd *PrincipalsRemoveCmd) Run(ctx context.Context, t Terminal) error {
	c, err := cmd.operator(t)
	if err != nil {
		return err
	}
	return c.RemovePrincipal(ctx, cmd.Name)
}

func printPrincipals(w io.Writer, list []client.Principal) error {
	t := newTable(w)
	t.row("PRINCIPAL\tKIND\tROLES\tDESCRIPTION")
	for _, p := range list {
		t.row("%s\t%s\t%s\t%s", p.Name, p.Kind, describeRoles(p.Roles, "none"), orDash(p.Description))
	}
	return t.flush()
}

func describeRoles(roles []client.Role, none string) string {
	if len(roles) == 0 {
		return none
	}
	var texts []string
	for _, r := range roles {
		text := r.Role
		if r.Images != "" {
			text += " on " + r.Images
		}
		texts = append(texts, text)
	}
	return strings.Join(texts, ", ")
}
