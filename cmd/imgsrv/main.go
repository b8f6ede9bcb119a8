// Command imgsrv is the server and its client in one program: this package holds the grammar of the command line and one
// file for each command. It wires parts together and talks to people; what it knows of images it has from other packages.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"
	"golang.org/x/term"

	"github.com/imgsrv/imgsrv/internal/client"
	"github.com/imgsrv/imgsrv/internal/incus"
	"github.com/imgsrv/imgsrv/internal/tracecontext"
)

// Exit codes, as shells and make expect them.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitInterrupted = 130 // 128 + SIGINT
)

// grammar is the command line. Each flag is also an environment variable, IMGSRV_ and its name. A command's example tag is shown by
// its --help.
type grammar struct {
	Start StartCmd `cmd:"" group:"server" help:"Run a server, until Ctrl-C." example:"start --data-dir /srv/imgsrv --listen 127.0.0.1:8080 --tls-listen :8443"`
	Demo  DemoCmd  `cmd:"" group:"server" help:"Try it out: run a server in a temporary folder, publish a small image, fetch it back." example:"demo --once"`

	Publish  PublishCmd  `cmd:"" group:"publish" help:"Upload image files and publish them as a version of an image." example:"publish disk.qcow2 --image debian-bookworm --version 12.5.0 --alias latest"`
	Jobs     JobsCmd     `cmd:"" group:"publish" help:"List publication jobs; retry or cancel one."`
	Alias    AliasCmd    `cmd:"" group:"publish" help:"Point an alias, such as latest or stable, at a version, or remove one."`
	Withdraw WithdrawCmd `cmd:"" group:"publish" help:"Take a version out of lists and streams, with a reason." example:"withdraw debian-bookworm/12.5.0 --reason 'boots no more' --move-alias 12.4.0"`
	Derive   DeriveCmd   `cmd:"" group:"publish" help:"Have the server make a further format of a published disk, or try again." example:"derive debian-bookworm/12.5.0 disk.vmdk"`
	Policy   PolicyCmd   `cmd:"" group:"publish" help:"Say what is made of an image's versions, and how long they are kept."`

	Images     ImagesCmd     `cmd:"" group:"fetch" help:"List images, or the versions of one; make an image public or private."`
	Download   DownloadCmd   `cmd:"" group:"fetch" help:"Download a file of a published version, and check it." example:"download debian-bookworm/latest --output disk.qcow2"`
	SigningKey SigningKeyCmd `cmd:"" group:"fetch" help:"Print the public key that the server signs checksums with, for download --public-key." example:"signing-key > imgsrv.pub"`
	History    HistoryCmd    `cmd:"" group:"fetch" help:"Tell what happened to an image, or to one version." example:"history debian-bookworm/12.5.0 --who"`

	Mirrors MirrorsCmd `cmd:"" group:"others" help:"Follow other simplestreams servers: add, list, sync and remove mirrors."`
	Import  ImportCmd  `cmd:"" group:"others" help:"Take over images that another program keeps: an existing simplestreams tree."`
	Export  ExportCmd  `cmd:"" group:"others" help:"Write what Incus and LXD are offered as a static tree, for any web server to serve." example:"export /srv/www/images --folders --delete"`

	Events      EventsCmd      `cmd:"" group:"events" help:"Follow what happens, look at an event, move a history between servers."`
	Webhooks    WebhooksCmd    `cmd:"" group:"events" help:"Send events to URLs: add, list and remove webhooks, and see to what they didn't take."`
	Subscribers SubscribersCmd `cmd:"" group:"events" help:"Let services read events over NATS: add, list and remove subscribers."`

	Status      StatusCmd      `cmd:"" group:"operate" help:"Show how a server is doing, and all that it has given up." example:"status --json"`
	Operations  OperationsCmd  `cmd:"" group:"operate" help:"List, follow and cancel what the server does at length."`
	Backup      BackupCmd      `cmd:"" group:"operate" help:"Have the server copy its events and images to a folder on its machine, or to S3, while it runs." example:"backup /srv/backup --with-secrets"`
	Restore     RestoreCmd     `cmd:"" group:"operate" help:"Make a server's data folder from a backup." example:"restore /srv/backup --data-dir /srv/restored"`
	Fsck        FsckCmd        `cmd:"" group:"operate" help:"Read all files in the storage again, and find those that the disk has changed or lost." example:"fsck --repair"`
	GC          GCCmd          `cmd:"" name:"gc" group:"operate" help:"Remove what nothing needs any more: blobs that no version names, abandoned uploads." example:"gc --dry-run"`
	Projections ProjectionsCmd `cmd:"" group:"operate" help:"Show, rebuild and verify the projections; replay or skip events."`

	Principals PrincipalsCmd `cmd:"" group:"admin" help:"Say who may do what: people and services, and their roles."`
	Tokens     TokensCmd     `cmd:"" group:"admin" help:"Issue, list, rotate and revoke tokens. Everybody may rotate their own."`
	Trust      TrustCmd      `cmd:"" group:"admin" help:"Say whose OIDC tokens are taken, so that CI publishes without a stored secret."`
}

