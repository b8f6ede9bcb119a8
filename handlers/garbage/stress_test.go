package garbage_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.opentelemetry.io/otel/metric/noop"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/garbage"
	"github.com/imgsrv/imgsrv/handlers/operations"
	"github.com/imgsrv/imgsrv/handlers/retention"
	"github.com/imgsrv/imgsrv/handlers/scrub"
	"github.com/imgsrv/imgsrv/internal/eventstest"
	"github.com/imgsrv/imgsrv/internal/workstest"
)

// Publications of few contents, told of blobs or bringing them, withdrawals, restorations, derived files of the same contents, a
// retention and two collectors without any grace, all at once. In the end each file that a kept version names is there, with its
// bytes; and after a last collection nothing else is.
func TestNothingThatIsNeededIsCollectedUnderStress(t *testing.T) {
	t.Parallel()
	const publishers, versions, contents = 4, 12, 5
	y := newYard(t)
	y.publications()
	var published sync.Map // versions that were published, by number
	var made, told, collected, kept, restored, derived, checked atomic.Int64
	content := func() []byte { return workstest.Root(fmt.Sprint("content ", rand.IntN(contents))) }

	var work, side sync.WaitGroup
	done := make(chan struct{})
	// However fast one of them is on this machine: the publications go on until each of the others has met them.
	met := func() bool { return collected.Load() >= 3 && told.Load() > 0 && restored.Load() > 0 }
	for p := range publishers {
		work.Go(func() {
			for v := 0; v < versions || v < 20*versions && !met(); v++ {
				name := fmt.Sprintf("%d.%d", p, v)
				id, present, err := y.upload(name, content(), rand.IntN(2) == 0)
				if err != nil {
					t.Errorf("upload %s: %v", name, err)
					return
				}
				job, err := y.ended(id)
				if err != nil || job.State != events.JobStateSucceeded {
					t.Errorf("job of %s: %s %+v %v", name, job.State, job.Problem, err)
					return
				}
				made.Add(1)
				if present {
					told.Add(1)
				}
				published.Store(made.Load(), name)
			}
		})
	}
	some := func() (string, bool) {
		name, ok := published.Load(1 + rand.Int64N(max(made.Load(), 1)))
		if !ok {
			return "", false
		}
		return name.(string), true
	}
	// Each refusal that a rule may give is part of the play; anything else is not.
	loop := func(what string, do func(version string) error) {
		side.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				version, ok := some()
				time.Sleep(time.Duration(rand.IntN(5)) * time.Millisecond) // the publications are to get on
				if !ok {
					continue
				}
				var refusal *events.Error
				if err := do(version); err != nil && !errors.As(err, &refusal) && !errors.Is(err, jetstream.ErrConflict) {
					t.Errorf("%s %s: %v", what, version, err)
					return
				}
			}
		})
	}
	loop("withdraw", y.withdraw)
	loop("restore", func(version string) error {
		err := y.restore(version)
		if err == nil {
			restored.Add(1)
		}
		return err
	})
	loop("derive of", func(version string) error {
		err := y.derive(version, fmt.Sprintf("file%d.txt", rand.IntN(3)), "", content())
		if err == nil {
			derived.Add(1)
		}
		return err
	})
	keeper := retention.New(retention.Config{Log: y.Log, Logger: slog.New(slog.DiscardHandler)})
	loop("retention after", func(string) error {
		err := y.Decide(func(ctx context.Context) ([]events.Change, error) {
			current, err := y.Log.Image(ctx, image)
			if err != nil {
				return nil, err
			}
			return events.SetPolicy(current, events.Policy{Retention: events.Retention{KeepLast: 3}})
		})
		return errors.Join(err, keeper.Look(context.Background(), image, ""))
	})
	short := func(cfg *garbage.Config) { cfg.ShortGrace = true }
	for range 2 {
		c := y.collector(short)
		loop("collect after", func(string) error {
			result, err := c.Collect(context.Background(), garbage.Request{}, func(operations.Progress) {})
			if errors.Is(err, garbage.ErrRunning) {
				return nil // the other's turn
			}
			collected.Add(int64(result.Blobs))
			kept.Add(int64(result.Kept))
			return err
		})
	}
	// Who checks the files meanwhile takes none that are on their way out for lost ones.
	checker, err := scrub.New(scrub.Config{Log: y.Log, Store: y.Store, Logger: slog.New(slog.DiscardHandler), Meter: noop.Meter{}, RepairEvery: -1})
	if err != nil {
		t.Fatal(err)
	}
	following, stop := context.WithCancel(context.Background())
	side.Go(func() {
		if err := checker.Run(following); err != nil {
			t.Errorf("the checker ended: %v", err)
		}
	})
	loop("check after", func(string) error {
		report, err := checker.Fsck(context.Background(), scrub.Options{}, func(int64, int64) {})
		if err == nil && len(report.Damaged)+len(report.Repaired) > 0 {
			err = fmt.Errorf("found to be damaged: %+v, and repaired: %+v", report.Damaged, report.Repaired)
		}
		checked.Add(1)
		time.Sleep(50 * time.Millisecond) // the collectors are to get on
		return err
	})
	work.Wait()
	close(done)
	stop()
	side.Wait()

	y.collect(y.collector(short), false)
	needed := []events.Digest{}
	all, err := y.Log.Versions(context.Background(), image)
	if err != nil {
		t.Fatal(err)
	}
	keptVersions := map[string]bool{}
	for _, v := range all {
		if v.State.State == events.StatePublished {
			keptVersions[v.State.Version] = true
			for _, f := range v.State.Manifest.Variants[0].Formats {
				needed = append(needed, f.Digest)
			}
		}
	}
	err = y.Log.EachLatest(context.Background(), events.SubjectsAbout(events.KindDerived), func(event events.Event, _ int) error {
		if d := event.Fact.(events.DerivedFact).After(); d.State == events.DerivedIsMade && keptVersions[d.Version] {
			needed = append(needed, d.Digest)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, digest := range needed {
		file, _, err := y.Store.OpenBlob(digest.Hex())
		if err != nil {
			t.Errorf("a kept version names it: %v", err)
			continue
		}
		data, err := io.ReadAll(file)
		if err := errors.Join(err, file.Close()); err != nil || eventstest.Digest(data) != digest {
			t.Errorf("blob %s has other bytes (%v)", digest, err)
		}
	}
	y.wantStored("in the end", needed...)
	t.Logf("%d publications (%d told of blobs), %d restorations, %d derived files, %d versions published in the end; %d blobs collected, %d needed again meanwhile; %d checks of all files",
		made.Load(), told.Load(), restored.Load(), derived.Load(), len(keptVersions), collected.Load(), kept.Load(), checked.Load())
	if !met() {
		t.Error("little happened at once: the test shows nothing")
	}
}
