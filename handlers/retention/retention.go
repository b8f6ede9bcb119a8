// Package retention withdraws the versions that their image's policy doesn't keep. What isn't kept is a rule of
// package events; this package says when it is looked at: after a publication, after a change of the policy, and
// now and then, since versions grow old. It knows the log, and nothing of HTTP, bytes or PostgreSQL.
//
// Each node may run it: a withdrawal states what it was decided on, and of two that are decided at once the second is
// decided anew, and has nothing left to do.
package retention

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
)

// Config is what retention needs.
type Config struct {
	Log    *jetstream.Log
	Logger *slog.Logger
	Every  time.Duration    // between two looks at all images; 0: an hour
	Clock  func() time.Time // nil: time.Now
}

// Retention withdraws what isn't kept.
type Retention struct {
	log    *jetstream.Log
	logger *slog.Logger
	every  time.Duration
	now    func() time.Time
}

const (
	byItself = "imgsrv"
	atOnce   = 50 // withdrawals in one batch
)

// New makes it; Run starts it.
func New(cfg Config) *Retention {
	r := &Retention{log: cfg.Log, logger: cfg.Logger, every: cfg.Every, now: cfg.Clock}
	if r.every == 0 {
		r.every = time.Hour
	}
	if r.now == nil {
		r.now = time.Now
	}
	return r
}

// Run withdraws until ctx ends, and returns when it has stopped.
func (r *Retention) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		return r.log.Consume(ctx, jetstream.Consumer{Name: jetstream.ConsumerRetention, Workers: 1, Span: spanOf,
			Subjects: []string{events.SubjectOfKind(events.KindVersion), events.SubjectOfKind(events.KindImage)}}, r.handle)
	})
	group.Go(func() error {
		r.lookNowAndThen(ctx)
		return nil
	})
	return group.Wait()
}

// spanOf names what is worth a span in a trace.
func spanOf(e events.Event) string {
	switch e.Fact.(type) {
	case events.VersionPublished, events.ImagePolicySet:
		return "retention"
	}
	return ""
}

// handle looks at the image that has another version, or another policy.
func (r *Retention) handle(ctx context.Context, d jetstream.Delivery) error {
	switch fact := d.Fact.(type) {
	case events.VersionPublished:
		return r.Look(ctx, fact.Image, d.ID)
	case events.ImagePolicySet:
		return r.Look(ctx, fact.Name, d.ID)
	}
	return nil
}

func (r *Retention) lookNowAndThen(ctx context.Context) {
	ticker := time.NewTicker(r.every)
	defer ticker.Stop()
	for {
		if err := r.LookAtAll(ctx); err != nil && ctx.Err() == nil {
			r.logger.WarnContext(ctx, "versions that aren't kept stay for now; tried again later", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// LookAtAll withdraws what no image's policy keeps at this moment.
func (r *Retention) LookAtAll(ctx context.Context) error {
	images, err := r.log.Images(ctx)
	if err != nil {
		return err
	}
	for _, image := range images {
		if image.State.Policy == nil || image.State.Policy.Retention == (events.Retention{}) {
			continue
		}
		if err := r.Look(ctx, image.State.Name, ""); err != nil {
			return err
		}
	}
	return nil
}

// Look withdraws the versions of an image that its policy doesn't keep at this moment. because is the id of the event
// that led to it, "" for none. A second look finds nothing to do.
func (r *Retention) Look(ctx context.Context, image, because string) error {
	for {
		var withdrawn []events.Change
		_, err := r.log.Decide(ctx, jetstream.Cause{Actor: byItself, Causation: because}, func(ctx context.Context) (_ []events.Change, err error) {
			withdrawn, err = r.decide(ctx, image)
			return withdrawn, err
		})
		if err != nil {
			return fmt.Errorf("withdraw what the policy of image %s doesn't keep: %w", image, err)
		}
		for _, change := range withdrawn {
			r.logger.InfoContext(ctx, "version withdrawn: the image's policy doesn't keep it", "version", change.Fact.Entity().ID)
		}
		if len(withdrawn) < atOnce {
			return nil
		}
	}
}

func (r *Retention) decide(ctx context.Context, name string) ([]events.Change, error) {
	image, err := r.log.Image(ctx, name)
	if err != nil || image.State.Policy == nil {
		return nil, err
	}
	retention := image.State.Policy.Retention
	if retention == (events.Retention{}) {
		return nil, nil
	}
	versions, err := r.log.Versions(ctx, name)
	if err != nil {
		return nil, err
	}
	// After the versions: what points an alias at one of them from now on has a fact of it too.
	aliases, err := r.log.Aliases(ctx, name)
	if err != nil {
		return nil, err
	}
	return unkept(retention, versions, aliases, r.now().UTC())
}

func unkept(retention events.Retention, versions []events.Current[events.Version], aliases []events.Current[events.Alias], now time.Time) ([]events.Change, error) {
	states, current := []events.Version{}, map[string]events.Current[events.Version]{}
	for _, v := range versions {
		states = append(states, v.State)
		current[v.State.Version] = v
	}
	names := []events.Alias{}
	for _, a := range aliases {
		names = append(names, a.State)
	}
	var changes []events.Change
	for _, v := range retention.Unkept(states, names, now) {
		if len(changes) == atOnce {
			break
		}
		withdrawal, err := events.Withdraw(events.WithdrawVersion{Version: current[v.Version], Aliases: aliases,
			Withdrawal: events.Withdrawal{Reason: retention.Reason(), By: byItself, At: now}})
		if err != nil {
			return nil, err
		}
		changes = append(changes, withdrawal...)
	}
	return changes, nil
}
