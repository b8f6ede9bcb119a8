package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/imgsrv/imgsrv/handlers/access"
	"github.com/imgsrv/imgsrv/handlers/browser"
	"github.com/imgsrv/imgsrv/handlers/limits"
	"github.com/imgsrv/imgsrv/handlers/tus"
	"github.com/imgsrv/imgsrv/internal/certs"
	"github.com/imgsrv/imgsrv/internal/selfsigned"
	"github.com/imgsrv/imgsrv/internal/telemetry"
)

// Bounds of what a client may take up before its request is known. None bounds the time of a body: an honest upload may take hours.
const (
	readHeaderTimeout = 10 * time.Second // of the TLS handshake too
	idleTimeout       = 2 * time.Minute
	maxHeaderBytes    = 64 << 10
)

// acmeDir is the folder of the ACME certificates in the data folder.
const acmeDir = "acme"

// listenAddress is where to listen, as a flag says.
type listenAddress struct{ flag, addr string }

// addresses are all where the server listens.
func (f ServerFlags) addresses() []listenAddress {
	all := []listenAddress{{"--listen", f.Listen}, {"--tls-listen", f.TLSListen}, {"--metrics-listen", f.MetricsListen}}
	if f.NATSURL == "" {
		all = append(all, listenAddress{"--nats-listen", f.NATSListen})
	}
	return slices.DeleteFunc(all, func(a listenAddress) bool { return a.addr == "" })
}

// checkWeb refuses flags of the listeners that make no sense, alone or together.
func (f ServerFlags) checkWeb() error {
	acme := len(f.ACMEDomain) > 0
	switch {
	case f.Listen == "":
		return errors.New("--listen is an address, host:port: without it nobody reaches the server")
	case f.MetricsListen != "" && (!strings.HasPrefix(f.MetricsPath, "/") || strings.ContainsAny(f.MetricsPath, "{} ?#")):
		return fmt.Errorf("--metrics-path is a path such as /metrics, not %q", f.MetricsPath)
	case (f.TLSCert == "") != (f.TLSKey == ""):
		return errors.New("--tls-cert and --tls-key go together")
	case acme && f.TLSCert != "":
		return errors.New("--acme-domain and --tls-cert are two ways to a certificate: choose one")
	case !acme && (f.ACMEEmail != "" || f.ACMEDirectory != "" || f.ACMECAFile != ""):
		return errors.New("--acme-email, --acme-directory and --acme-ca-file need --acme-domain, the name to get a certificate for")
	case f.HSTS < 0 || f.HSTS%time.Second != 0:
		return fmt.Errorf("--hsts is a number of seconds from 0, such as 8760h for a year, not %s", f.HSTS)
	}
	for _, a := range f.addresses() {
		if _, _, err := net.SplitHostPort(a.addr); err != nil {
			return fmt.Errorf("%s is an address, host:port, such as 127.0.0.1:8080, not %q", a.flag, a.addr)
		}
	}
	if f.TLSListen == "" {
		for _, flag := range []struct {
			name string
			set  bool
		}{{"--acme-domain", acme}, {"--tls-client-ca", f.TLSClientCA != ""}, {"--hsts", f.HSTS != 0}} {
			if flag.set {
				return fmt.Errorf("%s is of use with HTTPS only: say with --tls-listen where to listen", flag.name)
			}
		}
	}
	if err := certs.CheckDomains(f.ACMEDomain); err != nil {
		return fmt.Errorf("--acme-domain: %w", err)
	}
	if f.ACMEDirectory != "" {
		if err := certs.CheckDirectory(f.ACMEDirectory); err != nil {
			return fmt.Errorf("--acme-directory: %w", err)
		}
	}
	if err := browser.CheckOrigins(f.CORSOrigin); err != nil {
		return fmt.Errorf("--cors-origin: %w", err)
	}
	return f.checkFiles()
}

// checkFiles reads what the listeners are going to read, while a mistake costs nothing yet.
func (f ServerFlags) checkFiles() error {
	if f.TLSListen != "" && f.TLSCert != "" {
		if _, err := tls.LoadX509KeyPair(f.TLSCert, f.TLSKey); err != nil {
			return fmt.Errorf("read the certificate of --tls-cert and --tls-key: %w", err)
		}
	}
	for _, file := range []struct{ flag, name string }{{"--tls-client-ca", f.TLSClientCA}, {"--acme-ca-file", f.ACMECAFile}} {
		if file.name == "" {
			continue
		}
		text, err := os.ReadFile(file.name)
		if err == nil {
			_, err = certs.Pool(text)
		}
		if err != nil {
			return fmt.Errorf("read the authorities of %s: %w", file.flag, err)
		}
	}
	return nil
}

// serve opens the listeners, last of all, so that whoever gets through finds everything working.
func (n *Node) serve(ctx context.Context, flags ServerFlags, dataDir string, router http.Handler, tele *telemetry.Telemetry, hooks testHooks) error {
	if flags.MetricsListen != "" {
		l, err := listen(ctx, flags.MetricsListen, "--metrics-listen")
		if err != nil {
			return err
		}
		mux := http.NewServeMux()
		mux.Handle(flags.MetricsPath, tele.Handler())
		n.MetricsURL = urlOf("http", l.Addr()) + flags.MetricsPath
		n.serveOn("metrics", l, nil, browser.Middleware(browser.Config{})(mux), hooks)
	}
	// Outermost: nothing inside may see a token that stands in a path.
	web := access.PathToken(browser.Middleware(browser.Config{HSTS: flags.HSTS, Origins: flags.CORSOrigin})(router))
	plain := web
	var acme *certs.ACME
	if flags.TLSListen != "" {
		var err error
		if acme, err = n.certificates(flags, dataDir); err != nil {
			return err
		}
		if err := n.observeCertificates(tele, n.certs); err != nil {
			return err
		}
		l, err := listen(ctx, flags.TLSListen, "--tls-listen")
		if err != nil {
			return err
		}
		n.HTTPSURL = urlOf("https", l.Addr())
		if acme != nil {
			n.HTTPSURL = urlNamed("https", flags.ACMEDomain[0], l.Addr()) // its certificate has no other names
			plain = acme.HTTPHandler(web)
		}
		n.serveOn("HTTPS", l, n.certs.TLS(), web, hooks)
		n.background("reload of certificates", func(ctx context.Context) error { return n.certs.Watch(ctx, hooks.certInterval) })
	}
	l, err := listen(ctx, flags.Listen, "--listen")
	if err != nil {
		return err
	}
	n.HTTPURL = urlOf("http", l.Addr())
	n.serveOn("HTTP", l, nil, plain, hooks)
	if acme != nil {
		n.background("ACME", acme.Run)
	}
	return nil
}

