package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// DemoCmd shows all of imgsrv in a temporary folder.
type DemoCmd struct {
	Listen    string `help:"Address of the HTTP listener, host:port; port 0 takes a free one." default:"127.0.0.1:0" placeholder:"ADDR"`
	TLSListen string `name:"tls-listen" help:"Address of the HTTPS listener, host:port; port 0 takes a free one." default:"127.0.0.1:0" placeholder:"ADDR"`
	Verbosity string `help:"Least level that is logged: debug, info, warn or error." enum:"debug,info,warn,error" default:"warn"`
	Once      bool   `help:"End after the demonstration, instead of serving until Ctrl-C."`
}

// Run starts a server, publishes an image, lists and downloads it, and serves until ctx ends. The folder
// is removed at the end.
func (c *DemoCmd) Run(ctx context.Context, t Terminal) (err error) {
	dir, err := os.MkdirTemp("", "imgsrv-demo-")
	if err != nil {
		return fmt.Errorf("make a folder for the demo: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	// PostgreSQL runs as another user when we are root, and has to reach its folder.
	if err := os.Chmod(dir, 0o711); err != nil { //nolint:gosec // see above
		return fmt.Errorf("prepare the demo's folder: %w", err)
	}
	flags := ServerFlags{Listen: c.Listen, TLSListen: c.TLSListen, DataDir: filepath.Join(dir, "data"), MetricsListen: "127.0.0.1:0", MetricsPath: "/metrics",
		NATSListen: "127.0.0.1:0", LogFormat: "text", Verbosity: c.Verbosity}
	_, _ = fmt.Fprintf(t.Out, "Starting a server in %s, with a PostgreSQL of its own: that takes some seconds.\n", dir)
	node, err := StartNode(ctx, flags, flags.logger(t.Err))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, node.Stop()) }()
	(&StartCmd{flags}).announce(t.Out, node)

	image := filepath.Join(dir, "demo.qcow2")
	if err := os.WriteFile(image, demoImage(), 0o600); err != nil {
		return fmt.Errorf("make the demo's image: %w", err)
	}
	for _, args := range [][]string{
		{"publish", image, "--image", "demo", "--version", "1.0.0", "--alias", "latest", "--os", "demo", "--release", "one", "--description", "An empty disk"},
		{"images"},
		{"images", "demo"},
		{"download", "demo", "-o", filepath.Join(dir, "fetched.qcow2")},
		{"jobs"},
	} {
		if err := c.step(ctx, t, node, flags.DataDir, args); err != nil {
			return err
		}
	}
	fetched, err := os.ReadFile(filepath.Join(dir, "fetched.qcow2"))
	if err != nil {
		return fmt.Errorf("read what was downloaded: %w", err)
	}
	if !bytes.Equal(fetched, demoImage()) {
		return errors.New("what was downloaded differs from what was published")
	}
	if c.Once {
		return nil
	}
	_, _ = fmt.Fprintf(t.Out, "\nServing from %s until Ctrl-C; then the folder is removed.\n", dir)
	return node.Wait(ctx)
}

// step shows a command as a user would type it, and runs it.
func (c *DemoCmd) step(ctx context.Context, t Terminal, node *Node, dataDir string, args []string) error {
	shown := make([]string, len(args))
	for i, arg := range args {
		if shown[i] = arg; strings.Contains(arg, " ") {
			shown[i] = "'" + arg + "'"
		}
	}
	_, _ = fmt.Fprintf(t.Out, "\n$ imgsrv %s\n", strings.Join(shown, " "))
	full := append(args[:len(args):len(args)], "--server", node.HTTPURL, "--data-dir", dataDir, "--token", node.Token, "--quiet")
	if code := run(ctx, full, t); code != exitOK {
		return fmt.Errorf("imgsrv %s ended with code %d", args[0], code)
	}
	return nil
}

// demoImage is an empty disk of 64 MiB as a qcow2 image of version 3: header, reference counts and an
// empty first-level table, in clusters of 64 KiB (QEMU, docs/interop/qcow2.txt).
func demoImage() []byte {
	const cluster, clusters = 1 << 16, 4 // header, refcount table, refcount block, L1 table
	image := make([]byte, clusters*cluster)
	be := binary.BigEndian
	copy(image, "QFI\xfb")
	be.PutUint32(image[4:], 3)
	be.PutUint32(image[20:], 16)        // cluster bits
	be.PutUint64(image[24:], 64<<20)    // virtual size
	be.PutUint32(image[36:], 1)         // L1 entries: one covers 512 MiB
	be.PutUint64(image[40:], 3*cluster) // L1 table
	be.PutUint64(image[48:], cluster)   // refcount table
	be.PutUint32(image[56:], 1)         // its clusters
	be.PutUint32(image[96:], 4)         // refcounts of 16 bits
	be.PutUint32(image[100:], 104)      // header length
	be.PutUint64(image[cluster:], 2*cluster)
	for i := range clusters {
		be.PutUint16(image[2*cluster+2*i:], 1)
	}
	return image
}
