package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// StartCmd runs a server until it is told to stop.
type StartCmd struct {
	ServerFlags
}

// ServerFlags say what a server is made of and where it listens.
type ServerFlags struct {
	Listen      string `help:"Address of the HTTP listener, host:port." default:"127.0.0.1:8080" placeholder:"ADDR"`
	TLSListen   string `name:"tls-listen" help:"Address of the HTTPS listener, host:port; empty for none. Incus and LXD need HTTPS." default:"127.0.0.1:8443" placeholder:"ADDR"`
	TLSCert     string `name:"tls-cert" help:"Certificate chain of the HTTPS listener, PEM file. Without it a self-signed one is made and kept in <data-dir>/tls/cert.pem." placeholder:"FILE"`
	TLSKey      string `name:"tls-key" help:"Private key of --tls-cert, PEM file." placeholder:"FILE"`
	DataDir     string `help:"Folder of all that this server keeps; made where it is missing." default:".imgsrv" placeholder:"DIR"`
	StorageDir  string `help:"Folder of the image files. Uploads, ingress and blobs lie below it, so that publishing is a rename. Default: <data-dir>/storage." placeholder:"DIR"`
	PostgresURL string `name:"postgres-url" help:"PostgreSQL to keep the projections in: postgres://USER:PASSWORD@HOST/DATABASE. Without it imgsrv starts a private one in <data-dir>/postgres." placeholder:"URL"`
	NATSURL     string `name:"nats-url" help:"NATS server with JetStream to keep the events in. Without it imgsrv runs one itself, with its store in <data-dir>/nats." placeholder:"URL"`
	NATSListen  string `name:"nats-listen" help:"Where the embedded NATS server listens for subscribers, host:port; empty for in-process only. Ignored with --nats-url." default:"127.0.0.1:4222" placeholder:"ADDR"`
	LimitFlags
	MaxUploadBytes int64    `help:"Largest file that may be uploaded, in bytes; 0: no cap." default:"0" placeholder:"BYTES"`
	LogFormat      string   `help:"Form of the log on standard error: text or json." enum:"text,json" default:"text"`
	Verbosity      string   `help:"Least level that is logged: debug, info, warn or error." enum:"debug,info,warn,error" default:"info"`
	MetricsListen  string   `help:"Address of the metrics listener, host:port; empty for none." default:"127.0.0.1:9464" placeholder:"ADDR"`
	MetricsPath    string   `help:"Path of the metrics in Prometheus's text format." default:"/metrics" placeholder:"PATH"`
	WebhookAllow   []string `help:"Target that webhooks may have although it is private or without TLS: address, CIDR prefix, HOST or HOST:PORT; may be repeated." placeholder:"TARGET"`
}

// Run starts the server, says where everything is, and serves until ctx ends.
func (c *StartCmd) Run(ctx context.Context, t Terminal) error {
	node, err := StartNode(ctx, c.ServerFlags, c.logger(t.Err))
	if err != nil {
		return err
	}
	c.announce(t.Out, node)
	return errors.Join(node.Wait(ctx), node.Stop())
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
	fmt.Fprintf(w, "\nPublish an image (on this machine the token is found by itself):\n  %s publish disk.qcow2 --image debian-bookworm --version 12.5.0 --alias latest%s\n", programName(), serverFlag(n.HTTPURL)) //nolint:errcheck // as above
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

func serverFlag(url string) string {
	if url == "http://127.0.0.1:8080" {
		return ""
	}
	return " --server " + url
}

// listen opens a listener, with a remedy in the error of a taken port.
func listen(ctx context.Context, addr, flag string) (net.Listener, error) {
	var config net.ListenConfig
	l, err := config.Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w: choose another address with %s", addr, rootCause(err), flag)
	}
	return l, nil
}

// rootCause drops net's own prefix, which says "listen tcp" and the address once more.
func rootCause(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		var call *os.SyscallError
		if errors.As(op.Err, &call) {
			return call.Err
		}
		return op.Err
	}
	return err
}

// urlOf is the URL to reach a listener under; one on all addresses is reached by the host's own name.
func urlOf(scheme string, addr net.Addr) string {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok {
		return scheme + "://" + addr.String()
	}
	host := tcp.IP.String()
	if tcp.IP.IsUnspecified() {
		host = "localhost"
		if name, err := os.Hostname(); err == nil {
			host = name
		}
	}
	return scheme + "://" + net.JoinHostPort(strings.Trim(host, "[]"), fmt.Sprint(tcp.Port))
}

const (
	startPatience = 3 * time.Minute  // PostgreSQL may have to recover first
	stopPatience  = 30 * time.Second // for requests that are being served
)
