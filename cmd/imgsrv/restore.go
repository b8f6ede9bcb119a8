package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/nats-io/nats.go"
	"go.opentelemetry.io/otel/metric/noop"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/backup"
	"github.com/imgsrv/imgsrv/internal/client"
	"github.com/imgsrv/imgsrv/internal/datadir"
	"github.com/imgsrv/imgsrv/store/vault"
)

// RestoreCmd makes a data folder from a backup.
type RestoreCmd struct {
	Place        string `arg:"" name:"dir|s3://bucket/prefix" help:"The backup: a folder that imgsrv backup wrote to, or s3://BUCKET/PREFIX."`
	DataDir      string `help:"The new server's data folder: empty, or not there yet." default:".imgsrv" placeholder:"DIR"`
	StorageDir   string `help:"Folder for the image files, empty, as the server's --storage-dir. Default: <data-dir>/storage." placeholder:"DIR"`
	ToSequence   uint64 `help:"The last event to restore. Default: the last that the backup has." placeholder:"SEQ"`
	AllowMissing bool   `help:"Restore what is there, where some files are missing in the backup or damaged."`
	S3Endpoint   string `name:"s3-endpoint" env:"IMGSRV_S3_ENDPOINT" help:"URL of an S3 server that isn't Amazon's. Default: AWS_ENDPOINT_URL of the environment." placeholder:"URL"`
	NATSURL      string `name:"nats-url" help:"NATS server to restore the events to, into an account without a stream of imgsrv's. Default: the store of the embedded one, in <data-dir>/nats." placeholder:"URL"`
	NATSCreds    string `name:"nats-creds" help:"Credentials for --nats-url, as those of imgsrv start." placeholder:"FILE"`
	NATSCA       string `name:"nats-ca" help:"Authorities for the certificate of --nats-url, PEM file, in place of the system's." placeholder:"FILE"`
	NATSCert     string `name:"nats-cert" help:"Client certificate for --nats-url, PEM file." placeholder:"FILE"`
	NATSKey      string `name:"nats-key" help:"Private key of --nats-cert, PEM file." placeholder:"FILE"`
	JSON         bool   `name:"json" help:"Write results as JSON, for programs."`
	Quiet        bool   `help:"No progress on standard error."`
}

// Help is the longer text of --help.
func (cmd *RestoreCmd) Help() string {
	return "This program does it, into a new folder, while no server runs there. " +
		"The events keep their sequences. Uploads and publications that weren't finished end with a reason. A new admin.token is made. " +
		"A restore that is interrupted goes on when it is given again. Start the server with: imgsrv start --data-dir DIR"
}

