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

// grammar is the command line. Each flag is also an environment variable, IMGSRV_ and its name.
type grammar struct {
	Start       StartCmd       `cmd:"" help:"Run a server, until Ctrl-C."`
	Demo        DemoCmd        `cmd:"" help:"Try it out: run a server in a temporary folder, publish a small image, fetch it back, and serve until Ctrl-C."`
	Publish     PublishCmd     `cmd:"" help:"Upload image files and publish them as a version of an image."`
	Derive      DeriveCmd      `cmd:"" help:"Have the server make a further format of a published disk, or try again."`
	Images      ImagesCmd      `cmd:"" help:"List images, or the versions of one; make an image public or private."`
	Alias       AliasCmd       `cmd:"" help:"Point an alias, such as latest or stable, at a version, or remove one."`
	Withdraw    WithdrawCmd    `cmd:"" help:"Take a version out of lists and streams, with a reason."`
	Backup      BackupCmd      `cmd:"" help:"Have the server copy its events and images to a folder on its machine, or to S3, while it runs."`
	Restore     RestoreCmd     `cmd:"" help:"Make a server's data folder from a backup."`
	Policy      PolicyCmd      `cmd:"" help:"What is made of an image's versions, and how long they are kept."`
	Import      ImportCmd      `cmd:"" help:"Take over images that another program keeps: an existing simplestreams tree."`
	Export      ExportCmd      `cmd:"" help:"Write what Incus and LXD are offered as a static tree, for any web server to serve."`
	Download    DownloadCmd    `cmd:"" help:"Download a file of a published version, and check it."`
	SigningKey  SigningKeyCmd  `cmd:"" help:"Print the public key that the server signs checksums with, for download --public-key."`
	Status      StatusCmd      `cmd:"" help:"For operators: how a server is doing, and all that it has given up."`
	Jobs        JobsCmd        `cmd:"" help:"Show publication jobs, retry a failed one, cancel one that has not published."`
	Events      EventsCmd      `cmd:"" help:"Follow what happens, look at an event, move a history between servers."`
	History     HistoryCmd     `cmd:"" help:"Tell what happened to an image, or to one version."`
	Projections ProjectionsCmd `cmd:"" help:"For operators: status of the projections, rebuild, verify, replay, skip."`
	GC          GCCmd          `cmd:"" name:"gc" help:"For operators: remove what nothing needs any more: blobs that no version names, abandoned uploads."`
	Fsck        FsckCmd        `cmd:"" help:"For operators: read all files in the storage again, and find those that the disk has changed or lost."`
	Operations  OperationsCmd  `cmd:"" help:"For operators: list, follow and cancel what the server does at length."`
	Principals  PrincipalsCmd  `cmd:"" help:"For admins: who may do what: people and services, and their roles."`
	Tokens      TokensCmd      `cmd:"" help:"For admins: issue, list, rotate and revoke tokens; and for everybody: rotate one's own."`
	Trust       TrustCmd       `cmd:"" help:"For admins: whose OIDC tokens are taken, so that CI publishes without a stored secret."`
	Subscribers SubscribersCmd `cmd:"" help:"Let services read events over NATS: add, list and remove subscribers."`
	Mirrors     MirrorsCmd     `cmd:"" help:"Follow other simplestreams servers: add, list, sync and remove mirrors."`
	Webhooks    WebhooksCmd    `cmd:"" help:"Send events to URLs: add, list and remove webhooks, and see to what they didn't take."`
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
	command, err := parser.Parse(args)
	if err != nil {
		var parse *kong.ParseError
		hint := "imgsrv --help"
		if errors.As(err, &parse) && parse.Context.Selected() != nil {
			hint = "imgsrv " + parse.Context.Selected().Path() + " --help"
		}
		return t.fail(fmt.Errorf("%w (see: %s)", err, hint), exitUsage)
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

func newParser(ctx context.Context, g *grammar, t Terminal, leave func(code int)) (*kong.Kong, error) {
	return kong.New(g,
		kong.Name("imgsrv"),
		kong.Description("Publishes versioned disk images: to curl, to Incus and LXD, and to services that wait for them. Begin with: imgsrv start"),
		kong.DefaultEnvars("IMGSRV"),
		kong.ValueFormatter(describeFlag),
		kong.Vars{"architecture": hostArchitecture()},
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, FlagsLast: true}),
		kong.Writers(t.Out, t.Err),
		kong.Exit(leave),
		kong.BindTo(ctx, (*context.Context)(nil)),
		kong.Bind(t),
	)
}

// describeFlag is a flag's help with its default and its environment variable.
func describeFlag(v *kong.Value) string {
	text := v.Help
	if v.Flag == nil {
		return text
	}
	var notes []string
	if v.HasDefault && v.Default != "" {
		notes = append(notes, "default: "+v.Default)
	}
	if len(v.Flag.Envs) > 0 {
		notes = append(notes, "$"+v.Flag.Envs[0])
	}
	if len(notes) == 0 {
		return text
	}
	return text + " (" + strings.Join(notes, "; ") + ")"
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
