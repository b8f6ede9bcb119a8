package jetstream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
)

// authTimeout bounds how long a client may take to say who it is, seconds: longer than known takes at a start.
const authTimeout = 20

// maxPayload bounds one fact, bytes. The largest is a publication of events.MaxFiles files.
const maxPayload = 4 << 20

// ServerConfig says how the embedded server runs.
type ServerConfig struct {
	StoreDir string // where the stream lives
	Listen   string // host:port for subscribers from outside; "" for none: in-process only
	Log      *slog.Logger
	// SyncEvery is how often what has been acknowledged is synced to disk: a power failure may take the events of so long. 0 syncs
	// each event before it is acknowledged, and none can be lost.
	SyncEvery time.Duration
	// NoSync leaves syncing to the operating system. Only for tests that measure nothing: an
	// acknowledged event may then be lost with the power.
	NoSync bool
}

// Server is an embedded NATS server with JetStream. What it acknowledges is synced to disk, unless its configuration says
// otherwise. Two kinds of client get
// in: the process itself, and the subscribers that a [Subscribers] names.
type Server struct {
	ns   *server.Server
	own  nkeys.KeyPair // the user with all rights; it never leaves the process
	door *door
}

// StartServer starts the embedded server and waits until it takes connections. A taken port is an error
// that wraps the net error.
func StartServer(ctx context.Context, cfg ServerConfig) (*Server, error) {
	if err := os.MkdirAll(cfg.StoreDir, 0o700); err != nil {
		return nil, fmt.Errorf("make the event store's folder: %w", err)
	}
	own, err := nkeys.CreateUser()
	if err != nil {
		return nil, fmt.Errorf("make a key for the embedded NATS server: %w", err)
	}
	ownKey, err := own.PublicKey()
	if err != nil {
		return nil, fmt.Errorf("make a key for the embedded NATS server: %w", err)
	}
	door := newDoor(ownKey, cfg.Log)
	opts := &server.Options{
		ServerName: "imgsrv", NoSigs: true, NoLog: false, JetStream: true, StoreDir: cfg.StoreDir,
		SyncAlways: !cfg.NoSync && cfg.SyncEvery == 0, SyncInterval: cfg.SyncEvery, MaxPayload: maxPayload, DontListen: cfg.Listen == "",
		JetStreamMaxMemory: 64 << 20, JetStreamMaxStore: 1 << 50,
		CustomClientAuthentication: door, AlwaysEnableNonce: true, AuthTimeout: authTimeout,
	}
	if cfg.Listen != "" {
		host, port, err := net.SplitHostPort(cfg.Listen)
		if err != nil {
			return nil, fmt.Errorf("listen address %q: %w", cfg.Listen, err)
		}
		// nats-server calls os.Exit's cousin (a fatal log) on a taken port: find out first.
		var config net.ListenConfig
		probe, err := config.Listen(ctx, "tcp", cfg.Listen)
		if err != nil {
			return nil, fmt.Errorf("listen for NATS clients: %w", err)
		}
		if port == "0" {
			_, port, _ = net.SplitHostPort(probe.Addr().String())
		}
		if err := probe.Close(); err != nil {
			return nil, fmt.Errorf("listen for NATS clients: %w", err)
		}
		opts.Host = host
		if opts.Port, err = strconv.Atoi(port); err != nil {
			return nil, fmt.Errorf("listen address %q: %w", cfg.Listen, err)
		}
	}
	ns, err := server.NewServer(opts)
	if err != nil {
		return nil, fmt.Errorf("configure the embedded NATS server: %w", err)
	}
	logger := &serverLog{log: cfg.Log, fatal: make(chan string, 1)}
	ns.SetLoggerV2(logger, false, false, false)
	if err := door.guard(ns); err != nil {
		return nil, err
	}
	started := make(chan struct{})
	go func() { // returns once the server accepts connections, or has given up
		defer close(started)
		ns.Start()
	}()
	select { // ReadyForConnections looks only every 25 ms
	case <-started:
	case <-ctx.Done():
	}
	for !ns.ReadyForConnections(50 * time.Millisecond) {
		var reason error
		select {
		case text := <-logger.fatal:
			reason = errors.New(text)
		case <-ctx.Done():
			reason = ctx.Err()
		default:
			continue
		}
		ns.Shutdown()
		<-started
		return nil, fmt.Errorf("start the embedded NATS server: %w", reason)
	}
	return &Server{ns: ns, own: own, door: door}, nil
}

// Connect opens an in-process connection with all rights.
func (s *Server) Connect(opts ...nats.Option) (*nats.Conn, error) {
	key, err := s.own.PublicKey()
	if err != nil {
		return nil, fmt.Errorf("connect to the embedded NATS server: %w", err)
	}
	opts = append(opts, nats.InProcessServer(s.ns), nats.Nkey(key, s.own.Sign))
	nc, err := nats.Connect("", opts...)
	if err != nil {
		return nil, fmt.Errorf("connect to the embedded NATS server: %w", err)
	}
	return nc, nil
}

// URL is where subscribers connect from outside; "" when it listens to nobody.
func (s *Server) URL() string {
	if addr, ok := s.ns.Addr().(*net.TCPAddr); ok {
		return "nats://" + addr.String()
	}
	return ""
}

// Stop ends the server and waits for it.
func (s *Server) Stop() {
	s.ns.Shutdown()
	s.ns.WaitForShutdown()
}

// serverLog brings nats-server's lines into ours; its notices are about itself, hence debug. What it would
// end a process of its own for is handed to StartServer.
type serverLog struct {
	log   *slog.Logger
	fatal chan string
}

func (l *serverLog) Noticef(format string, v ...any) { l.debug(format, v...) }
func (l *serverLog) Debugf(format string, v ...any)  { l.debug(format, v...) }
func (l *serverLog) Tracef(format string, v ...any)  { l.debug(format, v...) }
func (l *serverLog) Warnf(format string, v ...any)   { l.log.Warn("nats: " + fmt.Sprintf(format, v...)) }
func (l *serverLog) Errorf(format string, v ...any) {
	l.log.Error("nats: " + fmt.Sprintf(format, v...))
}

func (l *serverLog) Fatalf(format string, v ...any) {
	select {
	case l.fatal <- fmt.Sprintf(format, v...):
	default:
	}
}

func (l *serverLog) debug(format string, v ...any) {
	if l.log.Enabled(context.Background(), slog.LevelDebug) {
		l.log.Debug("nats: " + fmt.Sprintf(format, v...))
	}
}
