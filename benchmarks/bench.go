package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"
)

// bench is one run of the harness.
type bench struct {
	quick    bool
	rounds   int
	dir      string // for all data; removed at the end
	log      io.Writer
	program  string // imgsrv
	profiles string // folder for its CPU profiles; "" for none
	plotFile string

	results  []result
	failures []string

	mu      sync.Mutex
	undo    []func() // of the group that runs, called in reverse
	folders int
}

// document is the file of results.
type document struct {
	Machine  machine  `json:"machine"`
	Results  []result `json:"results"`
	Failures []string `json:"failures,omitempty"`
}

// machine is where results come from: they compare only with others of the like.
type machine struct {
	Time  time.Time `json:"time"`
	CPUs  int       `json:"cpus"`
	Model string    `json:"model,omitempty"`
	Go    string    `json:"go"`
	Quick bool      `json:"quick,omitempty"`
}

func thisMachine() machine {
	m := machine{Time: time.Now().UTC().Truncate(time.Second), CPUs: runtime.NumCPU(), Go: runtime.Version()}
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return m
	}
	for line := range strings.SplitSeq(string(info), "\n") {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			m.Model = strings.TrimSpace(value)
			break
		}
	}
	return m
}

func (b *bench) logf(format string, args ...any) {
	fmt.Fprintf(b.log, format+"\n", args...) //nolint:errcheck // progress
}

// either is the full size of something, or that of a quick run.
func either[T any](b *bench, full, quick T) T {
	if b.quick {
		return quick
	}
	return full
}

// inOwnFolder runs a group, and leaves nothing of it: no process, no file.
func (b *bench) inOwnFolder(ctx context.Context, g group) error {
	b.undo = nil
	err := g.run(ctx, b)
	for i := len(b.undo) - 1; i >= 0; i-- {
		b.undo[i]()
	}
	return err
}

// after calls f when the group has ended.
func (b *bench) after(f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.undo = append(b.undo, f)
}

// folder makes an empty folder that lasts as long as the group.
func (b *bench) folder(name string) (string, error) { return b.folderIn(b.dir, name) }

// memoryFolder is a folder in memory, where a sync costs nothing.
func (b *bench) memoryFolder(name string) (string, error) {
	const shm = "/dev/shm"
	if _, err := os.Stat(shm); err != nil {
		return "", fmt.Errorf("a row without the disk needs %s: %w", shm, err)
	}
	return b.folderIn(shm, name)
}

func (b *bench) folderIn(parent, name string) (string, error) {
	b.mu.Lock()
	b.folders++
	path := filepath.Join(parent, fmt.Sprintf("imgsrv-bench-%d-%02d-%s", os.Getpid(), b.folders, name))
	b.mu.Unlock()
	if err := os.Mkdir(path, 0o711); err != nil {
		return "", err
	}
	b.after(func() { _ = os.RemoveAll(path) }) // what is left in a temporary folder is the system's to remove
	return path, nil
}

// pair lets two sides take turns, in one order and then in the other, after one round that doesn't count. Each gives a figure.
func (b *bench) pair(ctx context.Context, ours, theirs func(context.Context) (float64, error)) (samples, error) {
	var s samples
	for round := -1; round < b.rounds; round++ {
		var mine, other float64
		sides := []func() error{
			func() (err error) { mine, err = ours(ctx); return wrap("imgsrv", err) },
			func() (err error) { other, err = theirs(ctx); return wrap("the peer", err) },
		}
		first := (round + 2) % 2
		if err := errors.Join(sides[first](), ctx.Err()); err != nil {
			return s, err
		}
		if err := errors.Join(sides[1-first](), ctx.Err()); err != nil {
			return s, err
		}
		if round >= 0 {
			s.ours, s.theirs = append(s.ours, mine), append(s.theirs, other)
		}
	}
	return s, nil
}

func wrap(who string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", who, err)
}

// report adds a row to the results.
func (b *bench) report(r result) {
	r.judge()
	b.results = append(b.results, r)
	b.logf("  %s  %s", r.line(), r.Note)
}
