package jetstream_test

import (
	"testing"
	"time"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
)

// Whoever waits for a time that an event gave waits it out, and after a step back of the clock no longer than was meant.
func TestNobodyWaitsForAClockThatWasSetBack(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for name, test := range map[string]struct {
		attempt   int
		now, want time.Duration // from the event on
	}{
		"at once":                            {1, 0, 10 * time.Second},
		"in between":                         {2, 4 * time.Second, 6 * time.Second},
		"at the time":                        {2, 10 * time.Second, 0},
		"late":                               {1, time.Hour, 10*time.Second - time.Hour},
		"the clock went back an hour":        {1, -time.Hour, 10 * time.Second},
		"back an hour, and it waited by now": {2, -time.Hour + 10*time.Second, 0},
	} {
		d := jetstream.Delivery{Attempt: test.attempt, Event: events.Event{Meta: events.Meta{Time: at}}}
		if got := d.Until(at.Add(10*time.Second), at.Add(test.now)); got != test.want {
			t.Errorf("%s: %s, want %s", name, got, test.want)
		}
	}
}
