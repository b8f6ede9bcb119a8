package main

import (
	"fmt"
	"sync"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/schollz/progressbar/v3"
)

// lineEvery is how often progress is told where no line can be drawn anew.
const lineEvery = 5 * time.Second

// progress tells people how far things are, on standard error: with a bar on a terminal, else in plain lines now and then.
// It is plain text without colours in either case. It is safe for concurrent use.
type progress struct {
	t     Terminal
	quiet bool
	now   func() time.Time

	mu    sync.Mutex
	bar   *progressbar.ProgressBar // nil without a bar
	label string
	total int64
	last  time.Time // of the last plain line
}

func newProgress(t Terminal, quiet bool) *progress {
	return &progress{t: t, quiet: quiet, now: time.Now}
}

// note writes a line, beside a bar that may be there.
func (p *progress) note(format string, args ...any) {
	if p.quiet {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bar != nil {
		_ = p.bar.Clear()
	}
	_, _ = fmt.Fprintf(p.t.Err, format+"\n", args...)
}

// start begins a measure of so many bytes; without a bar if that is unknown, -1.
func (p *progress) start(label string, totalBytes int64) {
	if p.quiet {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.label, p.total, p.last = label, totalBytes, p.now()
	if !p.t.Fancy || totalBytes <= 0 {
		return
	}
	p.bar = progressbar.NewOptions64(totalBytes,
		progressbar.OptionSetWriter(p.t.Err),
		progressbar.OptionSetDescription(label),
		progressbar.OptionEnableColorCodes(false),
		progressbar.OptionShowBytes(true),
		progressbar.OptionUseIECUnits(true),
		progressbar.OptionShowTotalBytes(true),
		progressbar.OptionSetWidth(24),
		progressbar.OptionThrottle(100*time.Millisecond),
		progressbar.OptionClearOnFinish(),
	)
}

// set says how far the measure is; it may go back.
func (p *progress) set(doneBytes int64) {
	if p.quiet {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bar != nil {
		_ = p.bar.Set64(doneBytes)
		return
	}
	if p.now().Sub(p.last) < lineEvery {
		return
	}
	p.last = p.now()
	if p.total > 0 {
		_, _ = fmt.Fprintf(p.t.Err, "%s: %s of %s (%d %%)\n", p.label, size(doneBytes), size(p.total), doneBytes*100/p.total)
		return
	}
	_, _ = fmt.Fprintf(p.t.Err, "%s: %s\n", p.label, size(doneBytes))
}

// stop ends the measure and clears its bar away.
func (p *progress) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bar != nil {
		_ = p.bar.Clear()
		_ = p.bar.Exit()
		p.bar = nil
	}
}

// size is a number of bytes for people.
func size(bytes int64) string {
	return humanize.IBytes(uint64(max(bytes, 0))) //nolint:gosec // not negative
}
