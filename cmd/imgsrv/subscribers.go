package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/imgsrv/imgsrv/internal/client"
)

// SubscribersCmd says who may read events over NATS.
type SubscribersCmd struct {
	List   SubscribersListCmd   `cmd:"" default:"withargs" help:"List subscribers and how far they have come. The same as: imgsrv subscribers" example:"subscribers"`
	Add    SubscribersAddCmd    `cmd:"" help:"Let a subscriber read events over NATS, and print its credentials file, once." example:"subscribers add deploys --image debian-bookworm --output deploys.creds"`
	Remove SubscribersRemoveCmd `cmd:"" help:"Shut a subscriber out at once, and forget how far it has come." example:"subscribers remove deploys"`
}

// SubscribersListCmd lists subscribers.
type SubscribersListCmd struct {
	clientFlags `embed:""`
}

// Run lists.
func (cmd *SubscribersListCmd) Run(ctx context.Context, t Terminal) error {
	c, err := cmd.operator(t)
	if err != nil {
		return err
	}
	list, err := c.Subscribers(ctx)
	if err != nil {
		return err
	}
	if cmd.JSON {
		return writeJSON(t.Out, list)
	}
	table := newTable(t.Out)
	table.row("NAME\tIMAGES\tACKNOWLEDGED\tPENDING\tADDED\tBY\tPUBLIC KEY")
	for _, s := range list {
		table.row("%s\t%s\t%d\t%d\t%s\t%s\t%s", s.Name, orAll(s.Images), s.Acknowledged, s.Pending, localTime(s.AddedAt), s.AddedBy, s.PublicKey)
	}
	return table.flush()
}

// SubscribersAddCmd adds a subscriber.
type SubscribersAddCmd struct {
	clientFlags `embed:""`

	Name       string   `arg:"" help:"Name of the subscriber and of its durable consumer: lower-case letters, digits, '_' and '-'."`
	Image      []string `help:"Image whose events it may read, named exactly; may be repeated." placeholder:"IMAGE"`
	All        bool     `help:"It may read the events of all images, private ones too."`
	From       uint64   `help:"Sequence of the first event that it gets. Default: the first of all." placeholder:"SEQ"`
	MaxPending int      `help:"Events that may be out at once; 1 keeps their order." default:"1" placeholder:"N"`
	Output     string   `short:"o" help:"New file for the credentials, readable by you alone. Default: standard output." placeholder:"FILE"`
}

// Run adds.
func (cmd *SubscribersAddCmd) Run(ctx context.Context, t Terminal) (err error) {
	if cmd.All == (len(cmd.Image) > 0) {
		return usagef("say what %s may read: --image IMAGE or --all, not both", cmd.Name)
	}
	c, err := cmd.operator(t)
	if err != nil {
		return err
	}
	// A file that can't be written is found before there is something to lose.
	var file *os.File
	if cmd.Output != "" {
		file, err = os.OpenFile(cmd.Output, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600) //nolint:gosec // the user's own choice
		if errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("%s exists, and credentials aren't written over: choose another --output", cmd.Output)
		}
		if err != nil {
			return fmt.Errorf("write the credentials: %w", err)
		}
		defer func() {
			if closed := file.Close(); err == nil && closed != nil {
				err = fmt.Errorf("write the credentials: %w", closed)
			}
			if err != nil {
				err = errors.Join(err, os.Remove(cmd.Output))
			}
		}()
	}
	added, err := c.AddSubscriber(ctx, client.NewSubscriber{Name: cmd.Name, Images: cmd.Image, All: cmd.All, From: cmd.From, MaxPending: cmd.MaxPending})
	if err != nil {
		return err
	}
	if file != nil {
		if _, err := file.WriteString(added.Credentials); err != nil {
			return fmt.Errorf("write the credentials: %w: remove the subscriber and add it again", err)
		}
		added.Credentials = ""
	}
	if added.NATSConfig != "" && !cmd.JSON {
		_, _ = fmt.Fprintf(t.Err, "imgsrv uses a NATS server of yours, which has to let %s in. Put this among the accounts of its configuration, and reload it:\n\n%s\n", //nolint:errcheck // a hint
			printable(added.Name), printableLines(added.NATSConfig))
	}
	switch {
	case cmd.JSON:
		return writeJSON(t.Out, added)
	case file != nil:
		table := newTable(t.Out)
		table.row("subscriber\t%s", added.Name)
		table.row("images\t%s", orAll(added.Images))
		table.row("public key\t%s", added.PublicKey)
		table.row("credentials\t%s", cmd.Output)
		return table.flush()
	}
	_, err = io.WriteString(t.Out, printableLines(added.Credentials))
	if err != nil {
		return fmt.Errorf("write the output: %w", err)
	}
	return nil
}

// printableLines is printable for a text of several lines.
func printableLines(s string) string {
	lines := strings.Split(s, "\n")
	for i, line := range lines {
		lines[i] = strings.TrimRight(printable(line), " ")
	}
	return strings.Join(lines, "\n")
}

// SubscribersRemoveCmd removes a subscriber.
type SubscribersRemoveCmd struct {
	clientFlags `embed:""`

	Name string `arg:"" help:"Subscriber to shut out."`
}

// Run removes.
func (cmd *SubscribersRemoveCmd) Run(ctx context.Context, t Terminal) error {
	c, err := cmd.operator(t)
	if err != nil {
		return err
	}
	return c.RemoveSubscriber(ctx, cmd.Name)
}
