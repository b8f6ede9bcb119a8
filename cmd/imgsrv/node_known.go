package main

import (
	"context"
	"time"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/store/known"
)

// knownPause is the time between attempts to read what has happened, while the log is away.
const knownPause = time.Second

// startKnown follows which files there are, for downloads while PostgreSQL is away. It reads what has happened behind the
// node's back: nobody waits for it, and until it is through it says nothing.
func (n *Node) startKnown(log *jetstream.Log) *known.Files {
	files := known.New()
	follower := log.Follow(func(event events.Event) {
		if files.Blind() != "" {
			return
		}
		if files.Apply(event); files.Blind() != "" {
			n.log.Warn("downloads need PostgreSQL on this node", "reason", files.Blind(), "sequence", event.Sequence)
		}
	}, known.Subjects()...)
	n.background("files known in memory", func(ctx context.Context) error {
		for err := follower.CatchUp(ctx); err != nil; err = follower.CatchUp(ctx) {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			n.log.WarnContext(ctx, "which files there are can't be read: downloads need PostgreSQL on this node until then; trying again", "error", err)
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(knownPause):
			}
		}
		files.Whole()
		return follower.Run(ctx)
	})
	return files
}
