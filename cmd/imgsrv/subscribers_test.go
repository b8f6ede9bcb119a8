package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
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

// Three kinds of subscriber through fifty publications and two kills: none misses one, and all have them in order.
func TestSubscribersMissNothingThroughKills(t *testing.T) {
	t.Parallel()
	flags := nodeFlags(t)
	flags.Listen, flags.TLSListen, flags.NATSListen = deadAddress(t), "", deadAddress(t) // the same after each start
	flags.WebhookAllow = []string{"127.0.0.1"}
	node := startChild(t, childSpec{Flags: flags})
	p := &publisher{t: t, base: node.HTTPURL, token: node.Token}
	ctx, cancel := context.WithCancel(t.Context())
	var subscribers sync.WaitGroup
	t.Cleanup(subscribers.Wait)
	t.Cleanup(cancel)

	viaGo, viaSSE, viaHook := newReceived(), newReceived(), newReceived()
	nc, err := nats.Connect("nats://"+flags.NATSListen, nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond), nats.RetryOnFailedConnect(true))
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
			pause(ctx)
		}
	})
	subscribers.Go(func() {
		last := "0"
		for ctx.Err() == nil {
			last = followSSE(ctx, p.base+"/api/events?type=imgsrv.version.published.*", last, viaSSE)
			pause(ctx)
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
			node = startChild(t, childSpec{Flags: flags})
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

func pause(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(50 * time.Millisecond):
	}
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
