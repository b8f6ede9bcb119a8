package main

import (
	"fmt"
	"math"
	"path/filepath"
	"strings"

	"github.com/dustin/go-humanize"

	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/mirrors"
	"github.com/imgsrv/imgsrv/handlers/scrub"
	"github.com/imgsrv/imgsrv/internal/telemetry"
	"github.com/imgsrv/imgsrv/store/blob"
)

// scrubStateFile, in the data folder, holds how far the scrub in the background is.
const scrubStateFile = "scrub.json"

// ScrubFlags say how fast blobs are read again in the background.
type ScrubFlags struct {
	ScrubRate byteRate `help:"How fast all files in the storage are read again, to find those that the disk has changed or lost: bytes a second, such as 8MiB; 0: not at all." default:"8MiB" placeholder:"BYTES"`
}

// byteRate is a number of bytes a second, for people: 8MiB, 500kB, 1000000; 8MiB/s too.
type byteRate string

// bytes reads it; "" is 0.
func (r byteRate) bytes() (int64, error) {
	text := strings.TrimSuffix(strings.TrimSpace(string(r)), "/s")
	if text == "" {
		return 0, nil
	}
	n, err := humanize.ParseBytes(text)
	if err != nil || n > math.MaxInt64 {
		return 0, fmt.Errorf("%q is no number of bytes a second such as 8MiB, 500kB or 0", string(r))
	}
	return int64(n), nil
}

// newScrub keeps damaged blobs from being served, and is to look for more.
func (n *Node) newScrub(flags ServerFlags, dataDir string, log *jetstream.Log, store *blob.Store, from *mirrors.Manager, tele *telemetry.Telemetry, hooks testHooks) (*scrub.Scrubber, error) {
	rate, err := flags.ScrubRate.bytes()
	if err != nil {
		return nil, fmt.Errorf("--scrub-rate: %w", err)
	}
	scrubber, err := scrub.New(scrub.Config{Log: log, Store: store, Logger: n.log, Meter: tele.Meter("github.com/imgsrv/imgsrv/handlers/scrub"),
		Sources: []scrub.Source{from}, Rate: rate, StateFile: filepath.Join(dataDir, scrubStateFile), RepairEvery: hooks.scrubRepairEvery})
	if err != nil {
		return nil, err
	}
	return scrubber, nil
}
