package oidc_test

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/access/oidc"
	"github.com/imgsrv/imgsrv/internal/natstest"
)

func append1(t *testing.T, log *jetstream.Log, changes []events.Change, err error) events.Sequence {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	sequence, err := log.Append(t.Context(), jetstream.Cause{Actor: "test"}, changes...)
	if err != nil {
		t.Fatal(err)
	}
	return sequence
}

func names(rules []events.Trust) []string {
	var out []string
	for _, r := range rules {
		out = append(out, r.Name)
	}
	return out
}

func TestTheRulesThatThereAreFollowTheirFacts(t *testing.T) {
	t.Parallel()
	log, nc := natstest.LogAndConn(t)
	trust := func(id, name string) events.Trust {
		return events.Trust{ID: id, Name: name, Issuer: "https://issuer.example.org", Audience: "a", Claims: map[string]string{"sub": "x"},
			Grants: []events.Grant{{Role: events.RoleReader}}, Lifetime: events.Lifetime{AddedAt: time.Now().UTC()}}
	}
	add := func(id, name string) events.Sequence {
		t.Helper()
		changes, err := events.AddTrust(trust(id, name), nil, events.Current[events.Trust]{})
		return append1(t, log, changes, err)
	}
	remove := func(id string) events.Sequence {
		t.Helper()
		current, err := log.Trust(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		changes, err := events.RemoveTrust(current, id, "test", time.Now().UTC())
		return append1(t, log, changes, err)
	}
	add("1", "first")
	add("2", "second")
	remove("1")
	add("3", "third")

	rules := oidc.NewRules(log, slog.New(slog.DiscardHandler))
	if err := rules.CatchUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := func(names_ ...string) {
		t.Helper()
		if got := names(rules.Living()); len(got) != len(names_) || len(got) > 0 && (got[0] != names_[0] || got[len(got)-1] != names_[len(names_)-1]) {
			t.Errorf("rules %v, want %v", got, names_)
		}
	}
	want("second", "third")

	between := add("4", "fourth") // after CatchUp, before Run
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := rules.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	defer running.Wait()
	defer cancel()
	wait := func(sequence events.Sequence) {
		t.Helper()
		limited, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := rules.Wait(limited, sequence); err != nil {
			t.Fatal(err)
		}
	}
	wait(between)
	want("second", "third", "fourth")
	wait(remove("2"))
	want("third", "fourth")

	// What a newer release has written about a rule may be its end: the rule counts no more, and the others go on.
	msg := nats.NewMsg(events.TrustEntity("3").Subject())
	for name, value := range map[string]string{"ce-specversion": "1.0", "ce-id": "x", "ce-source": "test", "ce-type": "imgsrv.trust.narrowed.v9", "ce-time": "2026-11-25T10:00:00Z", "ce-subject": "3"} {
		msg.Header.Set(name, value)
	}
	msg.Data = []byte("{}")
	if _, err := nc.RequestMsg(msg, time.Minute); err != nil {
		t.Fatal(err)
	}
	wait(add("5", "fifth"))
	want("fourth", "fifth")

	short, cancelShort := context.WithCancel(t.Context())
	cancelShort()
	if err := rules.Wait(short, 1000); err == nil {
		t.Error("a wait for what never comes ends without an error")
	}
}
