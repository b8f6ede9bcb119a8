package main

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/imgsrv/imgsrv/internal/client"
	"github.com/imgsrv/imgsrv/store/vault"
)

// BackupCmd has a server make a backup.
type BackupCmd struct {
	clientFlags `embed:""`

	Place       string `arg:"" name:"dir|s3://bucket/prefix" help:"Where to: a folder on the server's machine, which the server writes to, or a bucket of S3, with the credentials of the server's environment (AWS_ACCESS_KEY_ID and so on). What is there of the same server already isn't copied again."`
	S3Endpoint  string `name:"s3-endpoint" env:"IMGSRV_S3_ENDPOINT" help:"URL of an S3 server that isn't Amazon's. Default: AWS_ENDPOINT_URL of the server's environment." placeholder:"URL"`
	WithSecrets bool   `help:"Copy the server's keys as well: those that sign checksums and simplestreams documents, and that of the webhooks. Who has the backup can then sign as the server does. Without it a restored server makes new ones."`
}

// Help is the longer text of --help.
func (cmd *BackupCmd) Help() string {
	return "The running server does it: the events up to now, then the files that they name. A file's digest is verified while it is copied. " +
		"A backup that is interrupted is none; the next one goes on with what is there. Restore with: imgsrv restore DIR --data-dir NEW_DIR"
}

// Run backs up.
func (cmd *BackupCmd) Run(ctx context.Context, t Terminal) error {
	req := client.BackupRequest{Place: cmd.Place, S3Endpoint: cmd.S3Endpoint, WithSecrets: cmd.WithSecrets}
	if !vault.IsS3(req.Place) && !filepath.IsAbs(req.Place) {
		base, err := client.ParseServer(cmd.Server)
		if err != nil {
			return &usageError{err.Error()}
		}
		if !isLoopback(base.Hostname()) {
			return usagef("%s is a folder on the server's machine: give its absolute path", req.Place)
		}
		if req.Place, err = filepath.Abs(req.Place); err != nil {
			return fmt.Errorf("look for the folder: %w", err)
		}
	}
	var done client.Backup
	if err := cmd.runOperation(ctx, t, "the backup", client.PathBackups, req, &done); err != nil {
		return err
	}
	if cmd.JSON {
		if err := writeJSON(t.Out, done); err != nil {
			return err
		}
	} else {
		_, err := fmt.Fprintf(t.Out, "%s is backed up as of event %d in %s: %s new events, %s; %s in all\n", printable(done.Place), done.Sequence, seconds(done.TookSeconds),
			humanize.Comma(done.NewEvents), amount(done.NewBlobs, "new blobs"), amount(done.Blobs, "blobs"))
		if err != nil {
			return fmt.Errorf("write the output: %w", err)
		}
		tellMissing(newProgress(t, cmd.Quiet), done.Missing)
	}
	if len(done.Missing) > 0 {
		return fmt.Errorf("%d blobs are not in the backup, since the server itself doesn't have them as they should be; all else is", len(done.Missing))
	}
	return nil
}

func amount(a client.Amount, what string) string {
	return fmt.Sprintf("%s %s (%s)", humanize.Comma(int64(a.Count)), what, size(a.Bytes))
}

func seconds(s float64) string { return shortDuration(time.Duration(s * float64(time.Second))) }

// tellMissing names the first of the blobs that are missing.
func tellMissing(p *progress, missing []client.MissingBlob) {
	const most = 20
	for i, m := range missing {
		if i == most {
			p.note("and %d more", len(missing)-most)
			return
		}
		p.note("%s: %s", printable(m.Digest), printable(m.Reason))
	}
}
