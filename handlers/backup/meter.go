package backup

import (
	"slices"
	"strings"
	"sync"
	"time"
)

const reportEvery = 200 * time.Millisecond

// meter tells now and then how many bytes went by.
type meter struct {
	stage  string
	total  int64
	report func(Progress)

	mu   sync.Mutex
	done int64
	told time.Time
}

func newMeter(stage string, total int64, report func(Progress)) *meter {
	return &meter{stage: stage, total: total, report: report}
}

func (m *meter) add(n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.done += n
	if now := time.Now(); now.Sub(m.told) >= reportEvery {
		m.told = now
		m.report(Progress{Stage: m.stage, Done: m.done, Total: m.total, Unit: "bytes"})
	}
}

func (m *meter) end() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.report(Progress{Stage: m.stage, Done: m.done, Total: m.total, Unit: "bytes"})
}

func amountOf(blobs []reference) Amount {
	a := Amount{Count: len(blobs)}
	for _, r := range blobs {
		a.Bytes += r.size
	}
	return a
}

func sortMissing(list []Missing) {
	slices.SortFunc(list, func(a, b Missing) int { return strings.Compare(string(a.Digest), string(b.Digest)) })
}

func sortSecrets(list []secretEntry) {
	slices.SortFunc(list, func(a, b secretEntry) int { return strings.Compare(a.Name, b.Name) })
}
