package main

import (
	"context"
	"fmt"

	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/api"
	"github.com/imgsrv/imgsrv/handlers/deltas"
	"github.com/imgsrv/imgsrv/internal/vcdiff"
	"github.com/imgsrv/imgsrv/store/blob"
)

// maxDeltas is how many deltas a root may get: each costs a pass over two files.
const maxDeltas = 20

func checkDeltas(n int) error {
	if n < 0 || n > maxDeltas {
		return fmt.Errorf("--deltas is a number of versions from 0 to %d", maxDeltas)
	}
	return nil
}

// startDeltas makes deltas behind the publications, where that is wanted and there is the program for it. What it gives back is for
// those who ask why there are none.
func (n *Node) startDeltas(versions int, log *jetstream.Log, store *blob.Store) *api.Deltas {
	status := &api.Deltas{Versions: versions}
	tool, err := vcdiff.Find()
	if err != nil && versions == 0 { // a policy may ask for some; who has neither needn't hear of it
		return status
	}
	if err != nil {
		n.log.Warn("no deltas are made", "error", err, "remedy", "install "+vcdiff.Program+" and start again, or say --deltas 0")
		status.Error = vcdiff.Program + " isn't installed"
		return status
	}
	maker := deltas.New(deltas.Config{Log: log, Store: store, Logger: n.log, Tool: tool, VersionsOf: func(ctx context.Context, image string) (int, error) {
		current, err := log.Image(ctx, image)
		if err != nil || current.State.Policy == nil || current.State.Policy.Deltas == nil {
			return versions, err
		}
		return min(*current.State.Policy.Deltas, maxDeltas), nil
	}})
	n.background("deltas", maker.Run)
	return status
}
