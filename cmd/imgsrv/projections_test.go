package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/imgsrv/imgsrv/internal/client"
	"github.com/imgsrv/imgsrv/internal/pgtest"
	"github.com/imgsrv/imgsrv/store/postgres"
)

// operated is a node whose stores a test reaches, and that it can stop and start.
type operated struct {
	t     *testing.T
	flags ServerFlags
	node  *Node
}

func newOperated(t *testing.T) *operated {
	t.Helper()
	o := &operated{t: t, flags: ServerFlags{Listen: "127.0.0.1:0", NATSListen: "127.0.0.1:0", DataDir: t.TempDir(), PostgresURL: pgtest.URL(t), MetricsPath: "/metrics"}}
	o.start()
	return o
}

func (o *operated) start() {
	o.t.Helper()
	o.node = startHere(o.t, o.flags)
}

func (o *operated) stop() {
	o.t.Helper()
	o.node.end(o.t)
}

// cli runs a projections command against the server, or offline against its stores.
func (o *operated) cli(offline bool, args ...string) (code int, out, errs string) {
	o.t.Helper()
	args = append([]string{"projections"}, args...)
	args = append(args, "--data-dir", o.flags.DataDir)
	if offline {
		args = append(args, "--offline", "--postgres-url", o.flags.PostgresURL)
	} else {
		args = append(args, "--server", o.node.HTTPURL)
	}
	return command(o.t.Context(), args...)
}

func (o *operated) publish(versions ...string) {
	o.t.Helper()
	file := write(o.t, squashfs+rawDisk(1000))[0]
	for _, version := range versions {
		code, _, errs := command(o.t.Context(), "publish", file, "--image=debian", "--version="+version, "--alias=latest", "--quiet", "--server", o.node.HTTPURL, "--data-dir", o.flags.DataDir)
		if code != 0 {
			o.t.Fatalf("publish: exit code %d: %s", code, errs)
		}
	}
}

func (o *operated) sql(statement string) {
	o.t.Helper()
	pool, err := postgres.Open(o.t.Context(), o.flags.PostgresURL)
	if err != nil {
		o.t.Fatal(err)
	}
	defer pool.Close()
	if _, err := pool.Exec(o.t.Context(), statement); err != nil {
		o.t.Fatal(err)
	}
}

func (o *operated) status(offline bool) []client.Projection {
	o.t.Helper()
	code, out, errs := o.cli(offline, "status", "--json")
	if code != 0 {
		o.t.Fatalf("status: exit code %d: %s", code, errs)
	}
	return decode[[]client.Projection](o.t, out)
}