// Terminal is where a command reads and writes.
type Terminal struct {
	In  io.Reader
	Out io.Writer // results, and nothing else
	Err io.Writer // progress and errors
	// Fancy: Err is a terminal that can draw a line anew.
	Fancy bool
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// The first signal ends the command in order; after it signals are again what they are to any program.
	context.AfterFunc(ctx, stop)
	ctx = tracecontext.With(ctx, os.Getenv("TRACEPARENT")) // as CI systems and otel-cli give it
	t := Terminal{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Fancy: term.IsTerminal(int(os.Stderr.Fd())) && os.Getenv("TERM") != "dumb"}
	code := run(ctx, os.Args[1:], t)
	stop()
	os.Exit(code)
}

// run is the program: it parses, runs one command and gives the exit code.
func run(ctx context.Context, args []string, t Terminal) (code int) {
	// kong leaves --help through its exit function, in the middle of parsing.
	type exit int
	defer func() {
		if r := recover(); r != nil {
			e, ok := r.(exit)
			if !ok {
				panic(r)
			}
			code = int(e)
		}
	}()
	parser, err := newParser(ctx, &grammar{}, t, func(code int) { panic(exit(code)) })
	if err != nil {
		return t.fail(fmt.Errorf("set up the command line: %w", err), exitFailed)
	}
	if len(args) == 0 {
		return t.fail(errors.New("name a command, such as imgsrv start or imgsrv publish (see: imgsrv --help)"), exitUsage)
	}
	if args[0] == "help" { // as other programs have it
		args = append(slices.Clone(args[1:]), "--help")
	}
	command, err := parser.Parse(args)
	if err != nil {
		var parse *kong.ParseError
		hint := "imgsrv --help"
		if errors.As(err, &parse) && parse.Context.Selected() != nil {
			hint = "imgsrv " + parse.Context.Selected().Path() + " --help"
		}
		return t.fail(fmt.Errorf("%s (see: %s)", plainer.Replace(err.Error()), hint), exitUsage)
	}
	err = command.Run()
	var u *usageError
	var interrupted *interruptedError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &u):
		return t.fail(err, exitUsage)
	case errors.As(err, &interrupted):
		return t.fail(err, exitInterrupted)
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
		return t.fail(errors.New("interrupted"), exitInterrupted)
	}
	return t.fail(withRemedy(err), exitFailed)
}

// plainer puts what kong says of a wrong value into words that name the right one.
var plainer = strings.NewReplacer(`must be one of "",`, "must be one of ", "expected duration but got", "expected a duration, such as 90s, 30m or 720h, but got")

func newParser(ctx context.Context, g *grammar, t Terminal, leave func(code int)) (*kong.Kong, error) {
	return kong.New(g,
		kong.Name("imgsrv"),
		kong.Description("Publishes versioned disk images: to curl, to Incus and LXD, and to services that wait for them. Begin with: imgsrv start\n\n"+
			"Each flag is also an environment variable: --data-dir is IMGSRV_DATA_DIR."),
		kong.ExplicitGroups(helpGroups()),
		kong.PostBuild(completeHelp),
		kong.DefaultEnvars("IMGSRV"),
		kong.ValueFormatter(describeFlag),
		kong.Vars{"architecture": hostArchitecture()},
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, FlagsLast: true, NoExpandSubcommands: true}),
		kong.Writers(t.Out, t.Err),
		kong.Exit(leave),
		kong.BindTo(ctx, (*context.Context)(nil)),
		kong.Bind(t),
	)
}

