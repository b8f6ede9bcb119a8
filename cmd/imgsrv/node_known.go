package main

import (
	"context"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/store/known"
)

// startKnown follows which files there are, for downloads while PostgreSQL is away. It reads what has happened behind the
// node's back: nobody waits for it, and until it is through it says nothing.
func (n *Node) startKnown(files *known.Files, log *jetstream.Log) {
	follower := log.Follow(func(_ context.Context, event events.Event) {
		if files.Blind() != "" {
			return
		}
		if files.Apply(event); files.Blind() != "" {
			n.log.Warn("downloads need PostgreSQL on this node", "reason", files.Blind(), "sequence", event.Sequence)
		}
	}, known.Subjects()...)
	follower.WhenCaughtUp(files.Whole)
	n.background("files known in memory", follower.Run)
}
