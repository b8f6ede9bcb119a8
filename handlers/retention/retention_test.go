package retention_test

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/retention"
	"github.com/imgsrv/imgsrv/internal/eventstest"
	"github.com/imgsrv/imgsrv/internal/natstest"
)

// house is a log with an image of some versions, a day apart; the newest is a day old.
type house struct {
	t   *testing.T
	log *jetstream.Log
	now time.Time
}

func newHouse(t *testing.T, versions int) *house {
	t.Helper()
	h := eventstest.New()
	for i := range versions {
		var aliases []string
		if i == 0 {
			aliases = []string{"first"}
		}
		h.Publish(t, eventstest.Session("debian", fmt.Sprint(i+1), aliases...))
	}
	l := &house{t: t, log: natstest.Log(t), now: h.Now()}
	for _, batch := range h.Batches {
		for i, change := range batch {
			if fact, ok := change.Fact.(events.VersionPublished); ok {
				var n int
				if _, err := fmt.Sscan(fact.Version.Version, &n); err != nil {
					t.Fatal(err)
				}
				fact.Manifest.PublishedAt = h.Now().Add(-time.Duration(versions-n+1) * 24 * time.Hour)
				batch[i].Fact = fact
			}
		}
		l.append(batch...)
	}
	return l
}

func (h *house) append(changes ...events.Change) events.Sequence {
	h.t.Helper()
	sequence, err := h.log.Append(h.t.Context(), jetstream.Cause{Actor: "test"}, changes...)
	if err != nil {
		h.t.Fatal(err)
	}
	return sequence
}

func (h *house) policy(r events.Retention) {
	h.t.Helper()
	image, err := h.log.Image(h.t.Context(), "debian")
	if err != nil {
		h.t.Fatal(err)
	}
	changes, err := events.SetPolicy(image, events.Policy{Retention: r})
	if err != nil {
		h.t.Fatal(err)
	}
	h.append(changes...)
}

func (h *house) worker() *retention.Retention {
	return retention.New(retention.Config{Log: h.log, Logger: slog.New(slog.DiscardHandler), Clock: func() time.Time { return h.now }})
}

// published are the versions that are left, and how many facts withdraw one.
func (h *house) published() (left []string, withdrawals int) {
	h.t.Helper()
	states := map[string]events.VersionState{}
	head, err := h.log.Head(h.t.Context())
	if err != nil {
		h.t.Fatal(err)
	}
	err = h.log.Read(h.t.Context(), head, events.SubjectsAbout(events.KindVersion, "debian"), func(event events.Event) error {
		v := event.Fact.(events.VersionFact).After()
		states[v.Version] = v.State
		if v.State == events.StateWithdrawn {
			withdrawals++
			if event.Actor != "imgsrv" || v.Withdrawal.By != "imgsrv" || v.Withdrawal.Reason != "retention: the image's policy keeps the newest 2" {
				h.t.Errorf("version %s is withdrawn by %s: %+v", v.Version, event.Actor, v.Withdrawal)
			}
		}
		return nil
	})
	if err != nil {
		h.t.Fatal(err)
	}
	for i := range len(states) {
		if name := fmt.Sprint(i + 1); states[name] == events.StatePublished {
			left = append(left, name)
		}
	}
	return left, withdrawals
}

func TestOldVersionsAreWithdrawnOnceByHoweverManyNodes(t *testing.T) {
	t.Parallel()
	h := newHouse(t, 7)
	h.policy(events.Retention{KeepLast: 2})
	var nodes sync.WaitGroup
	for range 4 {
		nodes.Go(func() {
			for range 2 {
				if err := h.worker().LookAtAll(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	nodes.Wait()
	left, withdrawals := h.published()
	if diff := cmp.Diff([]string{"1", "6", "7"}, left); diff != "" || withdrawals != 4 {
		t.Errorf("%d withdrawals, left (-want +got):\n%s", withdrawals, diff)
	}
}

func TestVersionsGrowOldAndRestoredOnesStay(t *testing.T) {
	t.Parallel()
	h := newHouse(t, 3)
	h.policy(events.Retention{KeepLast: 2, KeepDays: 10})
	worker := h.worker()
	look := func(want ...string) {
		t.Helper()
		if err := worker.LookAtAll(t.Context()); err != nil {
			t.Fatal(err)
		}
		versions, err := h.log.Versions(t.Context(), "debian")
		if err != nil {
			t.Fatal(err)
		}
		var left []string
		for _, v := range versions {
			if v.State.State == events.StatePublished {
				left = append(left, v.State.Version)
			}
		}
		if diff := cmp.Diff(want, left); diff != "" {
			t.Errorf("left (-want +got):\n%s", diff)
		}
	}
	alias, err := h.log.Alias(t.Context(), "debian", "first")
	if err != nil {
		t.Fatal(err)
	}
	h.append(events.Change{Fact: events.AliasRemoved{Alias: events.Alias{Image: "debian", Alias: "first"}}, Expect: alias.Sequence})
	look("1", "2", "3")
	h.now = h.now.Add(8 * 24 * time.Hour)
	look("2", "3")
	version, err := h.log.Version(t.Context(), "debian", "1")
	if err != nil {
		t.Fatal(err)
	}
	changes, err := events.Restore(version, "admin", h.now)
	if err != nil {
		t.Fatal(err)
	}
	h.append(changes...)
	look("2", "3", "1")
}

func TestAPolicyCountsAsSoonAsItIsSet(t *testing.T) {
	t.Parallel()
	h := newHouse(t, 4)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- h.worker().Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("retention ended: %v", err)
		}
	})
	seen := make(chan string, 10)
	go func() {
		_ = h.log.Consume(ctx, jetstream.Consumer{Name: "watch", Subject: events.SubjectOfKind(events.KindVersion), Workers: 1}, func(_ context.Context, d jetstream.Delivery) error {
			if fact, ok := d.Fact.(events.VersionWithdrawn); ok {
				seen <- fact.Version.Version
			}
			return nil
		})
	}()
	h.policy(events.Retention{KeepLast: 2})
	if got := <-seen; got != "2" {
		t.Errorf("version %s is withdrawn", got)
	}
}
