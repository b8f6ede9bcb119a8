package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/imgsrv/imgsrv/internal/client"
)

// WebhooksCmd sends events to URLs.
type WebhooksCmd struct {
	List        WebhooksListCmd        `cmd:"" default:"withargs" help:"List webhooks. The same as: imgsrv webhooks" example:"webhooks"`
	Add         WebhooksAddCmd         `cmd:"" help:"Send events to a URL from now on, and print the secret that signs them." example:"webhooks add https://deploy.example.org/hook --type 'imgsrv.version.*' --image 'debian-*'"`
	Remove      WebhooksRemoveCmd      `cmd:"" help:"Send nothing more to a webhook." example:"webhooks remove 0199a1b2-3c4d-7e5f-8a6b-7c8d9e0f1a2b"`
	Secret      WebhooksSecretCmd      `cmd:"" help:"Print a webhook's secret again." example:"webhooks secret 0199a1b2-3c4d-7e5f-8a6b-7c8d9e0f1a2b"`
	DeadLetters WebhooksDeadLettersCmd `cmd:"" help:"List the events that a webhook didn't take and that were given up." example:"webhooks dead-letters 0199a1b2-3c4d-7e5f-8a6b-7c8d9e0f1a2b"`
	Redeliver   WebhooksRedeliverCmd   `cmd:"" help:"Send a past event (again): at once where it is being retried, otherwise out of order." example:"webhooks redeliver 0199a1b2-3c4d-7e5f-8a6b-7c8d9e0f1a2b 42 --wait"`
}

// WebhooksListCmd lists webhooks.
type WebhooksListCmd struct {
	clientFlags `embed:""`
}

// Run lists.
func (cmd *WebhooksListCmd) Run(ctx context.Context, t Terminal) error {
	c, err := cmd.operator(t)
	if err != nil {
		return err
	}
	hooks, err := c.Webhooks(ctx)
	if err != nil {
		return err
	}
	if cmd.JSON {
		return writeJSON(t.Out, hooks)
	}
	return printWebhooks(t.Out, hooks)
}

// WebhooksAddCmd adds a webhook.
type WebhooksAddCmd struct {
	clientFlags `embed:""`

	URL   string   `arg:"" name:"url" help:"Where events are posted to."`
	Type  []string `help:"Type of event, or its beginning with * at the end: imgsrv.version.published.*; may be repeated. Default: all." placeholder:"TYPE"`
	Image []string `help:"Image, with * for any characters: debian-*; may be repeated. Default: all, and events about no image." placeholder:"IMAGE"`
	From  uint64   `help:"Sequence of the first event to send; 1 for the whole history. Default: what happens from now on." placeholder:"SEQ"`
}

// Run adds.
func (cmd *WebhooksAddCmd) Run(ctx context.Context, t Terminal) error {
	c, err := cmd.operator(t)
	if err != nil {
		return err
	}
	hook, err := c.AddWebhook(ctx, client.NewWebhook{URL: cmd.URL, Types: cmd.Type, Images: cmd.Image, From: cmd.From})
	if err != nil {
		return err
	}
	if cmd.JSON {
		return writeJSON(t.Out, hook)
	}
	table := newTable(t.Out)
	table.row("webhook\t%s", hook.ID)
	table.row("url\t%s", hook.URL)
	table.row("from\tevent %d", hook.From)
	table.row("secret\t%s", hook.Secret)
	return table.flush()
}

// WebhooksRemoveCmd removes a webhook.
type WebhooksRemoveCmd struct {
	clientFlags `embed:""`

	ID string `arg:"" help:"Webhook to remove."`
}

// Run removes.
func (cmd *WebhooksRemoveCmd) Run(ctx context.Context, t Terminal) error {
	c, err := cmd.operator(t)
	if err != nil {
		return err
	}
	return c.RemoveWebhook(ctx, cmd.ID)
}

// WebhooksSecretCmd prints a secret.
type WebhooksSecretCmd struct {
	clientFlags `embed:""`

	ID string `arg:"" help:"Webhook whose secret to print."`
}

