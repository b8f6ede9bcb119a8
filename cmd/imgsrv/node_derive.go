package main

import (
	"errors"
	"os/exec"
	"time"

	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/derive"
	"github.com/imgsrv/imgsrv/internal/convert"
	"github.com/imgsrv/imgsrv/internal/telemetry"
	"github.com/imgsrv/imgsrv/store/blob"
)

// DeriveFlags say how further formats of published versions are made.
type DeriveFlags struct {
	DeriveWorkers int           `help:"How many further formats of published versions (publish --derive) this node makes at once." default:"1" placeholder:"N"`
	DeriveTimeout time.Duration `help:"How long making and comparing one format may take; 0: no limit." default:"1h" placeholder:"DURATION"`
	DeriveMemory  int64         `help:"Address space of the qemu-img that makes a format, in bytes; 0: no limit." default:"2147483648" placeholder:"BYTES"`
}

// check refuses numbers that mean nothing.
func (f DeriveFlags) check() error {
	switch {
	case f.DeriveWorkers < 0:
		return errors.New("--derive-workers is a number from 1")
	case f.DeriveTimeout < 0:
		return errors.New("--derive-timeout is a duration from 0")
	case f.DeriveMemory < 0:
		return errors.New("--derive-memory is a number of bytes from 0")
	}
	return nil
}

// startDerive makes the formats that are asked for.
func (n *Node) startDerive(f DeriveFlags, log *jetstream.Log, store *blob.Store, tele *telemetry.Telemetry, hooks testHooks) error {
	if _, err := exec.LookPath("qemu-img"); err != nil {
		n.log.Info("qemu-img is not installed: no further formats of disks can be made", "remedy", "Debian: apt-get install qemu-utils")
	}
	deriver, err := derive.New(derive.Config{Log: log, Store: store, Logger: n.log, Meter: tele.Meter("github.com/imgsrv/imgsrv/handlers/derive"),
		Converter: convert.New(convert.Limits{Timeout: f.DeriveTimeout, MemoryBytes: f.DeriveMemory}), Workers: f.DeriveWorkers, Started: hooks.deriveStarted})
	if err != nil {
		return err
	}
	n.background("further formats", deriver.Run)
	return nil
}
