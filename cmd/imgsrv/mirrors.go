package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/imgsrv/imgsrv/internal/client"
)

// MirrorsCmd follows other simplestreams servers.
type MirrorsCmd struct {
	List   MirrorsListCmd   `cmd:"" default:"withargs" help:"List mirrors and how far they have come. The same as: imgsrv mirrors" example:"mirrors"`
	Add    MirrorsAddCmd    `cmd:"" help:"Follow a simplestreams server: publish what matches there, now and whenever it changes." example:"mirrors add upstream https://images.linuxcontainers.org --filter 'debian/12/cloud'"`
	Sync   MirrorsSyncCmd   `cmd:"" help:"Look for something new now." example:"mirrors sync upstream --wait"`
	Remove MirrorsRemoveCmd `cmd:"" help:"Follow a server no more. What was published stays." example:"mirrors remove upstream"`
}

// MirrorsListCmd lists mirrors.
type MirrorsListCmd struct {
	clientFlags `embed:""`
}

// Run lists.
func (cmd *MirrorsListCmd) Run(ctx context.Context, t Terminal) error {
	c, err := cmd.operator(t)
	if err != nil {
		return err
	}
	list, err := c.Mirrors(ctx)
	if err != nil {
		return err
	}
	if cmd.JSON {
		return writeJSON(t.Out, list)
	}
	return printMirrors(t.Out, list)
}

// MirrorsAddCmd adds a mirror.
type MirrorsAddCmd struct {
	clientFlags `embed:""`

	Name         string        `arg:"" help:"Name of the mirror: lower-case letters, digits, '_' and '-'."`
	URL          string        `arg:"" name:"url" help:"Address of the server, as Incus has it: https://images.linuxcontainers.org. User and password in it, and the token of /r/TOKEN, are kept by the server and shown to nobody. -: read it from standard input, so that it is in no list of processes."`
	SecretPath   bool          `help:"The path of the address is as secret as a password."`
	Filter       []string      `sep:"none" help:"What to mirror: a pattern of upstream's aliases or products, with * for any characters: 'debian/*'; may be repeated. Default: all." placeholder:"PATTERN"`
	Architecture []string      `help:"Architecture to mirror; may be repeated. Default: all." placeholder:"ARCH"`
	Keep         int           `help:"How many of the newest versions of each image to mirror." default:"1" placeholder:"N"`
	ImageName    string        `help:"Names of the images, with the fields {os}, {release}, {variant}, {arch} and {type}. Default: {os}-{release}-{variant}-{arch}, and of another imgsrv the names it has there." placeholder:"TEMPLATE"`
	UpstreamKey  string        `help:"File with OpenPGP public keys, armored, one of which has to have signed upstream's documents (.sjson). Default: the documents are believed as TLS brings them." type:"existingfile" placeholder:"FILE"`
	Visibility   string        `help:"public or private, of images that aren't here yet. Default: private where the address has a user, a password or a secret path, else public." enum:",public,private" default:"" placeholder:"WHO"`
	Every        time.Duration `help:"Time between the end of a run and the next." default:"1h" placeholder:"DURATION"`
	Wait         bool          `help:"Wait for the end of the first run."`
}

// Run adds.
func (cmd *MirrorsAddCmd) Run(ctx context.Context, t Terminal) error {
	c, err := cmd.operator(t)
	if err != nil {
		return err
	}
	address := cmd.URL
	if address == "-" {
		text, err := io.ReadAll(io.LimitReader(t.In, 64<<10))
		if err != nil {
			return fmt.Errorf("read the address from standard input: %w", err)
		}
		address = strings.TrimSpace(string(text))
	}
	key := ""
	if cmd.UpstreamKey != "" {
		text, err := os.ReadFile(cmd.UpstreamKey)
		if err != nil {
			return fmt.Errorf("read upstream's key: %w", err)
		}
		key = string(text)
	}
	mirror, err := c.AddMirror(ctx, client.NewMirror{Name: cmd.Name, URL: address, SecretPath: cmd.SecretPath, Filters: cmd.Filter, Architectures: cmd.Architecture, Keep: cmd.Keep,
		ImageName: cmd.ImageName, UpstreamKey: key, Visibility: cmd.Visibility, Every: cmd.Every.String()})
	if err != nil {
		return err
	}
	return cmd.show(ctx, t, c, mirror, cmd.Wait)
}

// MirrorsSyncCmd asks for a run.
type MirrorsSyncCmd struct {
	clientFlags `embed:""`

	Name string `arg:"" help:"Mirror to look with."`
	Wait bool   `help:"Wait for the end of the run; fails where the run does."`
}

// Run asks for it.
func (cmd *MirrorsSyncCmd) Run(ctx context.Context, t Terminal) error {
	c, err := cmd.operator(t)
	if err != nil {
		return err
	}
	mirror, err := c.SyncMirror(ctx, cmd.Name)
	if err != nil {
		return err
	}
	return cmd.show(ctx, t, c, mirror, cmd.Wait)
}

// MirrorsRemoveCmd removes a mirror.
type MirrorsRemoveCmd struct {
	clientFlags `embed:""`

	Name string `arg:"" help:"Mirror to remove."`
}

// Run removes.
func (cmd *MirrorsRemoveCmd) Run(ctx context.Context, t Terminal) error {
	c, err := cmd.operator(t)
	if err != nil {
		return err
	}
	return c.RemoveMirror(ctx, cmd.Name)
}

// show prints a mirror, after its run where that is waited for. A run that failed fails the command.
func (f *clientFlags) show(ctx context.Context, t Terminal, c *client.Client, mirror *client.Mirror, wait bool) error {
	var failed error
	if wait {
		var err error
		if mirror, err = c.WaitMirror(ctx, mirror.Name); err != nil {
			return interrupted(ctx, err, "the run goes on; see: imgsrv mirrors")
		}
		if last := mirror.LastRun; last != nil {
			switch {
			case last.Error != "":
				failed = fmt.Errorf("the run failed: %s", last.Error)
			case last.Failed > 0:
				failed = fmt.Errorf("%d of %d versions failed: %s", last.Failed, last.Matched, firstOf(last.Problems))
			}
		}
	}
	if f.JSON {
		if err := writeJSON(t.Out, mirror); err != nil {
			return err
		}
		return failed
	}
	if err := printMirrors(t.Out, []client.Mirror{*mirror}); err != nil {
		return err
	}
	return failed
}

func firstOf(texts []string) string {
	if len(texts) == 0 {
		return "no reason is known"
	}
	return texts[0]
}

func printMirrors(w io.Writer, mirrors []client.Mirror) error {
	t := newTable(w)
	t.row("MIRROR\tURL\tSTATE\tMATCHED\tBEHIND\tREFUSED\tFETCHED\tSAVED\tLAG\tNEXT\tLAST ERROR")
	for _, m := range mirrors {
		last := client.MirrorRun{}
		if m.LastRun != nil {
			last = *m.LastRun
		}
		text := last.Error
		if text == "" && len(last.Problems) > 0 {
			text = last.Problems[0]
		}
		next := "-"
		if !m.NextAt.IsZero() {
			next = localTime(m.NextAt)
		}
		t.row("%s\t%s\t%s\t%d\t%d\t%d\t%s\t%s\t%s\t%s\t%s", m.Name, m.URL, m.State, last.Matched, m.Behind, last.Refused, size(m.FetchedBytes), size(m.SavedBytes),
			time.Duration(m.LagSeconds)*time.Second, next, orDash(text))
	}
	return t.flush()
}
