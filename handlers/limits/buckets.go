package limits

import (
	"container/list"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// buckets are token buckets, one for each key. There are at most max: the one that was used least lately goes, and
// any that has been idle for so long that it is full again. So an attacker with many addresses costs bounded memory;
// it can win itself new buckets by that, but not the room of others that are kept in other buckets.
type buckets struct {
	perSecond rate.Limit
	burst     int
	max       int

	mu   sync.Mutex
	of   map[string]*list.Element
	used list.List // of *bucket, the last used in front
}

type bucket struct {
	key     string
	limiter *rate.Limiter
	used    time.Time
}

func newBuckets(perSecond float64, burst, most int) *buckets {
	return &buckets{perSecond: rate.Limit(perSecond), burst: burst, max: most, of: map[string]*list.Element{}}
}

// take takes a token of a key's bucket. An empty one gives none: wait is then when it will have one again.
func (b *buckets) take(key string, now time.Time) (wait time.Duration, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	element := b.of[key]
	if element == nil {
		element = b.used.PushFront(&bucket{key: key, limiter: rate.NewLimiter(b.perSecond, b.burst)})
		b.of[key] = element
	}
	b.used.MoveToFront(element)
	mine := element.Value.(*bucket)
	mine.used = now
	b.evict(now)
	reservation := mine.limiter.ReserveN(now, 1)
	if wait = reservation.DelayFrom(now); wait == 0 {
		return 0, true
	}
	reservation.CancelAt(now) // who is refused owes nothing
	return wait, false
}

// evict removes buckets over the maximum and those that are as good as new.
func (b *buckets) evict(now time.Time) {
	refill := time.Duration(float64(b.burst) / float64(b.perSecond) * float64(time.Second))
	for oldest := b.used.Back(); oldest != nil; oldest = b.used.Back() {
		last := oldest.Value.(*bucket)
		if len(b.of) <= b.max && now.Sub(last.used) <= refill {
			return
		}
		b.used.Remove(oldest)
		delete(b.of, last.key)
	}
}
