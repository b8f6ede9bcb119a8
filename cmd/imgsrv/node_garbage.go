package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/garbage"
	"github.com/imgsrv/imgsrv/internal/telemetry"
	"github.com/imgsrv/imgsrv/store/blob"
)

// garbageFlags say when what nothing needs any more is removed.
type garbageFlags struct {
	GCEvery       time.Duration `name:"gc-every" help:"How often what nothing needs any more is removed (imgsrv gc does it at once); 0: never by itself." default:"24h" placeholder:"DURATION"`
	GCGrace       time.Duration `name:"gc-grace" help:"How long bytes stay after the last need of them, at least 1h: so long clients keep the list of images." default:"1h" placeholder:"DURATION"`
	KeepWithdrawn time.Duration `help:"How long withdrawn versions can be restored; after it their bytes are removed. At least --gc-grace." default:"168h" placeholder:"DURATION"`
}

// check refuses times that are too short; 0 is the default.
func (f garbageFlags) check() error {
	grace := f.GCGrace
	if grace == 0 {
		grace = garbage.LeastGrace
	}
	switch {
	case f.GCEvery < 0:
		return errors.New("--gc-every is a duration from 0")
	case grace < garbage.LeastGrace:
		return fmt.Errorf("--gc-grace is at least %s: so long clients keep the list of images", garbage.LeastGrace)
	case f.KeepWithdrawn != 0 && f.KeepWithdrawn < grace:
		return errors.New("--keep-withdrawn is at least --gc-grace")
	}
	return nil
}

// newGarbage is to mend what an ended process left of a collection, and to collect now and then.
func (n *Node) newGarbage(f garbageFlags, log *jetstream.Log, store *blob.Store, tele *telemetry.Telemetry, hooks testHooks) (*garbage.Collector, error) {
	cfg := garbage.Config{Log: log, Store: store, Logger: n.log, Meter: tele.Meter("github.com/imgsrv/imgsrv/handlers/garbage"),
		Every: f.GCEvery, Grace: f.GCGrace, KeepWithdrawn: f.KeepWithdrawn}
	if hooks.noGrace {
		cfg.Grace, cfg.KeepWithdrawn, cfg.ShortGrace = 0, 0, true
	}
	return garbage.New(cfg)
}
