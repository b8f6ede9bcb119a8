package crash

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

var (
	allPoints = flag.Bool("crash.all", false, "end the server at every place, each time that it comes there")
	forTime   = flag.Duration("crash.time", 0, "go through the places, in an order of chance but each name once before any twice, for so long")
	onlyAt    = flag.String("crash.at", "", "end the server at this place only: NAME:N, as the test names it")
	seed      = flag.Uint64("crash.seed", 0, "of the order and of what is left to chance; 0: another one each time")
	workers   = flag.Int("crash.workers", 6, "runs at once: most of a run is waiting")
)

// few is how many places a run without flags tries.
const few = 12

// point is a place and how often it is come to.
type point struct {
	name string
	nth  int
}

func (p point) String() string { return fmt.Sprintf("%s:%d", p.name, p.nth) }

// TestCrashMatrix ends the server at marked places of the script, one in each run, starts it again, lets the clients go on to the
// script's end, and looks whether anything is lost.
func TestCrashMatrix(t *testing.T) {
	t.Parallel()
	if *seed == 0 {
		*seed = rand.Uint64()
	}
	t.Logf("-crash.seed %d", *seed)
	points := pointsOf(t)
	chosen := choose(points)
	names := map[string]bool{}
	for _, p := range points {
		names[p.name] = true
	}

	var mu sync.Mutex
	next, reached, missed := 0, 0, 0
	began := time.Now()
	take := func() (point, bool) {
		mu.Lock()
		defer mu.Unlock()
		if next == len(chosen) || t.Failed() && !*allPoints || *forTime > 0 && time.Since(began) > *forTime {
			return point{}, false
		}
		next++
		return chosen[next-1], true
	}
	var running sync.WaitGroup
	for range *workers {
		running.Go(func() {
			for p, more := take(); more; p, more = take() {
				t.Run(p.String(), func(t *testing.T) {
					r := newRun(t, databaseOf(t), "IMGSRV_FAULT="+p.String())
					want := script(r)
					r.server()
					died := r.killed > 0
					r.check(want)
					mu.Lock()
					defer mu.Unlock()
					if died {
						reached++
					} else {
						missed++ // how often some places are come to differs between runs
					}
				})
			}
		})
	}
	running.Wait()
	t.Logf("%d crashes at %d of %d places (%d names), %d not reached, in %s", reached, next, len(points), len(names), missed, time.Since(began).Round(time.Second))
	if missed > 2+next/5 {
		t.Errorf("%d of %d places were not reached: the script is not the same each time", missed, next)
	}
}

// pointsOf finds all places of the script by a run without a crash.
func pointsOf(t *testing.T) []point {
	t.Helper()
	if *onlyAt != "" {
		return nil
	}
	log := filepath.Join(folder(t), "places")
	r := newRun(t, databaseOf(t), "IMGSRV_FAULT_LOG="+log)
	r.check(script(r))
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	var points []point
	hits := map[string]int{}
	for name := range strings.Lines(string(text)) {
		name = strings.TrimSpace(name)
		hits[name]++
		points = append(points, point{name, hits[name]})
	}
	return points
}

// choose brings the places into the order in which they are tried, and leaves out those that have no turn.
func choose(points []point) []point {
	if at := strings.LastIndexByte(*onlyAt, ':'); at > 0 {
		p := point{name: (*onlyAt)[:at]}
		_, _ = fmt.Sscan((*onlyAt)[at+1:], &p.nth) // 0 is never reached, and says so
		return []point{p}
	}
	random := rand.New(rand.NewPCG(*seed, 0))
	random.Shuffle(len(points), func(i, k int) { points[i], points[k] = points[k], points[i] })
	// Each name once, then each that is come to more often a second time, and so on.
	turn, turns := map[point]int{}, map[string]int{}
	for _, p := range points {
		turns[p.name]++
		turn[p] = turns[p.name]
	}
	slices.SortStableFunc(points, func(a, b point) int { return turn[a] - turn[b] })
	if !*allPoints && *forTime == 0 {
		points = points[:min(few, len(points))]
	}
	return points
}
