package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"go.opentelemetry.io/otel/metric"

	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/backup"
	"github.com/imgsrv/imgsrv/internal/telemetry"
	"github.com/imgsrv/imgsrv/store/blob"
)

// lastBackup is the file in the data folder that has the time of the last whole backup.
const lastBackup = "backup.last"

// backups is what this node's backups are made of.
func (n *Node) backups(flags ServerFlags, dataDir string, log *jetstream.Log, blobs *blob.Store, hooks testHooks) *backup.Config {
	// By the names that they get in a restored data folder.
	secrets := map[string]string{"webhook.key": filepath.Join(dataDir, "webhook.key"), "signing.key": filepath.Join(dataDir, "signing.key"),
		mirrorCredentials: filepath.Join(dataDir, mirrorCredentials)}
	if flags.SigningKey != "" {
		secrets["signing.key"] = flags.SigningKey
	}
	if flags.StreamsSigningKey != "" {
		secrets["streams-signing.key"] = flags.StreamsSigningKey
	}
	return &backup.Config{Log: log, Blobs: blobs, Release: version(), Secrets: secrets, LastFile: filepath.Join(dataDir, lastBackup), Own: []string{dataDir, blobs.Root()}, Logger: n.log, Told: hooks.backupTold}
}

// observeBackups tells when the last whole backup that this node made was made; nothing without one.
func (n *Node) observeBackups(tele *telemetry.Telemetry, dataDir string) error {
	_, err := tele.Meter("github.com/imgsrv/imgsrv/cmd/imgsrv").Int64ObservableGauge("imgsrv.backup.last_success", metric.WithUnit("s"),
		metric.WithDescription("When this node made the last backup that has all there was, seconds since 1970"),
		metric.WithInt64Callback(func(_ context.Context, o metric.Int64Observer) error {
			text, err := os.ReadFile(filepath.Join(dataDir, lastBackup))
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
			}
			at, err := time.Parse(time.RFC3339, strings.TrimSpace(string(text)))
			if err == nil {
				o.Observe(at.Unix())
			}
			return err
		}))
	if err != nil {
		return fmt.Errorf("make meters: %w", err)
	}
	return nil
}
