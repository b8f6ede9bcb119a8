package main

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/imgsrv/imgsrv/internal/client"
)

// hookRequest is what a webhook's receiver gets.
type hookRequest struct {
	header http.Header
	body   []byte
}

// hookReceiver is a webhook's receiver on loopback. Where down is set it answers 503.
func hookReceiver(t *testing.T) (url string, requests <-chan hookRequest, down *atomic.Bool) {
	t.Helper()
	got := make(chan hookRequest, 10_000)
	down = new(atomic.Bool)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		if down.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		got <- hookRequest{r.Header.Clone(), body}
	}))
	t.Cleanup(server.Close)
	return server.URL, got, down
}

func nextHook(t *testing.T, requests <-chan hookRequest) hookRequest {
	t.Helper()
	select {
	case r := <-requests:
		return r
	case <-time.After(time.Minute):
		t.Fatal("the webhook got nothing within a minute")
		panic("unreachable")
	}
}

// signed checks a request's signature as a receiver does.
func signed(secret string, r hookRequest) error {
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, "whsec_"))
	if err != nil {
		return err
	}
	mac := hmac.New(sha256.New, key)
	_, _ = fmt.Fprintf(mac, "%s.%s.%s", r.header.Get("webhook-id"), r.header.Get("webhook-timestamp"), r.body)
	if want := "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil)); r.header.Get("webhook-signature") != want {
		return fmt.Errorf("signature %q, want %q", r.header.Get("webhook-signature"), want)
	}
	return nil
}

// An operator's way with a webhook, by the command line alone.
func TestWebhookCommands(t *testing.T) {
	t.Parallel()
	serverFlags := nodeFlags(t)
	serverFlags.MetricsListen, serverFlags.WebhookAllow = "127.0.0.1:0", []string{"127.0.0.1"}
	node := startHere(t, serverFlags)
	flags := node.found(serverFlags)
	must := func(args ...string) string {
		t.Helper()
		code, out, errs := command(t.Context(), with(flags, args...)...)
		if code != 0 {
			t.Fatalf("imgsrv %v: exit code %d, %s", args, code, errs)
		}
		return out
	}
	url, requests, down := hookReceiver(t)
	disk := filepath.Join(serverFlags.DataDir, "disk.raw")
	if err := os.WriteFile(disk, []byte(rawDisk(4096)), 0o600); err != nil {
		t.Fatal(err)
	}
	hook := decode[client.Webhook](t, must("webhooks", "add", url, "--type=imgsrv.version.published.*", "--image=deb*", "--json"))
	if !strings.HasPrefix(hook.Secret, "whsec_") || hook.From == 0 {
		t.Fatalf("webhook %+v", hook)
	}
	if out := must("webhooks", "secret", hook.ID); out != hook.Secret+"\n" {
		t.Errorf("secret %q, want %q", out, hook.Secret)
	}
	if info, err := os.Stat(filepath.Join(serverFlags.DataDir, "webhook.key")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("webhook.key: %v, %v", info, err)
	}

	must("publish", disk, "--image=ubuntu", "--version=1") // filtered out
	must("publish", disk, "--image=debian", "--version=1")
	r := nextHook(t, requests)
	if err := signed(hook.Secret, r); err != nil {
		t.Error(err)
	}
	if r.header.Get("ce-subject") != "debian/1" || r.header.Get("ce-type") != "imgsrv.version.published.v1" {
		t.Errorf("headers %v", r.header)
	}

	// The receiver is down: the event waits, and comes at once when the operator says so.
	down.Store(true)
	must("publish", disk, "--image=debian", "--version=2")
	failed := nextHook(t, requests)
	var listed []client.Webhook
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if listed = decode[[]client.Webhook](t, must("webhooks", "--json")); len(listed) == 1 && listed[0].Retrying != nil {
			break
		}
	}
	if len(listed) != 1 || listed[0].Retrying == nil || listed[0].Retrying.Status != 503 || listed[0].Secret != "" {
		t.Fatalf("webhooks %+v", listed)
	}
	if out := must("webhooks", "list"); !strings.Contains(out, "503") || !strings.Contains(out, hook.ID) {
		t.Errorf("webhooks list:\n%s", out)
	}
	if out := must("webhooks", "dead-letters", hook.ID, "--json"); strings.TrimSpace(out) != "[]" {
		t.Errorf("dead letters while the event is being retried: %s", out)
	}
	down.Store(false)
	sequence := failed.header.Get("Imgsrv-Sequence")
	d := decode[client.Delivery](t, must("webhooks", "redeliver", hook.ID, sequence, "--wait", "--json"))
	again := failed
	for range d.Attempts - 1 { // on a busy machine its next attempts may have come by themselves
		again = nextHook(t, requests)
	}
	if d.State != client.DeliveryDelivered || d.Attempts < 2 || again.header.Get("webhook-id") != failed.header.Get("webhook-id") || again.header.Get("Imgsrv-Sequence") != sequence {
		t.Errorf("delivery %+v, headers %v", d, again.header)
	}

	// A redelivery out of order that fails is a dead letter.
	down.Store(true)
	first := r.header.Get("Imgsrv-Sequence")
	if code, _, errs := command(t.Context(), with(flags, "webhooks", "redeliver", hook.ID, first, "--wait")...); code != 1 || !strings.Contains(errs, "503") {
		t.Errorf("exit code %d, %s", code, errs)
	}
	if letters := decode[[]client.Delivery](t, must("webhooks", "dead-letters", hook.ID, "--json")); len(letters) != 1 || strconv.FormatUint(letters[0].Sequence, 10) != first {
		t.Errorf("dead letters %+v", letters)
	}
	if out := must("webhooks", "dead-letters", hook.ID); !strings.Contains(out, "imgsrv.version.published.v1") {
		t.Errorf("dead letters:\n%s", out)
	}
	metrics := scrape(t, node.MetricsURL)
	for _, want := range []string{`imgsrv_webhooks_deliveries_total{result="delivered"} 2`, fmt.Sprintf(`imgsrv_webhooks_deliveries_total{result="failed"} %d`, d.Attempts-1),
		`imgsrv_webhooks_deliveries_total{result="dead"} 1`, "imgsrv_webhooks_dead_letters 1", "imgsrv_webhooks_retrying 0"} {
		if !strings.Contains(metrics, want) {
			t.Errorf("metrics lack %s", want)
		}
	}
	down.Store(false)
	must("webhooks", "redeliver", hook.ID, first, "--wait")
	if out := must("webhooks", "dead-letters", hook.ID, "--json"); strings.TrimSpace(out) != "[]" {
		t.Errorf("a delivered dead letter stays: %s", out)
	}

	for name, args := range map[string][]string{
		"private target":  {"add", "https://10.0.0.1/"},
		"metadata":        {"add", "http://169.254.169.254/"},
		"no TLS":          {"add", "http://8.8.8.8/"},
		"unknown type":    {"add", url, "--type=imgsrv.version.publishd.v1"},
		"no such event":   {"redeliver", hook.ID, "999999"},
		"no such webhook": {"remove", "0199c0de-0000-7000-8000-000000000000"},
		"no webhook":      {"dead-letters", "x"},
	} {
		if code, out, errs := command(t.Context(), with(flags, append([]string{"webhooks"}, args...)...)...); code != 1 || out != "" || errs == "" {
			t.Errorf("%s: exit code %d, %s%s", name, code, out, errs)
		}
	}

	must("webhooks", "remove", hook.ID)
	if out := must("webhooks", "--json"); strings.TrimSpace(out) != "[]" {
		t.Errorf("webhooks after the removal: %s", out)
	}
	if code, _, errs := command(t.Context(), with(flags, "webhooks", "secret", hook.ID)...); code != 1 || !strings.Contains(errs, "no webhook") {
		t.Errorf("secret of a removed webhook: exit code %d, %s", code, errs)
	}
}

