package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/internal/pause"
)

// received collects versions in the order in which a subscriber got them, each once.
type received struct {
	mu       sync.Mutex
	versions []string
	last     events.Sequence
	changed  chan struct{}
}

func newReceived() *received { return &received{changed: make(chan struct{}, 1)} }

func (r *received) add(sequence events.Sequence, version string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if sequence <= r.last {
		return // at least once means that some come twice
	}
	r.last = sequence
	r.versions = append(r.versions, version)
	select {
	case r.changed <- struct{}{}:
	default:
	}
}

func (r *received) await(t *testing.T, who string, want []string) {
	t.Helper()
	deadline := time.After(90 * time.Second)
	for {
		r.mu.Lock()
		got := append([]string(nil), r.versions...)
		r.mu.Unlock()
		if len(got) >= len(want) {
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s (-published +received):\n%s", who, diff)
			}
			return
		}
		select {
		case <-r.changed:
		case <-deadline:
			t.Errorf("%s has %d of %d publications", who, len(got), len(want))
			return
		}
	}
}

// subscriber adds one to all images, as a user would, and gives the path of its credentials.
func (p *publisher) subscriber(name string, args ...string) string {
	p.t.Helper()
	if len(args) == 0 {
		args = []string{"--all"}
	}
	path := filepath.Join(p.t.TempDir(), name+".nk")
	code, out, errs := command(p.t.Context(), append([]string{"subscribers", "add", name, "--output", path, "--server", p.base, "--token", p.token}, args...)...)
	secret, err := os.ReadFile(path)
	if code != exitOK || err != nil || !strings.Contains(out, name) || strings.Contains(out+errs, strings.TrimSpace(string(secret))) {
		p.t.Fatalf("subscribers add: code %d, %v\n%s%s", code, err, out, errs)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		p.t.Errorf("credentials file: %v, %v", info, err)
	}
	return path
}

// From the command line to an event and back out.
func TestASubscriberFromTheCommandLine(t *testing.T) {
	t.Parallel()
	flags := nodeFlags(t)
	flags.TLSListen, flags.NATSListen = "", deadAddress(t)
	node := startChild(t, flags)
	p := node.publisher(t)
	at := []string{"--server", p.base, "--token", p.token}
	run := func(args ...string) (int, string, string) { return command(t.Context(), append(args, at...)...) }

	path := p.subscriber("mirror", "--image", "debian")
	for _, image := range []string{"alpine", "debian"} {
		f := file{format: "rootfs.squashfs", data: []byte("hsqs" + image)}
		p.publish(request(image, "1", "container", nil, f), f)
	}
	nc, err := jetstream.Connect("nats://"+flags.NATSListen, path)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var heard string
	if err := jetstream.Subscribe(ctx, nc, jetstream.SubscribeConfig{Durable: "mirror"}, jetstream.Handle(func(_ context.Context, _ jetstream.Delivery, v events.VersionPublished) error {
		heard += v.Image
		cancel()
		return nil
	})); err != nil || heard != "debian" {
		t.Errorf("heard %q: %v", heard, err)
	}
	if code, out, errs := run("subscribers"); code != exitOK || !strings.Contains(out, "mirror  debian") {
		t.Errorf("list: code %d\n%s%s", code, out, errs)
	}
	if code, out, errs := run("subscribers", "list", "--json"); code != exitOK || !strings.Contains(out, `"public_key": "U`) {
		t.Errorf("list --json: code %d\n%s%s", code, out, errs)
	}
	if code, _, errs := run("subscribers", "add", "mirror", "--all"); code != exitFailed || !strings.Contains(errs, "there is a subscriber mirror") {
		t.Errorf("twice: code %d, %s", code, errs)
	}
	if code, _, errs := run("subscribers", "add", "new", "--all", "--output", path); code != exitFailed || !strings.Contains(errs, "exists") {
		t.Errorf("over a file: code %d, %s", code, errs)
	}
	for _, args := range [][]string{{"subscribers", "add", "new"}, {"subscribers", "add", "new", "--all", "--image", "debian"}} {
		if code, _, errs := run(args...); code != exitUsage || !strings.Contains(errs, "--all") {
			t.Errorf("%v: code %d, %s", args, code, errs)
		}
	}
	failed := filepath.Join(t.TempDir(), "failed.nk")
	if code, _, errs := run("subscribers", "add", "intake", "--all", "--output", failed); code != exitFailed || !strings.Contains(errs, "server's own") || exists(failed) {
		t.Errorf("a name of the server's own: code %d, %s", code, errs)
	}
	code, credentials, errs := run("subscribers", "add", "other", "--all")
	if code != exitOK || !strings.HasPrefix(credentials, "SU") || strings.Count(credentials, "\n") != 1 {
		t.Errorf("to standard output: code %d, %s", code, errs)
	}
	if code, out, errs := run("subscribers", "remove", "mirror"); code != exitOK || out+errs != "" {
		t.Errorf("remove: code %d, %s%s", code, out, errs)
	}
	if _, err := jetstream.Connect("nats://"+flags.NATSListen, path); !errors.Is(err, nats.ErrAuthorization) {
		t.Errorf("connecting after the removal: %v", err)
	}
	if code, _, errs := run("subscribers", "remove", "mirror"); code != exitFailed || !strings.Contains(errs, "there is no subscriber") {
		t.Errorf("remove again: code %d, %s", code, errs)
	}
	if code, _, errs := command(t.Context(), "subscribers", "--server", p.base, "--token", "imgsrv_wrong"); code != exitFailed || !strings.Contains(errs, "token") {
		t.Errorf("with a wrong token: code %d, %s", code, errs)
	}
}

