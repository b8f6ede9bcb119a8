package powerlosstest

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
)

// Choice says which of n things, from 0, a power failure did.
type Choice func(n int) int

// Worst lets nothing survive that wasn't synced.
func Worst(int) int { return 0 }

// state is the disk after some operations, as far as they are sure and as far as they are not.
type state struct {
	sure    map[node][]byte // content as synced
	now     map[node][]byte // content as written
	entries map[node]map[string]placed
	pending []step
}

// placed is an entry with the number of the operation that made it.
type placed struct {
	is node
	at int
}

type step struct {
	at      int
	entries []entry
}

// replay brings the disk to where it was after the first n operations.
func (r *Recorder) replay(n int) *state {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := &state{sure: map[node][]byte{}, now: map[node][]byte{}, entries: map[node]map[string]placed{}}
	for at, o := range r.ops[:n] {
		switch {
		case o.entries != nil:
			s.pending = append(s.pending, step{at + 1, o.entries})
		case o.content != nil:
			s.now[o.content.of] = o.content.data
		case r.folders[o.synced]:
			s.commit(func(p step) bool {
				return slices.ContainsFunc(p.entries, func(e entry) bool { return e.folder == o.synced })
			})
		default:
			s.sure[o.synced] = s.now[o.synced]
		}
	}
	return s
}

// commit makes those pending steps sure that are asked for, and forgets them.
func (s *state) commit(asked func(step) bool) {
	var rest []step
	for _, p := range s.pending {
		if !asked(p) {
			rest = append(rest, p)
			continue
		}
		for _, e := range p.entries {
			names := s.entries[e.folder]
			if names == nil {
				names = map[string]placed{}
				s.entries[e.folder] = names
			}
			if names[e.name].at < p.at { // an older step, that comes to be sure later, undoes nothing
				names[e.name] = placed{e.is, p.at}
			}
		}
	}
	s.pending = rest
}

// Crash builds below dir, which is empty, what a power failure after the first n operations may leave; choose decides what of
// that which isn't sure.
func (r *Recorder) Crash(n int, dir string, choose Choice) error {
	s := r.replay(n)
	s.commit(func(step) bool { return choose(2) == 1 })
	return s.build(root, dir, r.folders, map[node]string{}, choose)
}

func (s *state) build(folder node, dir string, folders map[node]bool, built map[node]string, choose Choice) error {
	var names []string // in an order of their own, so that the same choices come to the same
	for name := range s.entries[folder] {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		is, path := s.entries[folder][name].is, filepath.Join(dir, name)
		var err error
		switch earlier, linked := built[is]; {
		case is == 0:
		case linked:
			err = os.Link(earlier, path)
		case folders[is]:
			if err = os.Mkdir(path, 0o750); err == nil { //nolint:gosec // G301: as the store makes them
				err = s.build(is, path, folders, built, choose)
			}
		default:
			built[is] = path
			err = os.WriteFile(path, s.survives(is, choose), 0o600)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// survives is what a file has after the failure.
func (s *state) survives(n node, choose Choice) []byte {
	sure, now := s.sure[n], s.now[n]
	if bytes.Equal(sure, now) {
		return now
	}
	common := 0
	for common < min(len(sure), len(now)) && sure[common] == now[common] {
		common++
	}
	switch choose(4) {
	case 1:
		return now
	case 2: // the length came through, the bytes did not
		zeros := make([]byte, max(len(now), common))
		copy(zeros, now[:common])
		return zeros
	case 3: // a beginning of what was written
		return now[:common+choose(len(now)-common+1)]
	}
	return sure
}