// Run restores.
func (cmd *RestoreCmd) Run(ctx context.Context, t Terminal) (err error) {
	place := cmd.Place
	if !vault.IsS3(place) {
		if place, err = filepath.Abs(place); err != nil {
			return fmt.Errorf("look for the backup: %w", err)
		}
	}
	if err := cmd.nats().check(cmd.NATSURL); err != nil {
		return &usageError{err.Error()}
	}
	storage := cmd.StorageDir
	if storage == "" {
		storage = filepath.Join(cmd.DataDir, "storage")
	}
	log := slog.New(slog.NewTextHandler(t.Err, &slog.HandlerOptions{Level: slog.LevelWarn}))
	n := &Node{log: log}
	defer func() { err = errors.Join(err, n.Stop()) }()
	lock, err := datadir.Open(cmd.DataDir)
	if err != nil {
		return err
	}
	n.onStop("data folder", lock.Close)

	p := newProgress(t, cmd.Quiet)
	bar := newOperationBar(p)
	done, err := backup.Restore(ctx, backup.RestoreConfig{
		Place: place, S3Endpoint: cmd.S3Endpoint, DataDir: cmd.DataDir, StorageDir: storage, To: events.Sequence(cmd.ToSequence), AllowMissing: cmd.AllowMissing, Logger: log,
		OpenLog: func(ctx context.Context) (*jetstream.Log, func() error, error) { return cmd.openLog(ctx, log) },
	}, func(p backup.Progress) { bar.show(client.OperationProgress(p)) })
	bar.stop()
	var missing []client.MissingBlob
	for _, m := range done.Missing {
		missing = append(missing, client.MissingBlob{Digest: string(m.Digest), Reason: m.Reason})
	}
	var lacks *backup.MissingError
	switch {
	case errors.As(err, &lacks):
		tellMissing(p, missing)
		return fmt.Errorf("%w: restore all else with --allow-missing, or mend the backup, and give the same command again", err)
	case err != nil && ctx.Err() != nil:
		return &interruptedError{"the same command goes on where this one was"}
	case err != nil:
		return err
	case cmd.JSON:
		return writeJSON(t.Out, done)
	}
	tellMissing(p, missing)
	_, err = fmt.Fprintf(t.Out, "%s is restored as of event %d in %s: %s\n", printable(cmd.DataDir), done.Sequence, seconds(done.TookSeconds), amount(client.Amount(done.Blobs), "blobs"))
	if err == nil && done.Abandoned != (backup.Abandoned{}) {
		_, err = fmt.Fprintf(t.Out, "Ended, since they weren't finished: %d upload sessions, %d jobs\n", done.Abandoned.Uploads, done.Abandoned.Jobs)
	}
	if err == nil && len(done.Secrets) == 0 {
		_, err = fmt.Fprintln(t.Out, "The backup has no keys of the server: it makes new ones, and webhooks have to be added again")
	}
	if err == nil {
		_, err = fmt.Fprintf(t.Out, "admin token  %s  (shown once; kept in %s)\nStart it with: %s start --data-dir %s%s\n", done.Token, filepath.Join(cmd.DataDir, "admin.token"), programName(), cmd.DataDir, cmd.storesFlags())
	}
	if err != nil {
		return fmt.Errorf("write the output: %w", err)
	}
	return nil
}

// openLog opens the log to restore into. The embedded server's is synced once, at the end.
func (cmd *RestoreCmd) openLog(ctx context.Context, log *slog.Logger) (_ *jetstream.Log, settle func() error, err error) {
	n := &Node{log: log}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.Stop())
		}
	}()
	settle = n.Stop
	var nc *nats.Conn
	if cmd.NATSURL != "" {
		nc, _, err = n.connectNATS(ctx, ServerFlags{natsFlags: cmd.nats(), NATSURL: cmd.NATSURL}, cmd.DataDir)
	} else {
		dir := filepath.Join(cmd.DataDir, "nats")
		var server *jetstream.Server
		if server, err = jetstream.StartServer(ctx, jetstream.ServerConfig{StoreDir: dir, SyncEvery: time.Minute, Log: log}); err != nil {
			return nil, nil, err
		}
		n.onStop("NATS", func() error { server.Stop(); return nil })
		if nc, err = server.Connect(nats.Name("imgsrv restore")); err == nil {
			n.onStop("connection to NATS", func() error { nc.Close(); return nil })
		}
		settle = func() error { return errors.Join(n.Stop(), syncTree(dir)) }
	}
	if err != nil {
		return nil, nil, err
	}
	events, err := jetstream.Open(ctx, nc, jetstream.Config{Source: "imgsrv", Log: log, Meter: noop.Meter{}})
	return events, settle, err
}

func (cmd *RestoreCmd) nats() natsFlags {
	return natsFlags{NATSCreds: cmd.NATSCreds, NATSCA: cmd.NATSCA, NATSCert: cmd.NATSCert, NATSKey: cmd.NATSKey}
}

// syncTree makes a folder with all in it durable.
func syncTree(dir string) error {
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.IsDir() && !entry.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path) //nolint:gosec // G122: a folder that this process has just made, for its own user alone
		if err != nil {
			return err
		}
		return errors.Join(f.Sync(), f.Close())
	})
	if err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return nil
}

// storesFlags are those that the restored server needs to find its stores.
func (cmd *RestoreCmd) storesFlags() string {
	text := ""
	if cmd.StorageDir != "" {
		text += " --storage-dir " + cmd.StorageDir
	}
	if cmd.NATSURL != "" {
		text += " --nats-url …" // it may hold a password
	}
	return text
}
