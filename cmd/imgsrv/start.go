package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// StartCmd runs a server until it is told to stop.
type StartCmd struct {
	ServerFlags
}

// ServerFlags say what a server is made of and where it listens.
type ServerFlags struct {
	Listen      string        `group:"listening" help:"Address of the HTTP listener, host:port." default:"127.0.0.1:8080" placeholder:"ADDR"`
	TLSListen   string        `group:"listening" name:"tls-listen" help:"Address of the HTTPS listener, host:port; empty for none. Incus and LXD need HTTPS." default:"127.0.0.1:8443" placeholder:"ADDR"`
	StopTimeout time.Duration `group:"listening" help:"How long downloads and other requests may take to finish at the stop. Uploads end at once: they can be resumed." default:"30s" placeholder:"DURATION"`

	TLSCert       string        `group:"tls" name:"tls-cert" help:"Certificate chain of the HTTPS listener, PEM file; read again when it changes, and on SIGHUP. Default: a self-signed one, kept in <data-dir>/tls/cert.pem." placeholder:"FILE"`
	TLSKey        string        `group:"tls" name:"tls-key" help:"Private key of --tls-cert, PEM file." placeholder:"FILE"`
	TLSClientCA   string        `group:"tls" name:"tls-client-ca" help:"Authorities whose client certificates are taken, PEM file; another's is refused. Nobody has to show one." placeholder:"FILE"`
	ACMEDomain    []string      `group:"tls" name:"acme-domain" help:"Host name to get a certificate for by ACME, in place of --tls-cert; may be repeated. The authority has to reach this server as that name, on port 443 or 80. You accept the authority's terms of service by it." placeholder:"NAME"`
	ACMEEmail     string        `group:"tls" name:"acme-email" help:"Where the ACME authority may write to." placeholder:"ADDRESS"`
	ACMEDirectory string        `group:"tls" name:"acme-directory" help:"Directory of the ACME authority. Default: Let's Encrypt." placeholder:"URL"`
	ACMECAFile    string        `group:"tls" name:"acme-ca-file" help:"Authorities for the ACME directory's own certificate, PEM file, in place of the system's." placeholder:"FILE"`
	HSTS          time.Duration `group:"tls" name:"hsts" help:"How long browsers shall use only HTTPS for this host, such as 8760h; 0: nothing is said of it." default:"0" placeholder:"DURATION"`
	CORSOrigin    []string      `group:"tls" name:"cors-origin" help:"Site whose scripts may call this server from browsers, SCHEME://HOST[:PORT]; may be repeated. Alone, * is every site." placeholder:"ORIGIN"`

	DataDir           string `group:"storage" help:"Folder of all that this server keeps; made where it is missing." default:".imgsrv" placeholder:"DIR"`
	StorageDir        string `group:"storage" help:"Folder of the image files, on one file system. Default: <data-dir>/storage." placeholder:"DIR"`
	SigningKey        string `group:"storage" help:"Secret key that signs the checksums of versions, in minisign's form without password; made where it is missing. Nodes that serve the same images need the same one. Default: <data-dir>/signing.key." placeholder:"FILE"`
	StreamsSigningKey string `group:"storage" help:"Secret key that clear-signs the simplestreams documents (.sjson), an armored OpenPGP key without passphrase; made where it is missing. Default: they are not signed." placeholder:"FILE"`

	NATSURL    string `group:"nats" name:"nats-url" help:"NATS server with JetStream that keeps the events. Default: an embedded one, with its store in <data-dir>/nats." placeholder:"URL"`
	NATSListen string `group:"nats" name:"nats-listen" help:"Where the embedded NATS server listens for subscribers (imgsrv subscribers add), host:port; empty: nowhere. Ignored with --nats-url." default:"127.0.0.1:4222" placeholder:"ADDR"`
	natsFlags  `embed:"" group:"nats"`

	PostgresURL string `group:"postgres" name:"postgres-url" help:"PostgreSQL that keeps the projections: postgres://USER:PASSWORD@HOST/DATABASE. Default: a private one in <data-dir>/postgres." placeholder:"URL"`

	OIDCCAFile   string   `group:"reach" name:"oidc-ca-file" help:"Certificates to trust beside the system's when OIDC issuers are asked for their keys, PEM file." placeholder:"FILE"`
	WebhookAllow []string `group:"reach" help:"Target that webhooks may have although it is private or without TLS: address, CIDR prefix, HOST or HOST:PORT; may be repeated." placeholder:"TARGET"`
	mirrorFlags  `embed:"" group:"reach"`

	MaxUploadBytes int64 `group:"limits" help:"Largest file that may be uploaded, in bytes; 0: no limit." default:"0" placeholder:"BYTES"`
	LimitFlags     `embed:"" group:"limits"`

	JobAttempts  int           `group:"work" name:"job-attempts" help:"How often a step of a publication is tried, before its job has failed and waits for a retry by hand." default:"10" placeholder:"N"`
	StepTimeout  time.Duration `group:"work" name:"step-timeout" help:"How long one attempt at a step of a publication may take." default:"2h" placeholder:"DURATION"`
	Deltas       int           `group:"work" help:"Against how many earlier versions each new one gets deltas, for hosts that have one of those; 0: none. Needs xdelta3." default:"2" placeholder:"N"`
	DeriveFlags  `embed:"" group:"work"`
	garbageFlags `embed:"" group:"work"`
	ScrubFlags   `embed:"" group:"work"`

	LogFormat     string `group:"telemetry" help:"Form of the log on standard error: text or json." enum:"text,json" default:"text"`
	Verbosity     string `group:"telemetry" help:"Least level that is logged: debug, info, warn or error." enum:"debug,info,warn,error" default:"info"`
	MetricsListen string `group:"telemetry" help:"Address of the metrics listener, host:port; empty for none." default:"127.0.0.1:9464" placeholder:"ADDR"`
	MetricsPath   string `group:"telemetry" help:"Path of the metrics in Prometheus's text format." default:"/metrics" placeholder:"PATH"`
}

