package api_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/imgsrv/imgsrv/handlers/api"
	"github.com/imgsrv/imgsrv/handlers/operations"
	"github.com/imgsrv/imgsrv/internal/client"
)

// TestAnOperationIsFollowedToItsEnd: progress is told while it goes on, the end with its result; it is listed, and refused while one of
// its kind runs.
func TestAnOperationIsFollowedToItsEnd(t *testing.T) {
	t.Parallel()
	var runner *operations.Runner
	n := newNode(t, func(c *api.Config) { runner = c.Operations })
	c, err := client.New(n.url, adminToken, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	goOn := make(chan struct{})
	o, err := runner.Start("gc", "admin", map[string]bool{"dry_run": true}, func(_ context.Context, report func(operations.Progress)) (any, error) {
		report(operations.Progress{Stage: "mark", Done: 3, Total: 9, Unit: "events"})
		<-goOn
		return map[string]int{"blobs": 2}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	_, err = runner.Start("gc", "admin", nil, nil)
	if err == nil || !strings.Contains(err.Error(), "admin began one") {
		t.Errorf("a second one: %v", err)
	}
	heard := make(chan client.OperationProgress, 100)
	type ended struct {
		o   *client.Operation
		err error
	}
	end := make(chan ended, 1)
	go func() {
		o, err := c.FollowOperation(t.Context(), o.ID, func(p client.OperationProgress) { heard <- p })
		end <- ended{o, err}
	}()
	for p := range heard {
		if (p == client.OperationProgress{Stage: "mark", Done: 3, Total: 9, Unit: "events"}) {
			break
		}
	}
	close(goOn)
	got := <-end
	if got.err != nil || got.o.State != client.OperationSucceeded || string(got.o.Result) != `{"blobs":2}` || string(got.o.Input) != `{"dry_run":true}` || got.o.EndedAt.IsZero() {
		t.Errorf("ended as %+v, %v", got.o, got.err)
	}
	list, err := c.Operations(t.Context())
	if err != nil || len(list) != 1 || list[0].ID != o.ID || list[0].State != client.OperationSucceeded {
		t.Errorf("listed: %+v, %v", list, err)
	}
	n.want(n.do(http.MethodGet, operations.Path(o.ID), nil), 200)
	for _, path := range []string{"/none", "/none/events"} {
		n.problem(n.do(http.MethodGet, "/api/operations"+path, nil), 404, "not-found")
	}
	n.problem(n.do(http.MethodPost, "/api/operations/none/cancel", nil), 404, "not-found")
}

// TestOperationsEndInOtherWaysToo: by an error, a panic, a cancellation, and the server's stop.
func TestOperationsEndInOtherWaysToo(t *testing.T) {
	t.Parallel()
	var runner *operations.Runner
	n := newNode(t, func(c *api.Config) { runner = c.Operations })
	c, err := client.New(n.url, adminToken, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	start := func(kind string, work operations.Work) string {
		t.Helper()
		o, err := runner.Start(kind, "admin", nil, work)
		if err != nil {
			t.Fatal(err)
		}
		return o.ID
	}
	want := func(id, state, text string) {
		t.Helper()
		o, err := c.FollowOperation(t.Context(), id, nil)
		if err != nil || o.State != state || !strings.Contains(o.Error, text) {
			t.Errorf("ended as %+v, %v; want %s, %q", o, err, state, text)
		}
	}
	until := func(ctx context.Context, _ func(operations.Progress)) (any, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	want(start("fsck", func(context.Context, func(operations.Progress)) (any, error) { return nil, errors.New("no room") }), client.OperationFailed, "no room")
	want(start("fsck", func(context.Context, func(operations.Progress)) (any, error) { panic("a nil map") }), client.OperationFailed, "a nil map")
	id := start("fsck", until)
	if o, err := c.CancelOperation(t.Context(), id); err != nil || o.ID != id {
		t.Errorf("cancel: %+v, %v", o, err)
	}
	want(id, client.OperationCancelled, "cancelled")
	// What was done before it heard of the cancellation is done.
	started := make(chan struct{})
	id = start("fsck", func(ctx context.Context, _ func(operations.Progress)) (any, error) {
		close(started)
		<-ctx.Done()
		return "whole", nil
	})
	<-started
	if _, err := c.CancelOperation(t.Context(), id); err != nil {
		t.Error(err)
	}
	want(id, client.OperationSucceeded, "")
	id = start("backup", until)
	runner.Close()
	want(id, client.OperationCancelled, "the server stops")
	if _, err := runner.Start("backup", "admin", nil, until); err == nil {
		t.Error("begun after the end")
	}
	if _, err := c.FollowOperation(t.Context(), "0199a1b2-c3d4-7e5f-8a6b-7c8d9e0f1a2b", nil); err == nil || !strings.Contains(err.Error(), "started anew") {
		t.Errorf("one that isn't there: %v", err)
	}
}
