package main

import (
	"context"
	"math"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// leastMemoryLimit is what the process may take before it looks harder for memory to give back, bytes.
	leastMemoryLimit = 384 << 20
	memoryInterval   = 5 * time.Second
)

// boundMemory keeps the memory near what is needed, until ctx ends. The embedded NATS server reads the log in blocks of 8 MiB, and what
// it is done with comes back only some collections later: with Go's own pace that makes gigabytes of a long log that is read once. A
// limit of one size would have large servers collect without end, so it grows with what lives. An operator's GOMEMLIMIT stays.
func boundMemory(ctx context.Context) {
	if debug.SetMemoryLimit(-1) != math.MaxInt64 {
		return
	}
	debug.SetMemoryLimit(leastMemoryLimit)
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	ticker := time.NewTicker(memoryInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			metrics.Read(live)
			debug.SetMemoryLimit(memoryLimit(live[0].Value.Uint64()))
		}
	}
}

// memoryLimit is the limit for a heap of which so many bytes live.
func memoryLimit(live uint64) int64 { return int64(max(leastMemoryLimit, live/2*3)) }
