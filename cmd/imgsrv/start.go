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
	Listen            string        `help:"Address of the HTTP listener, host:port." default:"127.0.0.1:8080" placeholder:"ADDR"`
	TLSListen         string        `name:"tls-listen" help:"Address of the HTTPS listener, host:port; empty for none. Incus and LXD need HTTPS." default:"127.0.0.1:8443" placeholder:"ADDR"`
	TLSCert           string        `name:"tls-cert" help:"Certificate chain of the HTTPS listener, PEM file; read again when it changes, and on SIGHUP. Without it a self-signed one is made and kept in <data-dir>/tls/cert.pem." placeholder:"FILE"`
	TLSKey            string        `name:"tls-key" help:"Private key of --tls-cert, PEM file." placeholder:"FILE"`
	DataDir           string        `help:"Folder of all that this server keeps; made where it is missing." default:".imgsrv" placeholder:"DIR"`
	StorageDir        string        `help:"Folder of the image files. Uploads, ingress and blobs lie below it, so that publishing is a rename. Default: <data-dir>/storage." placeholder:"DIR"`
	PostgresURL       string        `name:"postgres-url" help:"PostgreSQL to keep the projections in: postgres://USER:PASSWORD@HOST/DATABASE. Without it imgsrv starts a private one in <data-dir>/postgres." placeholder:"URL"`
	NATSURL           string        `name:"nats-url" help:"NATS server with JetStream to keep the events in. Without it imgsrv runs one itself, with its store in <data-dir>/nats." placeholder:"URL"`
	NATSListen        string        `name:"nats-listen" help:"Where the embedded NATS server listens for subscribers (imgsrv subscribers add), host:port; empty for in-process only. Ignored with --nats-url." default:"127.0.0.1:4222" placeholder:"ADDR"`
	MaxUploadBytes    int64         `help:"Largest file that may be uploaded, in bytes; 0: no cap." default:"0" placeholder:"BYTES"`
	Deltas            int           `help:"Against how many earlier versions each new one gets deltas, for hosts that have one of those; 0: none. Needs xdelta3." default:"2" placeholder:"N"`
	JobAttempts       int           `name:"job-attempts" help:"How often a step of a publication is tried, before its job has failed and waits for a retry by hand." default:"10" placeholder:"N"`
	StepTimeout       time.Duration `name:"step-timeout" help:"How long one attempt at a step of a publication may take." default:"2h" placeholder:"DURATION"`
	LogFormat         string        `help:"Form of the log on standard error: text or json." enum:"text,json" default:"text"`
	Verbosity         string        `help:"Least level that is logged: debug, info, warn or error." enum:"debug,info,warn,error" default:"info"`
	MetricsListen     string        `help:"Address of the metrics listener, host:port; empty for none." default:"127.0.0.1:9464" placeholder:"ADDR"`
	MetricsPath       string        `help:"Path of the metrics in Prometheus's text format." default:"/metrics" placeholder:"PATH"`
	OIDCCAFile        string        `name:"oidc-ca-file" help:"PEM file of certificates to trust beside the system's when OIDC issuers are asked for their keys: for a cluster's own." placeholder:"FILE"`
	WebhookAllow      []string      `help:"Target that webhooks may have although it is private or without TLS: address, CIDR prefix, HOST or HOST:PORT; may be repeated." placeholder:"TARGET"`
	TLSClientCA       string        `name:"tls-client-ca" help:"Authorities of client certificates, PEM file. A client may then show a certificate of theirs; another's is refused." placeholder:"FILE"`
	ACMEDomain        []string      `name:"acme-domain" help:"Host name to get a certificate for by ACME, in place of --tls-cert; may be repeated. The authority has to reach this server as that name, on port 443 or 80. You accept the authority's terms of service by it." placeholder:"NAME"`
	ACMEEmail         string        `name:"acme-email" help:"Where the ACME authority may write to." placeholder:"ADDRESS"`
	ACMEDirectory     string        `name:"acme-directory" help:"Directory of the ACME authority. Default: Let's Encrypt." placeholder:"URL"`
	ACMECAFile        string        `name:"acme-ca-file" help:"What the ACME directory's own certificate is checked with, PEM file, in place of the system's authorities." placeholder:"FILE"`
	HSTS              time.Duration `name:"hsts" help:"How long browsers shall use only HTTPS for this host, such as 8760h; 0: nothing is said of it." default:"0" placeholder:"DURATION"`
	CORSOrigin        []string      `name:"cors-origin" help:"Site whose scripts may call this server from browsers, SCHEME://HOST[:PORT]; may be repeated. Alone, * is every site." placeholder:"ORIGIN"`
	SigningKey        string        `help:"Secret key that signs the checksums of versions, a file in minisign's form without password; made where it is missing. Nodes that serve the same images need the same one. Default: <data-dir>/signing.key." placeholder:"FILE"`
	StreamsSigningKey string        `help:"Secret key that clear-signs the simplestreams documents (.sjson), an armored OpenPGP key without passphrase; made where it is missing. Without it they are not signed." placeholder:"FILE"`
	StopTimeout       time.Duration `help:"How long downloads and other requests may take to finish at the stop, before they are cut. Uploads end at once, where they can be resumed." default:"30s" placeholder:"DURATION"`
	mirrorFlags       `embed:""`
	natsFlags         `embed:""`
	LimitFlags
	DeriveFlags
	garbageFlags `embed:""`
	ScrubFlags
}

// Run starts the server, says where everything is, and serves until ctx ends.
func (c *StartCmd) Run(ctx context.Context, t Terminal) error {
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
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