func TestOperatorsSeeRebuildAndVerifyProjections(t *testing.T) {
	t.Parallel()
	o := newOperated(t)
	o.publish("1", "2", "3")
	for _, offline := range []bool{false, true} {
		if offline {
			if code, _, errs := o.cli(true, "status"); code != 1 || !strings.Contains(errs, "in use by the imgsrv with process id") {
				t.Errorf("offline beside the server: exit code %d, %s", code, errs)
			}
			o.stop()
		}
		all := o.status(offline)
		if len(all) != 3 {
			t.Fatalf("status of %d projections", len(all))
		}
		for _, p := range all {
			if p.Position == 0 || p.Position != p.Head || p.LagEvents != 0 || p.Active == offline || (p.ActiveNode == "") != offline || len(p.Tables) == 0 || p.Trouble != "" {
				t.Errorf("offline %v: %+v", offline, p)
			}
		}
		for _, name := range []string{"catalog", "jobs", "streams"} {
			if code, out, errs := o.cli(offline, "rebuild", name); code != 0 || !strings.Contains(out, fmt.Sprintf("rebuilt up to event %d", all[0].Head)) {
				t.Errorf("offline %v: rebuild %s: exit code %d, %s%s", offline, name, code, out, errs)
			}
			if code, out, errs := o.cli(offline, "verify", name); code != 0 || !strings.Contains(out, "is what its events make of it") {
				t.Errorf("offline %v: verify %s: exit code %d, %s%s", offline, name, code, out, errs)
			}
		}
		o.sql(`UPDATE catalog.versions SET published_by = 'mallory' WHERE version = '2'`)
		if code, out, errs := o.cli(offline, "verify", "catalog"); code != 1 || !strings.Contains(out, "mallory") || !strings.Contains(errs, "1 of") {
			t.Errorf("offline %v: verify of a changed row: exit code %d, %s%s", offline, code, out, errs)
		}
		if code, out, errs := o.cli(offline, "verify", "catalog", "--json"); code != 1 || decode[client.Verification](t, out).Total != 1 {
			t.Errorf("offline %v: exit code %d, %s%s", offline, code, out, errs)
		}
		if code, out, errs := o.cli(offline, "rebuild", "catalog", "--json"); code != 0 || decode[client.Rebuild](t, out).State != client.RebuildDone {
			t.Errorf("offline %v: rebuild: exit code %d, %s%s", offline, code, out, errs)
		}
		if code, out, errs := o.cli(offline, "verify", "catalog"); code != 0 {
			t.Errorf("offline %v: verify after the rebuild: exit code %d, %s%s", offline, code, out, errs)
		}
		if code, _, errs := o.cli(offline, "rebuild", "nothing"); code != 1 || !strings.Contains(errs, `no projection "nothing"`) {
			t.Errorf("offline %v: exit code %d, %s", offline, code, errs)
		}

		if code, _, errs := o.cli(offline, "replay", "catalog", "--from=1", "--to=5"); code != 2 || !strings.Contains(errs, "--dry-run") {
			t.Errorf("offline %v: replay without --dry-run: exit code %d, %s", offline, code, errs)
		}
		head := fmt.Sprint(all[0].Head)
		code, out, errs := o.cli(offline, "replay", "catalog", "--from=1", "--to", head, "--dry-run", "--json")
		lines := strings.Split(strings.TrimSpace(out), "\n")
		if code != 0 || len(lines) != int(all[0].Head) {
			t.Fatalf("offline %v: replay: exit code %d, %d lines of %s events: %s", offline, code, len(lines), head, errs)
		}
		inserted := 0
		for i, line := range lines {
			var e client.Replayed
			if err := json.Unmarshal([]byte(line), &e); err != nil || e.Sequence != uint64(i+1) {
				t.Fatalf("line %d: %s (%v)", i+1, line, err)
			}
			for _, c := range e.Changes {
				if c.Op == "insert" && c.Table == "versions" {
					inserted++
				}
			}
		}
		if inserted != 3 {
			t.Errorf("offline %v: replay inserts %d versions, want 3", offline, inserted)
		}
		if code, out, errs := o.cli(offline, "replay", "catalog", "--from", head, "--to", head, "--dry-run"); code != 0 || !strings.Contains(out, "update aliases") {
			t.Errorf("offline %v: replay for people: exit code %d, %s%s", offline, code, out, errs)
		}
		if code, _, errs := o.cli(offline, "replay", "catalog", "--from", "99999", "--to", "99999", "--dry-run"); code != 1 || !strings.Contains(errs, "no part of the log") {
			t.Errorf("offline %v: replay beyond the head: exit code %d, %s", offline, code, errs)
		}
	}
	o.start() // and it goes on
	o.publish("4")
	if code, out, errs := o.cli(false, "verify", "catalog"); code != 0 {
		t.Errorf("verify after the restart: exit code %d, %s%s", code, out, errs)
	}
}

