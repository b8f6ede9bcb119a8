package main

import (
	"path/filepath"

	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/backup"
	"github.com/imgsrv/imgsrv/internal/telemetry"
	"github.com/imgsrv/imgsrv/store/blob"
)

// backupStateFile, in the data folder, holds when the last backup was made.
const backupStateFile = "backup.json"

// backups is what this node's backups are made of.
func (n *Node) backups(flags ServerFlags, dataDir string, log *jetstream.Log, blobs *blob.Store, tele *telemetry.Telemetry, hooks testHooks) (*backup.Config, error) {
	meters, err := backup.NewMeters(tele.Meter("github.com/imgsrv/imgsrv/handlers/backup"), filepath.Join(dataDir, backupStateFile), n.log)
	if err != nil {
		return nil, err
	}
	// By the names that they get in a restored data folder.
	secrets := map[string]string{"webhook.key": filepath.Join(dataDir, "webhook.key"), "signing.key": filepath.Join(dataDir, "signing.key"),
		mirrorCredentials: filepath.Join(dataDir, mirrorCredentials)}
	if flags.SigningKey != "" {
		secrets["signing.key"] = flags.SigningKey
	}
	if flags.StreamsSigningKey != "" {
		secrets["streams-signing.key"] = flags.StreamsSigningKey
	}
	return &backup.Config{Log: log, Blobs: blobs, Release: version(), Secrets: secrets, Own: []string{dataDir, blobs.Root()}, Logger: n.log, Meters: meters, Told: hooks.backupTold}, nil
}
