package postgres

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/imgsrv/imgsrv/internal/pause"
)

const (
	firstRestart   = 100 * time.Millisecond
	longestRestart = 30 * time.Second
	// steadyAfter is how long a server must have run for its next end to be a new trouble, not the same one again.
	steadyAfter = time.Minute
)

// Kept is a private server that is started again, at the same address, whenever it ends by itself: killed for want of
// memory, out of disk, or by its own panic. Who keeps it runs Run, and then calls Stop.
type Kept struct {
	cfg   ManagedConfig
	start func(context.Context, ManagedConfig) (*Managed, error)
	log   *slog.Logger

	mu      sync.Mutex
	current *Managed
	stopped bool
}

// Keep starts a server as StartManaged does, with the same errors: one that can't even start the first time is for the
// operator to see.
func Keep(ctx context.Context, cfg ManagedConfig) (*Kept, error) {
	return keepWith(ctx, cfg, StartManaged)
}

func keepWith(ctx context.Context, cfg ManagedConfig, start func(context.Context, ManagedConfig) (*Managed, error)) (*Kept, error) {
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	m, err := start(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return &Kept{cfg: cfg, start: start, log: log, current: m}, nil
}

// URL is as that of Managed, and stays the same over restarts.
func (k *Kept) URL() string { return k.server().URL() }

// DataDir is as that of Managed.
func (k *Kept) DataDir() string { return k.server().DataDir() }

func (k *Kept) server() *Managed {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.current
}

// Run starts the server again when it has ended, for as long as it takes, with growing pauses in between; it returns nil when
// ctx ends. A start that is under way then is broken off, and leaves nothing behind.
func (k *Kept) Run(ctx context.Context) error {
	wait := firstRestart
	for {
		began := time.Now()
		select {
		case <-ctx.Done():
			return nil
		case <-k.server().Done():
		}
		if time.Since(began) >= steadyAfter {
			wait = firstRestart
		}
		for {
			if pause.For(ctx, pause.About(wait)) != nil {
				return nil
			}
			wait = min(2*wait, longestRestart)
			err := k.restart(ctx)
			if ctx.Err() != nil {
				return nil
			}
			if err == nil {
				break
			}
			k.log.Error("PostgreSQL can't be started again; trying on", "error", err, "in_about", wait)
		}
	}
}

// errStopped: the server is no longer wanted.
var errStopped = errors.New("PostgreSQL is being stopped")

func (k *Kept) restart(ctx context.Context) error {
	m, err := k.start(ctx, k.cfg)
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.stopped { // meanwhile: Stop has seen only the one before
		stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), fastStop)
		defer cancel()
		return errors.Join(errStopped, m.Stop(stopCtx))
	}
	k.current = m
	return nil
}

// Stop ends the server as Managed's does, for good. Run should have returned.
func (k *Kept) Stop(ctx context.Context) error {
	k.mu.Lock()
	k.stopped = true
	current := k.current
	k.mu.Unlock()
	return current.Stop(ctx)
}
