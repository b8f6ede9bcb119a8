package limits

import (
	"fmt"
	"testing"
	"time"
)

func TestBucketsAreBounded(t *testing.T) {
	t.Parallel()
	b := newBuckets(1, 2, 10)
	now := time.Now()
	take := func(key string) bool { _, ok := b.take(key, now); return ok }
	take("old")
	take("old")
	if take("old") {
		t.Fatal("an empty bucket gave a token")
	}
	for i := range 9 {
		take(fmt.Sprint(i))
	}
	if take("old") {
		t.Error("a bucket was forgotten though there was room")
	}
	for i := range 1000 {
		take(fmt.Sprint("flood ", i))
	}
	if len(b.of) != 10 || b.used.Len() != 10 {
		t.Errorf("%d and %d buckets, want 10", len(b.of), b.used.Len())
	}
	// Idle ones go by themselves: they are full again.
	now = now.Add(time.Minute)
	take("new")
	if len(b.of) != 1 || b.used.Len() != 1 {
		t.Errorf("%d and %d buckets after a minute, want 1", len(b.of), b.used.Len())
	}
}