// Run starts the server, says where everything is, and serves until ctx ends.
func (c *StartCmd) Run(ctx context.Context, t Terminal) error {
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	bounded, unbound := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		boundMemory(bounded)
	}()
	defer func() { unbound(); <-done }()
	node, err := StartNode(ctx, c.ServerFlags, c.logger(t.Err))
	if err != nil {
		return err
	}
	node.reloadOn(hangup)
	c.announce(t.Out, node)
	err = node.Wait(ctx)
	node.log.Info("stopping: requests under way may end first", "for_at_most", node.patience)
	return errors.Join(err, node.Stop())
}

func (f ServerFlags) logger(w io.Writer) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(f.Verbosity)); err != nil {
		level = slog.LevelInfo // kong has checked it
	}
	opts := &slog.HandlerOptions{Level: level}
	if f.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}

// announce says in a few lines what runs where, and what to do next.
func (c *StartCmd) announce(w io.Writer, n *Node) {
	line := func(what, format string, args ...any) {
		fmt.Fprintf(w, "  %-12s %s\n", what, fmt.Sprintf(format, args...)) //nolint:errcheck // a closed terminal is no reason to stop serving
	}
	fmt.Fprintf(w, "imgsrv is ready, %.1f s after its start\n", n.Took.Seconds()) //nolint:errcheck // as above
	line("HTTP", "%s", n.HTTPURL)
	switch {
	case n.HTTPSURL != "" && n.CertFile != "":
		line("HTTPS", "%s  (certificate: %s)", n.HTTPSURL, n.CertFile)
	case n.HTTPSURL != "" && len(c.ACMEDomain) > 0:
		line("HTTPS", "%s  (certificate by ACME, kept in %s)", n.HTTPSURL, filepath.Join(c.DataDir, acmeDir))
	case n.HTTPSURL != "":
		line("HTTPS", "%s", n.HTTPSURL)
	}
	line("events", "%s", n.EventsAt)
	line("projections", "%s", n.PostgresAt)
	line("storage", "%s", n.StorageDir)
	if n.MetricsURL != "" {
		line("metrics", "%s", n.MetricsURL)
	}
	tokenFile := filepath.Join(c.DataDir, "admin.token")
	if n.NewToken != "" {
		line("admin token", "%s  (shown once; kept in %s)", n.NewToken, tokenFile)
	} else {
		line("admin token", "in %s", tokenFile)
	}
	fmt.Fprintf(w, "\nPublish an image (on this machine the token is found by itself):\n  %s publish disk.qcow2 --image debian-bookworm --version 12.5.0 --alias latest%s\n", programName(), c.clientFlags(n.HTTPURL)) //nolint:errcheck // as above
	if n.HTTPSURL != "" {
		trust := ""
		if n.CertFile != "" {
			trust = "SSL_CERT_FILE=" + n.CertFile + " "
		}
		fmt.Fprintf(w, "Add it to Incus or LXD as a remote:\n  %sincus remote add imgsrv %s --protocol simplestreams\n  %slxc   remote add imgsrv %s --protocol simplestreams\n", trust, n.HTTPSURL, trust, n.HTTPSURL) //nolint:errcheck // as above
	}
	fmt.Fprintln(w, "Ctrl-C stops it.") //nolint:errcheck // as above
}

// programName is how the user calls this program: by the go command, while there is nothing installed.
func programName() string {
	if strings.Contains(filepath.ToSlash(os.Args[0]), "/go-build") {
		return "go run ./cmd/imgsrv"
	}
	return "imgsrv"
}

// clientFlags are those by which a client on this machine finds the server and its token; none where the defaults do.
func (c *StartCmd) clientFlags(url string) (flags string) {
	if url != "http://127.0.0.1:8080" {
		flags += " --server " + url
	}
	if c.DataDir != ".imgsrv" {
		flags += " --data-dir " + c.DataDir
	}
	return flags
}

const (
	startPatience = 3 * time.Minute  // PostgreSQL may have to recover first
	stopPatience  = 30 * time.Second // for PostgreSQL, and for requests where nobody says another time
)