// Three kinds of subscriber through fifty publications and two kills: none misses one, and all have them in order.
func TestSubscribersMissNothingThroughKills(t *testing.T) {
	t.Parallel()
	flags := nodeFlags(t)
	flags.Listen, flags.TLSListen, flags.NATSListen = deadAddress(t), "", deadAddress(t) // the same after each start
	flags.WebhookAllow = []string{"127.0.0.1"}
	node := startChild(t, flags)
	p := node.publisher(t)
	ctx, cancel := context.WithCancel(t.Context())
	var subscribers sync.WaitGroup
	t.Cleanup(subscribers.Wait)
	t.Cleanup(cancel)

	viaGo, viaSSE, viaHook := newReceived(), newReceived(), newReceived()
	nc, err := jetstream.Connect("nats://"+flags.NATSListen, p.subscriber("test"), nats.ReconnectWait(50*time.Millisecond), nats.RetryOnFailedConnect(true))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	subscribers.Go(func() {
		for ctx.Err() == nil { // begun again under its name, as a service is by its supervisor
			_ = jetstream.Subscribe(ctx, nc, jetstream.SubscribeConfig{Durable: "test"}, jetstream.Handle(func(_ context.Context, d jetstream.Delivery, v events.VersionPublished) error {
				viaGo.add(d.Sequence, v.Version.Version)
				return nil
			}))
			_ = pause.For(ctx, 50*time.Millisecond)
		}
	})
	subscribers.Go(func() {
		last := "0"
		for ctx.Err() == nil {
			last = followSSE(ctx, p.base+"/api/events?type=imgsrv.version.published.*", last, viaSSE)
			_ = pause.For(ctx, 50*time.Millisecond)
		}
	})
	url, requests, _ := hookReceiver(t)
	var hook struct{ ID string }
	if resp := p.call("POST", "/api/webhooks", map[string]any{"url": url, "types": []string{"imgsrv.version.published.*"}}, &hook); resp.StatusCode/100 != 2 {
		t.Fatalf("webhook: %d", resp.StatusCode)
	}
	subscribers.Go(func() {
		for {
			select {
			case r := <-requests:
				var v events.Version
				if err := json.Unmarshal(r.body, &v); err != nil {
					t.Errorf("webhook got %q: %v", r.body, err)
					return
				}
				// Versions are named in the order of their publication.
				var n int
				if _, err := fmt.Sscanf(v.Version, "v%d", &n); err != nil {
					t.Error(err)
				}
				viaHook.add(events.Sequence(n+1), v.Version)
			case <-ctx.Done():
				return
			}
		}
	})

	var want []string
	for n := range 50 {
		if n == 17 || n == 34 {
			node.kill()
			node = startChild(t, flags)
		}
		version := fmt.Sprintf("v%02d", n)
		f := file{format: "rootfs.squashfs", data: []byte("hsqs" + version)}
		p.publish(request("image", version, "container", nil, f), f)
		want = append(want, version)
	}
	viaGo.await(t, "the Go subscriber", want)
	viaSSE.await(t, "the SSE client", want)
	viaHook.await(t, "the webhook", want)
}

// followSSE reads server-sent events after one until the connection ends, and gives the last id.
func followSSE(ctx context.Context, url, last string, into *received) string {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return last
	}
	r.Header.Set("Last-Event-ID", last)
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return last
	}
	defer resp.Body.Close() //nolint:errcheck // only read
	scanner := bufio.NewScanner(resp.Body)
	scanner.Buffer(nil, 4<<20)
	for scanner.Scan() {
		line := scanner.Text()
		if id, ok := strings.CutPrefix(line, "id: "); ok {
			last = id
		}
		data, ok := strings.CutPrefix(line, "data: ")
		if !ok {
			continue
		}
		var event struct {
			Sequence events.Sequence
			Data     events.Version
		}
		if err := json.Unmarshal([]byte(data), &event); err == nil {
			into.add(event.Sequence, event.Data.Version)
		}
	}
	return last
}
