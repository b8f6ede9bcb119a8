package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/imgsrv/imgsrv/internal/client"
)

// PolicyCmd is about images' policies.
type PolicyCmd struct {
	Get PolicyGetCmd `cmd:"" help:"Show an image's policy." example:"policy get debian-bookworm"`
	Set PolicySetCmd `cmd:"" help:"Change an image's policy: what isn't given stays as it is." example:"policy set debian-bookworm --format disk.raw.zst --keep-last 3"`
}

// PolicyGetCmd shows a policy.
type PolicyGetCmd struct {
	clientFlags `embed:""`

	Image string `arg:"" help:"Image."`
}

// Run shows.
func (cmd *PolicyGetCmd) Run(ctx context.Context, t Terminal) error {
	if err := cmd.needToken(); err != nil {
		return err
	}
	c, err := cmd.connect(newProgress(t, cmd.Quiet))
	if err != nil {
		return err
	}
	policy, err := c.Policy(ctx, cmd.Image)
	if err != nil {
		return err
	}
	if cmd.JSON {
		return writeJSON(t.Out, policy)
	}
	return printPolicy(t.Out, policy)
}

// PolicySetCmd changes a policy.
type PolicySetCmd struct {
	clientFlags `embed:""`

	Image    string   `arg:"" help:"Image that has been published to."`
	Format   []string `sep:"none" help:"Format to make of each version, such as disk.raw.zst; with a '?' after it, it is left out where it can't be made. May be repeated; an empty one for none." placeholder:"FORMAT"`
	Deltas   *string  `help:"Against how many older versions deltas are made; default for as many as the server makes by itself." placeholder:"N"`
	KeepLast *int     `help:"Keep the newest versions, so many; 0 for no such rule." placeholder:"N"`
	KeepDays *int     `help:"Keep versions for so many days after their publication; 0 for no such rule." placeholder:"DAYS"`
}

// Run changes.
func (cmd *PolicySetCmd) Run(ctx context.Context, t Terminal) error {
	if cmd.Format == nil && cmd.Deltas == nil && cmd.KeepLast == nil && cmd.KeepDays == nil {
		return usagef("nothing to change: give --format, --deltas, --keep-last or --keep-days")
	}
	if err := cmd.needToken(); err != nil {
		return err
	}
	c, err := cmd.connect(newProgress(t, cmd.Quiet))
	if err != nil {
		return err
	}
	policy, err := cmd.set(ctx, c)
	if err != nil {
		return err
	}
	if cmd.JSON {
		return writeJSON(t.Out, policy)
	}
	return printPolicy(t.Out, policy)
}

// set changes what the flags name in the policy that there is. Should somebody change it at the same time, what they have changed
// stays, and the flags' part is set in theirs.
func (cmd *PolicySetCmd) set(ctx context.Context, c *client.Client) (*client.Policy, error) {
	const attempts = 10
	for attempt := 1; ; attempt++ {
		policy, err := c.Policy(ctx, cmd.Image)
		if err != nil {
			return nil, err
		}
		if err := cmd.change(policy); err != nil {
			return nil, err
		}
		policy, err = c.SetPolicy(ctx, cmd.Image, *policy)
		if !client.IsProblem(err, client.CodePrecondition) || attempt == attempts {
			return policy, err
		}
	}
}

func (cmd *PolicySetCmd) change(p *client.Policy) error {
	if cmd.Format != nil {
		p.Formats = []client.PolicyFormat{}
		for _, format := range cmd.Format {
			if name, optional := strings.CutSuffix(format, "?"); name != "" {
				p.Formats = append(p.Formats, client.PolicyFormat{Format: name, Required: !optional})
			}
		}
	}
	if cmd.Deltas != nil && *cmd.Deltas == "default" {
		p.Deltas = nil
	} else if cmd.Deltas != nil {
		n, err := strconv.Atoi(*cmd.Deltas)
		if err != nil {
			return usagef("--deltas is a number of versions, or default")
		}
		p.Deltas = &n
	}
	if cmd.KeepLast != nil {
		p.Retention.KeepLast = *cmd.KeepLast
	}
	if cmd.KeepDays != nil {
		p.Retention.KeepDays = *cmd.KeepDays
	}
	return nil
}

func printPolicy(w io.Writer, p *client.Policy) error {
	t := newTable(w)
	var formats []string
	for _, f := range p.Formats {
		if !f.Required {
			f.Format += "?"
		}
		formats = append(formats, f.Format)
	}
	deltas, keep := "default", "all"
	if p.Deltas != nil {
		deltas = strconv.Itoa(*p.Deltas)
	}
	switch last, days := p.Retention.KeepLast, p.Retention.KeepDays; {
	case last > 0 && days > 0:
		keep = fmt.Sprintf("the last %d, and those of %d days", last, days)
	case last > 0:
		keep = fmt.Sprintf("the last %d", last)
	case days > 0:
		keep = fmt.Sprintf("those of %d days", days)
	}
	t.row("formats\t%s", orDash(strings.Join(formats, ", ")))
	t.row("deltas\t%s", deltas)
	t.row("keep\t%s", keep)
	return t.flush()
}