func scrape(t *testing.T, url string) string {
	t.Helper()
	answer, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(answer.Body)
	_ = answer.Body.Close()
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestWebhooksAreForOperators(t *testing.T) {
	t.Parallel()
	_, node := server(t)
	for _, r := range []struct{ method, path string }{{"GET", ""}, {"POST", ""}, {"GET", "/x"}, {"DELETE", "/x"}, {"GET", "/x/secret"}, {"GET", "/x/dead-letters"}, {"GET", "/x/deliveries/1"}, {"POST", "/x/redeliver"}} {
		request, err := http.NewRequestWithContext(t.Context(), r.method, node.HTTPURL+"/api/webhooks"+r.path, strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		answer, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		_ = answer.Body.Close()
		if answer.StatusCode != http.StatusUnauthorized {
			t.Errorf("%s %s without a token: %s", r.method, r.path, answer.Status)
		}
	}
}

func TestAWebhookMissesNothingWhileTheServerIsKilled(t *testing.T) {
	t.Parallel()
	flags := nodeFlags(t)
	flags.WebhookAllow = []string{"127.0.0.1"}
	node := startChild(t, flags)
	p := node.publisher(t)
	url, requests, _ := hookReceiver(t)
	var hook struct {
		ID     string `json:"id"`
		Secret string `json:"secret"`
	}
	if resp := p.call("POST", "/api/webhooks", map[string]any{"url": url, "types": []string{"imgsrv.version.published.*"}}, &hook); resp.StatusCode != 201 {
		t.Fatalf("POST /api/webhooks: %d", resp.StatusCode)
	}
	const versions = 12
	var want []string
	for i := range versions {
		if i == versions/3 || i == 2*versions/3 {
			node.kill()
			node = startChild(t, flags)
			p.base = node.HTTPURL
		}
		data := bytes.Repeat([]byte{byte(i)}, 4096)
		version := fmt.Sprint("1.", i)
		p.publish(vm("debian", version, []string{"latest"}, file{format: "disk.raw", data: data}), file{format: "disk.raw", data: data})
		want = append(want, version)
	}
	var got []string
	var last uint64
	for len(got) < versions {
		r := nextHook(t, requests)
		if err := signed(hook.Secret, r); err != nil {
			t.Error(err)
		}
		var body struct {
			Version string `json:"version"`
		}
		if err := json.Unmarshal(r.body, &body); err != nil {
			t.Fatal(err)
		}
		sequence, err := strconv.ParseUint(r.header.Get("Imgsrv-Sequence"), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		if sequence <= last { // at least once: what was acknowledged just before the kill comes again, too
			continue
		}
		last, got = sequence, append(got, body.Version)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("versions (-published +delivered):\n%s", diff)
	}
}