// certificates finds the HTTPS listener's certificate: by ACME, which is then returned, in the operator's files, or self-signed.
func (n *Node) certificates(flags ServerFlags, dataDir string) (*certs.ACME, error) {
	config := certs.Config{ClientCA: flags.TLSClientCA, Log: n.log}
	var acme *certs.ACME
	var err error
	switch {
	case len(flags.ACMEDomain) > 0:
		acme, err = certs.NewACME(certs.ACMEConfig{Domains: flags.ACMEDomain, Email: flags.ACMEEmail, Directory: flags.ACMEDirectory, CAFile: flags.ACMECAFile,
			CacheDir: filepath.Join(dataDir, acmeDir), UserAgent: "imgsrv/" + version(), Log: n.log})
		if err != nil {
			return nil, err
		}
		config.Certificate, config.Until, config.Protocols = acme.Certificate, acme.Until, []string{certs.ProtocolACME}
	case flags.TLSCert != "":
		config.Cert, config.Key = flags.TLSCert, flags.TLSKey
	default:
		dir := filepath.Join(dataDir, "tls")
		names := selfsigned.Names()
		if host, _, err := net.SplitHostPort(flags.TLSListen); err == nil && host != "" && host != "0.0.0.0" && host != "::" {
			names = append(names, host)
		}
		cert, _, err := selfsigned.Load(dir, names, time.Now())
		if err != nil {
			return nil, err
		}
		n.CertFile = filepath.Join(dir, "cert.pem")
		config.Certificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil }
		config.Until = func() map[string]time.Time { return certs.UntilOf(&cert) }
	}
	n.certs, err = certs.New(config)
	return acme, err
}

// reloadOn reads the certificates again at each signal, until the node stops.
func (n *Node) reloadOn(signals <-chan os.Signal) {
	n.background("reload on SIGHUP", func(ctx context.Context) error {
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-signals:
				if n.certs != nil {
					n.certs.Reload()
				}
			}
		}
	})
}

// listening is a listener that is served.
type listening struct {
	what      string
	server    *http.Server
	interrupt context.CancelCauseFunc // of all its requests
	served    chan struct{}           // closed when Serve has returned
	drained   chan error              // how its requests ended
}

// serveOn serves a listener until the node stops, over TLS where there is a configuration for it.
func (n *Node) serveOn(what string, l net.Listener, encrypt *tls.Config, handler http.Handler, hooks testHooks) {
	base, interrupt := context.WithCancelCause(context.Background())
	connections := limits.NewConnections(limits.ConnectionsRule())
	l = connections.Listener(l)
	if encrypt != nil {
		l = tls.NewListener(l, encrypt)
	}
	server := &http.Server{
		Handler: handler, ReadHeaderTimeout: readHeaderTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeaderBytes,
		ErrorLog:    slog.NewLogLogger(n.log.Handler(), slog.LevelDebug), // clients' broken handshakes
		BaseContext: func(net.Listener) context.Context { return base }, ConnState: connections.State,
	}
	if hooks.readHeaderTimeout != 0 {
		server.ReadHeaderTimeout = hooks.readHeaderTimeout
	}
	s := &listening{what: what, server: server, interrupt: interrupt, served: make(chan struct{}), drained: make(chan error, 1)}
	n.servers = append(n.servers, s)
	go func() {
		defer close(s.served)
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			n.failed <- fmt.Errorf("serve %s: %w", what, err)
		}
	}()
	n.onStop(what, func() error {
		n.drain.Do(n.drainAll)
		err := <-s.drained
		<-s.served
		return err
	})
}

// drainAll ends the requests of all listeners, at the same time: uploads at once, at an offset where they can be resumed,
// followers of the events too; downloads and other requests have the node's patience to finish, and are then cut.
func (n *Node) drainAll() {
	ctx, cancel := context.WithTimeout(context.Background(), n.patience)
	var draining sync.WaitGroup
	for _, s := range n.servers {
		s.interrupt(tus.ErrStopping)
		draining.Go(func() {
			err := s.server.Shutdown(ctx)
			if errors.Is(err, context.DeadlineExceeded) {
				n.log.Warn("requests were cut at the stop", "listener", s.what, "after", n.patience)
				err = s.server.Close()
			}
			s.drained <- err
		})
	}
	go func() {
		draining.Wait()
		cancel()
	}()
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
	return urlNamed(scheme, strings.Trim(host, "[]"), addr)
}

// urlNamed is the URL of a listener that is reached by a name.
func urlNamed(scheme, host string, addr net.Addr) string {
	_, port, err := net.SplitHostPort(addr.String())
	if err != nil {
		return scheme + "://" + host
	}
	return scheme + "://" + net.JoinHostPort(host, port)
}
