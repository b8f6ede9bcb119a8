package main

import (
	"context"
	"crypto/x509"
	"fmt"
	"net/http"
	"os"
	"path/filepath"

	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/mirrors"
	"github.com/imgsrv/imgsrv/handlers/targets"
	"github.com/imgsrv/imgsrv/internal/telemetry"
	"github.com/imgsrv/imgsrv/internal/vcdiff"
	"github.com/imgsrv/imgsrv/store/blob"
)

// mirrorFlags say where mirrors may lead, and how.
type mirrorFlags struct {
	MirrorAllow  []string `help:"Server that mirrors may follow although it is private or without TLS: address, CIDR prefix, HOST or HOST:PORT; may be repeated." placeholder:"TARGET"`
	MirrorCAFile string   `name:"mirror-ca-file" help:"Certificates to trust beside the system's when mirrors ask other servers, PEM file." placeholder:"FILE"`
	MirrorRate   int64    `help:"Most bytes a second that mirrors fetch with this node, all together; 0: no limit." default:"0" placeholder:"BYTES"`
}

// newMirrors makes what follows other servers; startMirrors lets it begin.
func (n *Node) newMirrors(flags ServerFlags, dataDir string, log *jetstream.Log, store *blob.Store, tele *telemetry.Telemetry, hooks testHooks) (*mirrors.Manager, error) {
	to, err := targets.Parse("--mirror-allow", flags.MirrorAllow)
	if err != nil {
		return nil, fmt.Errorf("--mirror-allow: %w", err)
	}
	if flags.MirrorRate < 0 {
		return nil, fmt.Errorf("--mirror-rate is a number of bytes from 0")
	}
	var roots *x509.CertPool
	if flags.MirrorCAFile != "" {
		text, err := os.ReadFile(flags.MirrorCAFile)
		if err != nil {
			return nil, fmt.Errorf("read the authorities of --mirror-ca-file: %w", err)
		}
		if roots, err = x509.SystemCertPool(); err != nil {
			roots = x509.NewCertPool()
		}
		if !roots.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("read the authorities of --mirror-ca-file: %s has no certificate in PEM form", flags.MirrorCAFile)
		}
	}
	tool, err := vcdiff.Find()
	if err == nil {
		tool.Foreign = true
	} // else whole files are fetched
	return mirrors.New(mirrors.Config{Log: log, Store: store, Tool: tool, Credentials: mirrors.NewCredentials(filepath.Join(dataDir, mirrorCredentials)), Logger: n.log, Meter: tele.Meter("github.com/imgsrv/imgsrv/handlers/mirrors"), Targets: to, Roots: roots,
		UserAgent: "imgsrv-mirror/" + version(), BytesPerSecond: flags.MirrorRate, Tick: hooks.mirrorTick, Pause: hooks.mirrorPause})
}

// mirrorCredentials is the folder in the data folder that has the addresses of mirrors with a password or token in them.
const mirrorCredentials = "mirror-credentials" //nolint:gosec // G101: the name of a folder

// startMirrors lets mirrors publish through the node's own handler.
func (n *Node) startMirrors(manager *mirrors.Manager, handler http.Handler) {
	n.background("mirrors", func(ctx context.Context) error { return manager.Run(ctx, handler) })
}
