package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/imgsrv/imgsrv/events/jetstream"
)

// natsFlags say when the embedded NATS server syncs, and how imgsrv shows one of somebody else's who it is.
type natsFlags struct {
	EventsSync string `name:"events-sync" help:"When the embedded NATS server syncs events to disk: always, before one is acknowledged; or every so often, such as 1s, and a power failure may take the last ones. Ignored with --nats-url." default:"always" placeholder:"WHEN"`
	NATSCreds  string `name:"nats-creds" help:"Credentials for --nats-url: a .creds file (JWT and seed), or a file with the seed of an nkey user." placeholder:"FILE"`
	NATSCA     string `name:"nats-ca" help:"Authorities for the certificate of --nats-url, PEM file, in place of the system's. Asks for TLS." placeholder:"FILE"`
	NATSCert   string `name:"nats-cert" help:"Client certificate for --nats-url, PEM file. Asks for TLS." placeholder:"FILE"`
	NATSKey    string `name:"nats-key" help:"Private key of --nats-cert, PEM file." placeholder:"FILE"`
}

// connectNATS connects to the NATS server of --nats-url, or starts the embedded one; server is nil for the former.
func (n *Node) connectNATS(ctx context.Context, flags ServerFlags, dataDir string) (nc *nats.Conn, server *jetstream.Server, err error) {
	options := []nats.Option{nats.Name("imgsrv"), nats.MaxReconnects(-1), nats.ReconnectWait(250 * time.Millisecond),
		// A server that hangs, or whose machine is gone without a word, is left after ten seconds, for another one of the cluster.
		nats.PingInterval(5 * time.Second), nats.MaxPingsOutstanding(2),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				n.log.Warn("the connection to NATS broke; reconnecting", "error", err)
			}
		}),
		// What the server calls an error of the protocol ends the connection, and nats.go doesn't come back: a new process has to.
		nats.ClosedHandler(func(nc *nats.Conn) {
			if err := nc.LastError(); err != nil {
				select {
				case n.failed <- fmt.Errorf("the connection to NATS ended for good: %w", err):
				default: // something else ends the node already
				}
			}
		})}
	if flags.NATSURL != "" {
		nc, err := n.connectNATSURL(flags, options)
		return nc, nil, err
	}
	every, err := flags.syncEvery()
	if err != nil {
		return nil, nil, err
	}
	if every > 0 {
		n.log.Warn("a power failure may take events that were acknowledged", "--events-sync", every)
	}
	server, err = jetstream.StartServer(ctx, jetstream.ServerConfig{StoreDir: filepath.Join(dataDir, "nats"), Listen: flags.NATSListen, SyncEvery: every, Log: n.log})
	if err != nil {
		return nil, nil, err
	}
	n.onStop("NATS", func() error { server.Stop(); return nil })
	if nc, err = server.Connect(options...); err != nil {
		return nil, nil, err
	}
	n.onStop("connection to NATS", func() error { nc.Close(); return nil })
	n.EventsAt = "embedded NATS, in-process only"
	if at := server.URL(); at != "" {
		n.EventsAt = at + "  (stream " + jetstream.StreamName + ", embedded NATS)"
	}
	return nc, server, nil
}

func (n *Node) connectNATSURL(flags ServerFlags, options []nats.Option) (*nats.Conn, error) {
	more, err := flags.options(flags.NATSURL)
	if err != nil {
		return nil, err
	}
	// A changed password or a certificate that ended is mended there, while we go on asking.
	options = append(append(options, nats.IgnoreAuthErrorAbort()), more...)
	nc, err := nats.Connect(flags.NATSURL, options...)
	if err != nil {
		// nats.go's own words may repeat a part of the URL, and with it of a password.
		if errors.Is(err, nats.ErrNoServers) {
			err = errors.New("nobody answers there: is it running, with JetStream (nats-server -js)?")
		} else if errors.Is(err, nats.ErrAuthorization) {
			err = errors.New("it doesn't know us: give credentials with --nats-creds, or a client certificate with --nats-cert and --nats-key")
		} else if _, parseErr := url.Parse(flags.NATSURL); parseErr != nil {
			err = errors.New("it is no URL; give nats://USER:PASSWORD@HOST:PORT, with special characters percent-encoded")
		}
		return nil, fmt.Errorf("connect to the NATS server of --nats-url: %w", err)
	}
	n.onStop("connection to NATS", func() error { nc.Close(); return nil })
	n.EventsAt = nc.ConnectedUrlRedacted() + "  (stream " + jetstream.StreamName + ")"
	return nc, nil
}

// natsOptions are credentials and TLS for the server of --nats-url.
func (f natsFlags) options(natsURL string) ([]nats.Option, error) {
	var options []nats.Option
	if f.NATSCreds != "" {
		credentials, err := jetstream.CredentialsFile(f.NATSCreds)
		if err != nil {
			return nil, fmt.Errorf("--nats-creds: %w", err)
		}
		options = append(options, credentials)
	}
	if f.NATSCA != "" {
		options = append(options, nats.RootCAs(f.NATSCA))
	}
	if f.NATSCert != "" {
		options = append(options, nats.ClientCert(f.NATSCert, f.NATSKey))
	}
	// With TLS asked for, a server that speaks without is refused, not tried.
	if f.NATSCA != "" || f.NATSCert != "" || strings.HasPrefix(natsURL, "tls:") {
		options = append(options, nats.Secure())
	}
	return options, nil
}

// syncAlways is the value of --events-sync that loses nothing.
const syncAlways = "always"

// syncEvery is how often the embedded server syncs; 0: before each acknowledgement.
func (f natsFlags) syncEvery() (time.Duration, error) {
	if f.EventsSync == "" || f.EventsSync == syncAlways {
		return 0, nil
	}
	every, err := time.ParseDuration(f.EventsSync)
	if err != nil || every < time.Millisecond {
		return 0, fmt.Errorf("--events-sync is %s or a duration from 1ms, not %q", syncAlways, f.EventsSync)
	}
	return every, nil
}

// checkNATS refuses flags that can't be meant so.
func (f natsFlags) check(natsURL string) error {
	if _, err := f.syncEvery(); err != nil {
		return err
	}
	switch {
	case (f.NATSCert == "") != (f.NATSKey == ""):
		return errors.New("--nats-cert and --nats-key go together")
	case natsURL == "" && (f.NATSCreds != "" || f.NATSCA != "" || f.NATSCert != ""):
		return errors.New("--nats-creds, --nats-ca, --nats-cert and --nats-key are for the NATS server of --nats-url")
	}
	return nil
}

// startSubscribers keeps the consumers of subscribers, and lets them into the embedded server.
func (n *Node) startSubscribers(log *jetstream.Log, server *jetstream.Server) *jetstream.Subscribers {
	subscribers := jetstream.NewSubscribers(log, server, n.log)
	n.background("subscribers", subscribers.Run)
	return subscribers
}
