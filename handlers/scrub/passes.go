package scrub

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/internal/pause"
)

// state is how far the background is; it outlives the process.
type state struct {
	StartedAt time.Time `json:"started_at,omitzero"` // of the pass under way; zero: there is none
	After     string    `json:"after,omitempty"`     // hex digits of the last blob that it has looked at
	Blobs     int64     `json:"blobs"`
	Bytes     int64     `json:"bytes"`
	Found     int64     `json:"found"`
	Errors    int64     `json:"errors"`

	LastStarted time.Time `json:"last_started_at,omitzero"` // of the last whole pass
	LastEnded   time.Time `json:"last_ended_at,omitzero"`
}

const (
	saveEvery = 30 * time.Second
	// passPause is the time before a pass that the storage has broken off goes on.
	passPause = time.Minute
)

// loadState reads what an earlier process has noted. What can't be read is begun anew: nothing is lost but time.
func (s *Scrubber) loadState() (out state) {
	if s.StateFile == "" {
		return out
	}
	data, err := os.ReadFile(s.StateFile)
	if err == nil {
		err = json.Unmarshal(data, &out)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.Logger.Warn("where the last scrub was can't be read; it begins anew", "file", s.StateFile, "error", err)
		return state{}
	}
	return out
}

func (s *Scrubber) saveState() error {
	if s.StateFile == "" {
		return nil
	}
	s.mu.Lock()
	data, err := json.MarshalIndent(s.state, "", "  ")
	s.mu.Unlock()
	if err != nil {
		return fmt.Errorf("note where the scrub is: %w", err)
	}
	temp := filepath.Join(filepath.Dir(s.StateFile), "."+filepath.Base(s.StateFile))
	if err = os.WriteFile(temp, append(data, '\n'), 0o600); err == nil { // a torn one is begun anew
		err = os.Rename(temp, s.StateFile)
	}
	if err != nil {
		return fmt.Errorf("note where the scrub is: %w", err)
	}
	return nil
}

// passes looks at one blob after the other, in the order of their digests, and begins again.
func (s *Scrubber) passes(ctx context.Context) {
	defer func() {
		if err := s.saveState(); err != nil {
			s.Logger.WarnContext(ctx, "the next start begins the scrub where it was some seconds ago", "error", err)
		}
	}()
	pace := paced(s.Rate)
	for {
		s.mu.Lock()
		wait := time.Duration(0)
		if s.state.StartedAt.IsZero() && !s.state.LastStarted.IsZero() {
			wait = min(s.Every, s.Every-s.Clock().Sub(s.state.LastStarted)) // a clock may go back
		}
		s.mu.Unlock()
		if pause.For(ctx, wait) != nil {
			return
		}
		err := s.pass(ctx, pace)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			s.Logger.WarnContext(ctx, "the scrub is interrupted, and goes on in a minute", "error", err)
			if pause.For(ctx, passPause) != nil {
				return
			}
		}
	}
}

// pass takes the pass under way to its end, or makes a whole one.
func (s *Scrubber) pass(ctx context.Context, pace func(context.Context, int) error) error {
	s.mu.Lock()
	if s.state.StartedAt.IsZero() {
		s.state = state{StartedAt: s.Clock().UTC(), LastStarted: s.state.LastStarted, LastEnded: s.state.LastEnded}
	}
	after := s.state.After
	s.mu.Unlock()
	saved := time.Now()
	from, _ := firstByte(after)
	for first := int(from); first < 256; first++ {
		blobs := s.index.under(byte(first))
		for _, hexed := range slices.Sorted(maps.Keys(blobs)) {
			if hexed <= after {
				continue
			}
			result, err := s.check(ctx, events.Blob{Digest: digestOf(hexed), Size: blobs[hexed]}, pace)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			s.note(ctx, hexed, result, err)
			if err != nil && unanswered(err) {
				return err // the next blob would fare no better
			}
			if time.Since(saved) >= saveEvery {
				if err := s.saveState(); err != nil {
					s.Logger.WarnContext(ctx, "a restart would begin the scrub earlier than where it is", "error", err)
				}
				saved = time.Now()
			}
		}
	}
	s.mu.Lock()
	s.state.LastStarted, s.state.LastEnded = s.state.StartedAt, s.Clock().UTC()
	s.state.StartedAt, s.state.After = time.Time{}, ""
	ended := s.state
	s.mu.Unlock()
	s.Logger.InfoContext(ctx, "all blobs scrubbed", "blobs", ended.Blobs, "bytes", ended.Bytes, "found", ended.Found, "errors", ended.Errors, "took", ended.LastEnded.Sub(ended.LastStarted).Round(time.Millisecond))
	return s.saveState()
}

func (s *Scrubber) note(ctx context.Context, hexed string, result checked, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state.Bytes += result.read
	switch {
	case err != nil && unanswered(err):
		s.meters.failed(ctx)
		return // it is looked at again
	case err != nil:
		s.meters.failed(ctx)
		s.state.Errors++
		s.Logger.WarnContext(ctx, "a blob couldn't be checked; the next scrub tries again", "digest", digestOf(hexed), "error", err)
	default:
		s.state.Blobs++
		if result.found {
			s.state.Found++
		}
	}
	s.state.After = hexed
}
