package main

import "testing"

func TestTheMemoryLimitGrowsWithWhatLives(t *testing.T) {
	t.Parallel()
	for live, want := range map[uint64]int64{0: leastMemoryLimit, 100 << 20: leastMemoryLimit, 256 << 20: leastMemoryLimit, 1 << 30: 1536 << 20} {
		if got := memoryLimit(live); got != want {
			t.Errorf("with %d bytes alive the limit is %d, want %d", live, got, want)
		}
	}
}