// Run prints.
func (cmd *WebhooksSecretCmd) Run(ctx context.Context, t Terminal) error {
	c, err := cmd.operator(t)
	if err != nil {
		return err
	}
	secret, err := c.WebhookSecret(ctx, cmd.ID)
	if err != nil {
		return err
	}
	if cmd.JSON {
		return writeJSON(t.Out, map[string]string{"secret": secret})
	}
	if _, err := fmt.Fprintln(t.Out, printable(secret)); err != nil {
		return fmt.Errorf("write the output: %w", err)
	}
	return nil
}

// WebhooksDeadLettersCmd lists what was given up.
type WebhooksDeadLettersCmd struct {
	clientFlags `embed:""`

	ID string `arg:"" help:"Webhook whose dead letters to list."`
}

// Run lists.
func (cmd *WebhooksDeadLettersCmd) Run(ctx context.Context, t Terminal) error {
	c, err := cmd.operator(t)
	if err != nil {
		return err
	}
	letters, err := c.DeadLetters(ctx, cmd.ID)
	if err != nil {
		return err
	}
	if cmd.JSON {
		return writeJSON(t.Out, letters)
	}
	return printDeliveries(t.Out, letters)
}

// WebhooksRedeliverCmd sends a past event.
type WebhooksRedeliverCmd struct {
	clientFlags `embed:""`

	ID       string `arg:"" help:"Webhook to send to."`
	Sequence uint64 `arg:"" name:"seq" help:"Sequence of the event."`
	Wait     bool   `help:"Wait for what comes of it."`
}

// Run asks for it.
func (cmd *WebhooksRedeliverCmd) Run(ctx context.Context, t Terminal) error {
	c, err := cmd.operator(t)
	if err != nil {
		return err
	}
	d, err := c.Redeliver(ctx, cmd.ID, cmd.Sequence)
	if err != nil {
		return err
	}
	if cmd.Wait {
		if d, err = c.WaitDelivery(ctx, d); err != nil {
			return interrupted(ctx, err, "the delivery goes on; see: imgsrv webhooks dead-letters "+cmd.ID)
		}
		if d.State != client.DeliveryDelivered {
			return fmt.Errorf("event %d was not delivered: %s", d.Sequence, d.Error)
		}
	}
	if cmd.JSON {
		return writeJSON(t.Out, d)
	}
	return printDeliveries(t.Out, []client.Delivery{*d})
}

// operator connects for a command that needs a token.
func (f *clientFlags) operator(t Terminal) (*client.Client, error) {
	if err := f.needToken(); err != nil {
		return nil, err
	}
	return f.connect(newProgress(t, f.Quiet))
}

func printWebhooks(w io.Writer, hooks []client.Webhook) error {
	t := newTable(w)
	t.row("WEBHOOK\tURL\tTYPES\tIMAGES\tFROM\tDEAD\tRETRYING")
	for _, h := range hooks {
		retrying := ""
		if r := h.Retrying; r != nil {
			retrying = fmt.Sprintf("event %d at %s: %s", r.Sequence, localTime(r.RetryAt), r.Error)
		}
		t.row("%s\t%s\t%s\t%s\t%d\t%d\t%s", h.ID, h.URL, orAll(h.Types), orAll(h.Images), h.From, h.DeadLetters, orDash(retrying))
	}
	return t.flush()
}

func printDeliveries(w io.Writer, deliveries []client.Delivery) error {
	t := newTable(w)
	t.row("EVENT\tTYPE\tSTATE\tATTEMPTS\tFIRST\tLAST\tERROR")
	for _, d := range deliveries {
		t.row("%d\t%s\t%s\t%d\t%s\t%s\t%s", d.Sequence, d.EventType, d.State, d.Attempts, localTime(d.FirstAttempt), localTime(d.LastAttempt), orDash(d.Error))
	}
	return t.flush()
}

func orAll(list []string) string {
	if len(list) == 0 {
		return "all"
	}
	return strings.Join(list, " ")
}
