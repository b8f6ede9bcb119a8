// Package workstest gives tests what the consumers work on: an event log and a byte store, with what tests of all of them do to the
// two, and wait for. Only tests import it; it must not know any consumer.
package workstest

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/internal/eventstest"
	"github.com/imgsrv/imgsrv/internal/natstest"
	"github.com/imgsrv/imgsrv/store/blob"
)

// patience bounds every wait for something that must come: long, for a busy machine, and never waited out.
const patience = 2 * time.Minute

// Works is a log and a byte store, each empty at first. Both end with the test.
type Works struct {
	T     testing.TB
	Root  string // of the store
	Log   *jetstream.Log
	Store *blob.Store
}

// New makes works for a test.
func New(t testing.TB) *Works {
	t.Helper()
	return At(t, t.TempDir())
}

// At is [New] with the store in a folder of the test's choice.
func At(t testing.TB, root string) *Works {
	t.Helper()
	w := &Works{T: t, Root: root, Log: natstest.Log(t)}
	w.Store = w.OpenStore()
	return w
}

// OpenStore is the store as another node has it.
func (w *Works) OpenStore() *blob.Store {
	w.T.Helper()
	store, err := blob.Open(w.Root)
	if err != nil {
		w.T.Fatal(err)
	}
	return store
}

// Run lets a part work in the background until stop is called, at the latest until the test ends. An error of it fails the test.
func Run(t testing.TB, run func(context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("what ran in the background ended: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// Append appends facts in one batch, each as the next of its entity whatever that was, and gives the last one's sequence.
func (w *Works) Append(facts ...events.Fact) events.Sequence {
	w.T.Helper()
	var changes []events.Change
	for _, fact := range facts {
		last, _, err := w.Log.Last(w.T.Context(), fact.Entity())
		if err != nil {
			w.T.Fatal(err)
		}
		changes = append(changes, events.Change{Fact: fact, Expect: last.Sequence})
	}
	sequence, err := w.Log.Append(w.T.Context(), jetstream.Cause{Actor: "test"}, changes...)
	if err != nil {
		w.T.Fatal(err)
	}
	return sequence
}

// Decide appends what a rule decides; it may be called from any goroutine.
func (w *Works) Decide(decide func(context.Context) ([]events.Change, error)) error {
	_, err := w.Log.Decide(context.Background(), jetstream.Cause{Actor: "test"}, decide)
	return err
}

// Put puts bytes into the store, and nothing into the log.
func (w *Works) Put(data []byte) events.Digest {
	w.T.Helper()
	digest := eventstest.Digest(data)
	if err := w.Store.Fill().Put(w.T.Context(), digest.Hex(), int64(len(data)), bytes.NewReader(data)); err != nil {
		w.T.Fatal(err)
	}
	return digest
}

// Path is where the store has a blob's file, whether it is there or not.
func (w *Works) Path(d events.Digest) string {
	return filepath.Join(w.Root, "cas", "sha256", d.Hex()[:2], d.Hex())
}

// Await reads an entity's facts from the first on, waits until one is as wanted, and gives all up to it; it may be called from any
// goroutine.
func (w *Works) Await(entity events.Entity, wanted func(events.Fact) bool) ([]events.Fact, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	tail, err := w.Log.Tail(ctx, 0, entity.Subject())
	if err != nil {
		return nil, err
	}
	defer tail.Close()
	var all []events.Fact
	for {
		batch, err := tail.Next(ctx, 1)
		if err != nil {
			return all, fmt.Errorf("wait for a fact of %s %s, of which there are %d, the last %+v: %w", entity.Kind, entity.ID, len(all), all[max(len(all)-1, 0):], err)
		}
		all = append(all, batch[0].Fact)
		if wanted(batch[0].Fact) {
			return all, nil
		}
	}
}

// AwaitJob waits until the job of an upload session is as wanted; see [Works.Await].
func (w *Works) AwaitJob(upload string, wanted func(events.Job) bool) (events.Job, error) {
	var job events.Job
	_, err := w.Await(events.JobEntity(events.JobIDFor(upload)), func(fact events.Fact) bool {
		job = fact.(events.JobFact).After()
		return wanted(job)
	})
	return job, err
}
