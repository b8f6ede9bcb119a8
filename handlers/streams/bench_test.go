package streams_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"go.opentelemetry.io/otel/metric/noop"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/streams"
	"github.com/imgsrv/imgsrv/internal/natstest"
	"github.com/imgsrv/imgsrv/internal/pgtest"
	"github.com/imgsrv/imgsrv/migrations"
	"github.com/imgsrv/imgsrv/projections"
	projection "github.com/imgsrv/imgsrv/projections/streams"
	"github.com/imgsrv/imgsrv/store/postgres"
)

// benchFact is a version with one virtual machine.
func benchFact(image string, number int) events.Change {
	version := fmt.Sprintf("%d.0", number)
	digest := func(what string) events.Digest {
		return events.Digest(fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(what+image+version))))
	}
	return events.Change{Fact: events.VersionPublished{Version: events.Version{Image: image, Version: version, State: events.StatePublished, Manifest: &events.Manifest{
		Image: image, Version: version, OS: "debian", Release: "bookworm", Visibility: events.Public, PublishedAt: published.Add(time.Duration(number) * time.Minute),
		Variants: []events.ManifestVariant{{Variant: events.Variant{Architecture: "amd64", Type: events.VirtualMachine, Flavour: "default"},
			Fingerprint: digest("image").Hex(), Root: "disk.qcow2", Formats: []events.ManifestFormat{
				{Format: events.FormatMetadata, Digest: digest("metadata"), Size: 700}, {Format: "disk.qcow2", Digest: digest("root"), Size: 196608}}}},
	}}}}
}

// timings are durations of one thing.
type timings []time.Duration

func (t timings) report(b *testing.B, what string) {
	slices.Sort(t)
	b.ReportMetric(float64(t[len(t)/2].Microseconds())/1000, what+"-p50-ms")
	b.ReportMetric(float64(t[len(t)*95/100].Microseconds())/1000, what+"-p95-ms")
	b.ReportMetric(float64(t[len(t)-1].Microseconds())/1000, what+"-max-ms")
}

// BenchmarkPublicationShows measures, through log, projection and handler of a node that is otherwise idle, how long after the
// acknowledgement of a publication's last event it is in images.json and index.json (shown). Beside it the floors: until the
// projection has applied the event (applied), and serving the two documents again, unchanged (again). Then the same for a client that takes gzip
// or zstd, from the next request on; and what a node's first request takes.
func BenchmarkPublicationShows(b *testing.B) {
	for _, n := range []int{1000, 10_000, 100_000} {
		b.Run(fmt.Sprintf("versions=%d", n), func(b *testing.B) { benchmarkShows(b, n, n/200) })
	}
	b.Run("versions=10000-of-one-image", func(b *testing.B) { benchmarkShows(b, 10_000, 1) })
}

func benchmarkShows(b *testing.B, n, images int) {
	log := natstest.Log(b)
	pool, err := postgres.Open(b.Context(), pgtest.URL(b))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(pool.Close)
	if err := migrations.Apply(b.Context(), pool, projection.Name, migrations.Streams()); err != nil {
		b.Fatal(err)
	}
	runner, err := projections.NewRunner(pool, log, projection.New(), projections.Config{Log: slog.New(slog.DiscardHandler), Meter: noop.Meter{}})
	if err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- runner.Run(ctx) }()
	b.Cleanup(func() {
		stop()
		if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
			b.Error(err)
		}
	})
	add := func(changes ...events.Change) events.Sequence {
		sequence, err := log.Append(b.Context(), jetstream.Cause{Actor: "bench"}, changes...)
		if err != nil {
			b.Fatal(err)
		}
		return sequence
	}
	var last events.Sequence
	for from := 0; from < n; from += 200 {
		var changes []events.Change
		for i := from; i < min(from+200, n); i++ {
			changes = append(changes, benchFact(fmt.Sprintf("image-%d", i%images), i))
		}
		last = add(changes...)
	}
	if err := runner.WaitFor(b.Context(), last); err != nil {
		b.Fatal(err)
	}
	if _, err := pool.Exec(b.Context(), `ANALYZE`); err != nil {
		b.Fatal(err)
	}
	newNode := func() http.Handler {
		return streams.New(streams.Config{Pool: pool, Log: slog.New(slog.DiscardHandler), QueryTimeout: time.Minute})
	}
	node := newNode()
	get := func(node http.Handler, url, coding string, into *bytes.Buffer) {
		r, w := httptest.NewRequest("GET", url, nil), httptest.NewRecorder()
		into.Reset()
		w.Body = into
		r.Header.Set("Accept-Encoding", coding)
		node.ServeHTTP(w, r)
		if w.Code != 200 || w.Header().Get("Content-Encoding") != coding {
			b.Fatalf("%s: %d as %q", url, w.Code, w.Header().Get("Content-Encoding"))
		}
	}
	var document, index, other bytes.Buffer
	once := map[string]float64{}
	for _, coding := range []string{"", "gzip", "zstd"} {
		began := time.Now()
		get(newNode(), imagesURL, coding, &document)
		once["first-"+coding+"-ms"] = float64(time.Since(began).Milliseconds())
		once["size-"+coding+"-bytes"] = float64(document.Len())
		get(node, imagesURL, coding, &other)
	}

	var applied, shown, again, gzipped, packed timings
	aliases := map[string]events.Sequence{}
	i := n
	for b.Loop() {
		i++
		image, version := fmt.Sprintf("image-%d", i%images), fmt.Sprintf("%d.0", i)
		moved := events.Change{Fact: events.AliasMoved{Alias: events.Alias{Image: image, Alias: "latest", Version: version}}, Expect: aliases[image]}
		aliases[image] = add(benchFact(image, i), moved)
		began := time.Now()
		if err := runner.WaitFor(b.Context(), aliases[image]); err != nil {
			b.Fatal(err)
		}
		applied = append(applied, time.Since(began))
		get(node, imagesURL, "", &document)
		get(node, indexURL, "", &index)
		shown = append(shown, time.Since(began))
		began = time.Now()
		get(node, imagesURL, "", &other)
		get(node, indexURL, "", &other)
		again = append(again, time.Since(began))
		began = time.Now()
		get(node, imagesURL, "gzip", &other)
		gzipped = append(gzipped, time.Since(began))
		began = time.Now()
		get(node, imagesURL, "zstd", &other)
		packed = append(packed, time.Since(began))
		key := []byte(image + ":" + version + ":")
		if !bytes.Contains(document.Bytes(), key) || !bytes.Contains(index.Bytes(), key) {
			b.Fatal("the publication doesn't show")
		}
	}
	for what, t := range map[string]timings{"applied": applied, "shown": shown, "again": again, "gzip": gzipped, "zstd": packed} {
		t.report(b, what)
	}
	for what, value := range once {
		b.ReportMetric(value, what)
	}
}
