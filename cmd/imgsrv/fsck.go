package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"go.opentelemetry.io/otel/metric/noop"

	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/backup"
	"github.com/imgsrv/imgsrv/handlers/scrub"
	"github.com/imgsrv/imgsrv/internal/client"
	"github.com/imgsrv/imgsrv/internal/datadir"
	"github.com/imgsrv/imgsrv/store/blob"
)

// FsckCmd checks all files in a server's storage.
type FsckCmd struct {
	clientFlags `embed:""`
	natsFlags   `embed:"" group:"offline"`

	Rate       byteRate `help:"How fast to read, in bytes a second such as 128MiB; 0: as fast as the disk allows." default:"128MiB" placeholder:"BYTES"`
	Repair     bool     `help:"Ask the servers that mirrors follow for what is damaged, at once. A server does so every hour by itself."`
	Offline    bool     `help:"Check the storage of a server that doesn't run. --repair then has only the events to repair from."`
	StorageDir string   `group:"offline" help:"Folder of the image files. Default: <data-dir>/storage." placeholder:"DIR"`
	NATSURL    string   `group:"offline" name:"nats-url" help:"NATS server that keeps the events. Default: the store of the embedded one, in <data-dir>/nats." placeholder:"URL"`
}

// Run checks. Damage that is left is a failure.
func (cmd *FsckCmd) Run(ctx context.Context, t Terminal) error {
	rate, err := cmd.Rate.bytes()
	if err != nil {
		return usagef("--rate: %v", err)
	}
	var report client.FsckReport
	if cmd.Offline {
		report, err = cmd.offline(ctx, t, scrub.Options{BytesPerSecond: rate, Repair: cmd.Repair})
	} else {
		err = cmd.runOperation(ctx, t, "the check", client.PathFsck, client.Fsck{BytesPerSecond: rate, Repair: cmd.Repair}, &report)
	}
	if err != nil {
		return err
	}
	if cmd.JSON {
		err = writeJSON(t.Out, report)
	} else {
		err = cmd.tell(t, report)
	}
	switch {
	case err != nil:
		return err
	case len(report.Damaged) > 0:
		return fmt.Errorf("%d files are damaged, and nobody is given them; repair them with imgsrv fsck --repair where a mirror has them, or publish the same files again", len(report.Damaged))
	case len(report.Errors) > 0:
		return fmt.Errorf("%d files couldn't be checked", len(report.Errors))
	}
	return nil
}

// tell prints a report for people.
func (cmd *FsckCmd) tell(t Terminal, r client.FsckReport) error {
	table := newTable(t.Out)
	if len(r.Damaged)+len(r.Repaired) > 0 {
		table.row("STATE\tREASON\tFILE\tNAMED BY\tQUARANTINE, OR SOURCE")
	}
	for _, list := range []struct {
		state string
		blobs []client.DamagedBlob
	}{{"damaged", r.Damaged}, {"repaired", r.Repaired}} {
		for _, b := range list.blobs {
			named := strings.Join(b.NamedBy[:min(len(b.NamedBy), 3)], " ")
			if more := len(b.NamedBy) - 3; more > 0 {
				named += fmt.Sprintf(" and %d more", more)
			}
			table.row("%s\t%s\t%s\t%s\t%s", list.state, b.Reason, b.Digest, orDash(named), orDash(cmp.Or(b.From, b.Quarantined)))
		}
	}
	if err := table.flush(); err != nil {
		return err
	}
	for _, text := range r.Errors {
		if _, err := fmt.Fprintf(t.Err, "not checked: %s\n", printable(text)); err != nil {
			return err
		}
	}
	if r.StrayCount > 0 {
		if _, err := fmt.Fprintf(t.Out, "%d files (%s) among the blobs are none that an event speaks of; such as %s\n", r.StrayCount, size(r.StrayBytes), printable(r.Strays[0].Digest)); err != nil {
			return err
		}
	}
	took := r.EndedAt.Sub(r.StartedAt)
	_, err := fmt.Fprintf(t.Out, "%d files with %s, of %d versions, read in %s: %d damaged, %d repaired\n", r.Blobs, size(r.Bytes), r.Versions, shortDuration(took), len(r.Damaged), len(r.Repaired))
	return err
}

// offline checks the storage of a server that doesn't run: it needs the events and the files, and neither PostgreSQL nor a listener.
func (cmd *FsckCmd) offline(ctx context.Context, t Terminal, opt scrub.Options) (out client.FsckReport, err error) {
	log := slog.New(slog.NewTextHandler(t.Err, &slog.HandlerOptions{Level: slog.LevelError}))
	if cmd.Quiet {
		log = slog.New(slog.DiscardHandler)
	}
	n := &Node{log: log}
	defer func() { err = errors.Join(err, n.Stop()) }()
	storage := cmp.Or(cmd.StorageDir, filepath.Join(cmd.DataDir, "storage"))
	for _, dir := range []string{cmd.DataDir, storage} {
		if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
			return out, fmt.Errorf("there is no folder %s: say where the server's are with --data-dir and --storage-dir", dir)
		}
	}
	lock, err := datadir.Open(cmd.DataDir)
	if err != nil {
		return out, err
	}
	n.onStop("data folder", lock.Close)
	if err := backup.CheckFinished(cmd.DataDir); err != nil {
		return out, err
	}
	nc, _, err := n.connectNATS(ctx, ServerFlags{natsFlags: cmd.natsFlags, NATSURL: cmd.NATSURL}, cmd.DataDir)
	if err != nil {
		return out, err
	}
	events, err := jetstream.Open(ctx, nc, jetstream.Config{Source: "imgsrv", Log: log, Meter: noop.Meter{}})
	if err != nil {
		return out, err
	}
	store, err := blob.Open(storage)
	if err != nil {
		return out, fmt.Errorf("open the storage: %w", err)
	}
	scrubber, err := scrub.New(scrub.Config{Log: events, Store: store, Logger: log, Meter: noop.Meter{}})
	if err == nil {
		err = scrubber.CatchUp(ctx)
	}
	if err != nil {
		return out, err
	}
	bar := newOperationBar(newProgress(t, cmd.Quiet))
	report, err := scrubber.Fsck(ctx, opt, func(done, total int64) {
		bar.show(client.OperationProgress{Stage: "check", Done: done, Total: total, Unit: "bytes"})
	})
	bar.stop()
	if err != nil {
		return out, err
	}
	data, err := json.Marshal(report)
	if err == nil {
		err = json.Unmarshal(data, &out)
	}
	return out, err
}