// helpGroups are the parts that --help shows commands and flags in.
func helpGroups() []kong.Group {
	return []kong.Group{
		{Key: "server", Title: "A server:"},
		{Key: "publish", Title: "Publishing:"},
		{Key: "fetch", Title: "Looking and fetching:"},
		{Key: "others", Title: "From and to other servers:"},
		{Key: "events", Title: "Telling others what happens:"},
		{Key: "operate", Title: "For operators:"},
		{Key: "admin", Title: "For admins:"},

		{Key: "connection", Title: "Which server, and how to talk to it (each is a variable too: --token is IMGSRV_TOKEN):"},
		{Key: "offline", Title: "With --offline:"},

		{Key: "listening", Title: "Where it listens, and how it stops:"},
		{Key: "tls", Title: "HTTPS and browsers:"},
		{Key: "storage", Title: "What it keeps, and its keys:"},
		{Key: "nats", Title: "Events, in NATS:"},
		{Key: "postgres", Title: "Projections, in PostgreSQL:"},
		{Key: "reach", Title: "OIDC issuers, webhooks and mirrors:"},
		{Key: "limits", Title: "What one client may take:"},
		{Key: "work", Title: "Work in the background:"},
		{Key: "telemetry", Title: "Log and metrics:"},
	}
}

// completeHelp makes the example tags a part of what --help says. The groups are for the commands of the first level alone.
func completeHelp(k *kong.Kong) error {
	return kong.Visit(k.Model, func(v kong.Visitable, next kong.Next) error {
		node, ok := v.(*kong.Node)
		if !ok || node.Tag == nil {
			return next(nil)
		}
		if example := node.Tag.Get("example"); example != "" {
			node.Detail = strings.TrimSpace(node.Detail + "\n\nExample:\n\n  " + k.Model.Name + " " + example)
		}
		for _, child := range node.Children {
			child.Group = &kong.Group{Title: "Commands:"}
		}
		return next(nil)
	})
}

// describeFlag is a flag's help with its default.
func describeFlag(v *kong.Value) string {
	if v.Flag == nil || !v.HasDefault || v.Default == "" || v.Default == "0" {
		return v.Help
	}
	return v.Help + " (default: " + v.Default + ")"
}

// fail says an error in one line. What servers say can't move the cursor.
func (t Terminal) fail(err error, code int) int {
	text := strings.Join(strings.Fields(printable(err.Error())), " ")
	_, _ = fmt.Fprintf(t.Err, "imgsrv: %s\n", text)
	return code
}

// usageError is a command line that can't be meant so.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

func usagef(format string, args ...any) error { return &usageError{fmt.Sprintf(format, args...)} }

// interruptedError is a command that was ended by a signal; hint says how to go on.
type interruptedError struct{ hint string }

func (e *interruptedError) Error() string { return "interrupted: " + e.hint }

// withRemedy adds what to do about an error, where that isn't in it.
func withRemedy(err error) error {
	var connection *client.ConnectionError
	var p *client.Problem
	switch {
	case errors.As(err, &connection) && connection.Refused():
		return fmt.Errorf("nobody listens at %s: is imgsrv running? Start it with: imgsrv start; or say where it is with --server or IMGSRV_SERVER", connection.Server)
	case errors.As(err, &connection) && strings.HasPrefix(connection.Server, "https:"):
		return fmt.Errorf("%w (a server with a certificate of its own needs --ca-file: <data-dir>/tls/cert.pem on the server)", err)
	case errors.As(err, &p) && p.Code == "alias-in-use":
		return fmt.Errorf("%w (--move-alias VERSION, or --remove-alias)", err)
	case errors.As(err, &p) && p.Code == client.CodeUnauthorized && (strings.Contains(err.Error(), "needs a token") || strings.Contains(err.Error(), "token is unknown")):
		return fmt.Errorf("%w (give the token with --token or IMGSRV_TOKEN; on the server's machine it is found in --data-dir, as admin.token)", err)
	}
	return err
}

// hostArchitecture is this machine's architecture by Incus's name for it.
func hostArchitecture() string { return architectureOf(goarch) }

func architectureOf(goarch string) string {
	if goarch == "arm" {
		return "armhf" // what Go calls arm is on today's machines ARMv7 with an FPU, not the armel that Incus means
	}
	if name, ok := incus.Canonical(goarch); ok {
		return name
	}
	return goarch
}