func TestAnEventThatCantBeAppliedStopsAProjectionUntilItIsSkipped(t *testing.T) {
	t.Parallel()
	o := newOperated(t)
	o.publish("1")
	before := o.status(false)[0].Head
	// What a newer release, or a broken one, may have written.
	poison := before + 1
	o.append("imgsrv.events.job.poison", "imgsrv.job.queued.v1", "{")
	stuck := o.eventually("jobs, and only that, stands at the event", func(all []client.Projection) bool {
		return all[1].ErrorSequence == poison && all[0].LagEvents+all[2].LagEvents == 0
	})
	p := stuck[1]
	if p.Name != "jobs" || p.Position != before || p.ErrorType != "imgsrv.job.queued.v1" || !strings.Contains(p.Remedy, fmt.Sprintf("projections skip jobs %d", poison)) {
		t.Errorf("stuck: %+v", p)
	}
	if code, out, _ := o.cli(false, "status"); code != 0 || !strings.Contains(out, "jobs can't go on") || !strings.Contains(out, "remedy") {
		t.Errorf("status for people: exit code %d, %s", code, out)
	}
	var ready struct {
		Projections []struct {
			Name, Remedy  string
			Error         string
			ErrorSequence uint64 `json:"error_sequence"`
		}
	}
	pub := o.node.publisher(t)
	if resp := pub.call(http.MethodGet, "/readyz", nil, &ready); resp.StatusCode != http.StatusOK || ready.Projections[1].ErrorSequence != poison || ready.Projections[1].Remedy == "" || ready.Projections[1].Error == "" {
		t.Errorf("/readyz: %d %+v", resp.StatusCode, ready)
	}
	// A rebuild stops there too, and says so.
	if code, _, errs := o.cli(false, "rebuild", "jobs"); code != 1 || !strings.Contains(errs, fmt.Sprintf("event %d", poison)) {
		t.Errorf("rebuild: exit code %d, %s", code, errs)
	}
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"skip", "jobs", fmt.Sprint(before), "--reason=x"}, 1, fmt.Sprintf("stands at event %d", poison)},
		{[]string{"skip", "jobs", fmt.Sprint(poison)}, 2, "--reason"},
		{[]string{"skip", "jobs", fmt.Sprint(poison), "--reason= "}, 1, "say why"},
	} {
		if code, _, errs := o.cli(false, c.args...); code != c.code || !strings.Contains(errs, c.says) {
			t.Errorf("%v: exit code %d, %s", c.args, code, errs)
		}
	}
	for _, i := range []int{0, 2} {
		if p := stuck[i]; p.Error != "" || p.Position < poison {
			t.Errorf("%s has nothing to do with that event, and is %+v", p.Name, p)
		}
	}
	if code, out, errs := o.cli(false, "skip", "jobs", fmt.Sprint(poison), "--reason=half a fact"); code != 0 {
		t.Fatalf("skip: exit code %d, %s%s", code, out, errs)
	}
	all := o.eventually("all go on", func(all []client.Projection) bool {
		return all[0].LagEvents+all[1].LagEvents+all[2].LagEvents == 0 && all[1].Error == ""
	})
	if got := all[1].Skipped; len(got) != 1 || got[0].Sequence != poison || got[0].Reason != "half a fact" || got[0].By != "admin" || got[0].Type != "imgsrv.job.queued.v1" {
		t.Errorf("skipped: %+v", got)
	}
	if code, _, errs := o.cli(false, "skip", "jobs", fmt.Sprint(poison), "--reason=again"); code != 1 {
		t.Errorf("skip again: exit code %d, %s", code, errs)
	}
	for _, name := range []string{"jobs", "catalog"} {
		if code, out, errs := o.cli(false, "rebuild", name); code != 0 {
			t.Errorf("rebuild %s: exit code %d, %s%s", name, code, out, errs)
		}
		if code, out, errs := o.cli(false, "verify", name); code != 0 {
			t.Errorf("verify %s: exit code %d, %s%s", name, code, out, errs)
		}
	}
	o.publish("2")
}

func (o *operated) eventually(what string, ok func([]client.Projection) bool) []client.Projection {
	o.t.Helper()
	var all []client.Projection
	eventually(o.t, func() string {
		if all = o.status(false); ok(all) {
			return ""
		}
		return fmt.Sprintf("waiting until %s: %+v", what, all)
	})
	return all
}

// append puts a message into the stream that no rule would.
func (o *operated) append(subject, eventType, data string) {
	o.t.Helper()
	o.stop()
	defer o.start()
	stop := o.rawNATS(func(nc *nats.Conn) error {
		msg := nats.NewMsg(subject)
		msg.Data = []byte(data)
		msg.Header["ce-type"] = []string{eventType}
		msg.Header["ce-id"] = []string{"poison"}
		msg.Header["ce-time"] = []string{"2026-01-01T00:00:00Z"}
		_, err := nc.RequestMsgWithContext(o.t.Context(), msg)
		return err
	})
	if stop != nil {
		o.t.Fatal(stop)
	}
}

// rawNATS works on the stopped node's own event store.
func (o *operated) rawNATS(work func(*nats.Conn) error) error {
	n := &Node{log: slog.New(slog.DiscardHandler)}
	nc, _, err := n.connectNATS(o.t.Context(), ServerFlags{}, o.flags.DataDir)
	if err == nil {
		err = work(nc)
	}
	if stopErr := n.Stop(); err == nil {
		err = stopErr
	}
	return err
}

// Ctrl-C, as a context sees it, stops the rebuild on the server; the next one goes on.
func TestAnInterruptedRebuildSaysHowToGoOn(t *testing.T) {
	t.Parallel()
	o := newOperated(t)
	o.publish("1")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	code, _, errs := command(ctx, "projections", "rebuild", "catalog", "--offline", "--data-dir", o.flags.DataDir, "--postgres-url", o.flags.PostgresURL, "--nats-url", natsURLOf(o.node))
	if code == 0 || errs == "" {
		t.Errorf("exit code %d, %s", code, errs)
	}
	if code, out, errs := o.cli(false, "verify", "catalog"); code != 0 {
		t.Errorf("verify: exit code %d, %s%s", code, out, errs)
	}
}

func natsURLOf(n *Node) string {
	url, _, _ := strings.Cut(n.EventsAt, "  ")
	return url
}
