package main

import (
	"bytes"
	"compress/gzip"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// collector takes spans by OTLP over HTTP.
type collector struct {
	t   *testing.T
	url string

	mu    sync.Mutex
	raw   bytes.Buffer // all that came, to look for secrets in
	spans []*tracepb.Span
	of    string // the service's name
}

func newCollector(t *testing.T) *collector {
	c := &collector{t: t}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body := io.Reader(r.Body)
		if r.Header.Get("Content-Encoding") == "gzip" {
			var err error
			if body, err = gzip.NewReader(r.Body); err != nil {
				t.Error(err)
				return
			}
		}
		data, err := io.ReadAll(body)
		var request collectorpb.ExportTraceServiceRequest
		if err == nil {
			err = proto.Unmarshal(data, &request)
		}
		if err != nil || r.URL.Path != "/v1/traces" || r.Header.Get("Content-Type") != "application/x-protobuf" {
			t.Errorf("%s of %s: %v", r.URL.Path, r.Header.Get("Content-Type"), err)
			return
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.raw.Write(data)
		for _, resource := range request.ResourceSpans {
			for _, a := range resource.Resource.Attributes {
				if a.Key == "service.name" {
					c.of = a.Value.GetStringValue()
				}
			}
			for _, scope := range resource.ScopeSpans {
				c.spans = append(c.spans, scope.Spans...)
			}
		}
	}))
	t.Cleanup(server.Close)
	c.url = server.URL
	return c
}

// await waits until the spans of a trace satisfy.
func (c *collector) await(id string, complaints func([]*tracepb.Span) []string) {
	c.t.Helper()
	eventually(c.t, func() string {
		c.mu.Lock()
		var spans []*tracepb.Span
		for _, s := range c.spans {
			if hex.EncodeToString(s.TraceId) == id {
				spans = append(spans, s)
			}
		}
		c.mu.Unlock()
		if wrong := complaints(spans); len(wrong) > 0 {
			return fmt.Sprintf("of %d spans:\n%s", len(spans), strings.Join(wrong, "\n"))
		}
		return ""
	})
}

// A whole publication, from the client's own span to what receivers and queries see of it, is one trace.
func TestAPublicationIsOneTrace(t *testing.T) {
	t.Parallel()
	collected := newCollector(t)
	received := make(chan http.Header, 1)
	receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case received <- r.Header:
		default:
		}
	}))
	t.Cleanup(receiver.Close)
	flags := nodeFlags(t)
	flags.WebhookAllow = []string{"127.0.0.1"}
	node := startChild(t, flags, childSpec{Env: []string{"OTEL_EXPORTER_OTLP_ENDPOINT=" + collected.url, "OTEL_SERVICE_NAME=images", "OTEL_BSP_SCHEDULE_DELAY=20",
		"OTEL_EXPORTER_OTLP_COMPRESSION=gzip"}})
	const traceID, root = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	parent := "00-" + traceID + "-" + root + "-01"
	p := node.publisher(t)
	p.call("POST", "/api/webhooks", map[string]any{"url": receiver.URL + "/hook-secret?key=hook-secret", "types": []string{"imgsrv.version.published.*"}}, nil)
	p.call("GET", "/r/"+node.Token+"!/api/images?after=query-secret", nil, nil)

	image := qcow2Image(t, 100_000)
	var session sessionAnswer
	if resp := p.call("POST", "/api/images", vm("debian", "1", []string{"latest"}, file{format: "disk.qcow2", data: image}), &session, "traceparent", parent); resp.StatusCode != 201 {
		t.Fatalf("session: %d", resp.StatusCode)
	}
	tus := []string{"Tus-Resumable", "1.0.0", "traceparent", parent}
	resp := p.call("POST", "/api/uploads/tus/", nil, nil, append([]string{"Upload-Length", fmt.Sprint(len(image)), "Upload-Metadata", session.Files[0].Tus.Metadata}, tus...)...)
	resp = p.call("PATCH", resp.Header.Get("Location"), image, nil, append([]string{"Content-Type", "application/offset+octet-stream", "Upload-Offset", "0"}, tus...)...)
	if resp.StatusCode != 204 {
		t.Fatalf("PATCH: %d", resp.StatusCode)
	}
	if job := p.await(session); job.State != "succeeded" {
		t.Fatalf("job %+v", job)
	}

	// Who is whose child, where that is certain; "" is the client's span.
	parents := map[string]string{
		"POST /api/images":                       "",
		"PATCH /api/uploads/tus/*":               "",
		"append imgsrv.upload.initiated.v1":      "POST /api/images",
		"append imgsrv.upload.file_completed.v1": "PATCH /api/uploads/tus/*",
		"hand over":                              "append imgsrv.upload.file_completed.v1",
		"step verify":                            "append imgsrv.job.step_started.v1",
		"step inspect":                           "append imgsrv.job.step_started.v1",
		"step materialize":                       "append imgsrv.job.step_started.v1",
		"step promote":                           "append imgsrv.job.step_started.v1",
		"step publish":                           "append imgsrv.job.step_started.v1",
		"append imgsrv.version.published.v1":     "step publish",
		"deliver webhook":                        "append imgsrv.version.published.v1",
		"make deltas":                            "append imgsrv.version.published.v1",
		"retention":                              "append imgsrv.version.published.v1",
		"clean up":                               "append imgsrv.version.published.v1",
	}
	collected.await(traceID, func(spans []*tracepb.Span) (wrong []string) {
		byID, seen := map[string]*tracepb.Span{root: {}}, map[string]bool{}
		for _, s := range spans {
			byID[hex.EncodeToString(s.SpanId)] = s
		}
		for _, s := range spans {
			over := byID[hex.EncodeToString(s.ParentSpanId)]
			if over == nil {
				wrong = append(wrong, fmt.Sprintf("%s has a parent that isn't there", s.Name))
				continue
			}
			seen[s.Name+" below "+over.Name] = true
			if want, known := parents[s.Name]; known && over.Name != want {
				wrong = append(wrong, fmt.Sprintf("%s is below %q, want %q", s.Name, over.Name, want))
			}
			if s.StartTimeUnixNano < over.StartTimeUnixNano {
				wrong = append(wrong, fmt.Sprintf("%s begins before %s, which led to it", s.Name, over.Name))
			}
		}
		for name, over := range parents {
			if !seen[name+" below "+over] {
				wrong = append(wrong, "missing: "+name)
			}
		}
		for _, projection := range []string{"catalog", "streams", "jobs"} { // which applied other events of the trace before
			if !seen["apply "+projection+" below append imgsrv.version.published.v1"] {
				wrong = append(wrong, "missing: apply "+projection)
			}
		}
		return wrong
	})
	select {
	case h := <-received:
		if !strings.Contains(h.Get("traceparent"), traceID) || !strings.Contains(h.Get("ce-traceparent"), traceID) || h.Get("traceparent") == h.Get("ce-traceparent") {
			t.Errorf("the receiver is told of the traces %q and %q", h.Get("traceparent"), h.Get("ce-traceparent"))
		}
	default:
		t.Error("the webhook was not delivered")
	}
	node.stop(t)
	collected.mu.Lock()
	defer collected.mu.Unlock()
	for _, secret := range []string{node.Token, "hook-secret", "query-secret"} {
		if bytes.Contains(collected.raw.Bytes(), []byte(secret)) {
			t.Errorf("%q is in the traces", secret)
		}
	}
	if collected.of != "images" {
		t.Errorf("the spans are of the service %q", collected.of)
	}
}
