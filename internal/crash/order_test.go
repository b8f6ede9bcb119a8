package crash

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.opentelemetry.io/otel/metric/noop"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/access"
	"github.com/imgsrv/imgsrv/handlers/publication"
	"github.com/imgsrv/imgsrv/handlers/tus"
	"github.com/imgsrv/imgsrv/internal/powerlosstest"
	"github.com/imgsrv/imgsrv/store/blob"
)

// claim is what a fact says about bytes: from the moment that it is sent, they must be in the store or in its job's ingress,
// whenever the power fails.
type claim struct {
	ops    int // operations on the disk before the fact was sent
	fact   events.Type
	digest events.Digest
	job    string
	file   string // in the job's ingress
}

// ledger notes the claims of the facts as they are sent.
type ledger struct {
	rec    *powerlosstest.Recorder
	mu     sync.Mutex
	claims []claim
}

func (l *ledger) appending(changes []events.Change) {
	ops := l.rec.Ops()
	l.mu.Lock()
	defer l.mu.Unlock()
	add := func(fact events.Fact, digest events.Digest, job, file string) {
		if digest != "" {
			l.claims = append(l.claims, claim{ops, fact.Type(), digest, job, file})
		}
	}
	for _, change := range changes {
		switch fact := change.Fact.(type) {
		case events.UploadFact:
			u := fact.After()
			for _, f := range u.Files() {
				if f.State == events.FileComplete {
					add(change.Fact, f.Digest, u.JobID, f.Ingress)
				}
			}
		case events.JobFact:
			job := fact.After()
			for _, f := range job.Files {
				add(change.Fact, f.Digest, job.ID, f.Ingress)
			}
		case events.BlobPromoted:
			add(change.Fact, fact.Digest, "", "")
		case events.VersionPublished:
			for _, v := range fact.Manifest.Variants {
				for _, f := range v.Formats {
					add(change.Fact, f.Digest, "", "")
				}
			}
		}
	}
}

// holds looks for a claim's bytes below the folder of a store.
func (c claim) holds(dir string) error {
	hex := c.digest.Hex()
	for _, path := range []string{filepath.Join(dir, "cas/sha256", hex[:2], hex), filepath.Join(dir, "ingress/jobs", c.job, c.file)} {
		if data, err := os.ReadFile(path); err == nil && digestOf(data) == hex {
			return nil
		}
	}
	return fmt.Errorf("%s was sent after %d operations, and the bytes of %s are neither in the store nor in %s/%s", c.fact, c.ops, c.digest, c.job, c.file)
}

// recorded takes publications through the real intake and the real steps, on a disk that is recorded; lie is the recorder's.
func recorded(t *testing.T, lie string) *ledger {
	t.Helper()
	dir := folder(t)
	root := filepath.Join(dir, "storage")
	if err := os.Mkdir(root, 0o750); err != nil {
		t.Fatal(err)
	}
	book := &ledger{}
	store, err := blob.OpenOver(root, func(real blob.Disk) blob.Disk {
		book.rec = powerlosstest.New(root, real)
		book.rec.Lie = lie
		return book.rec
	})
	if err != nil {
		t.Fatal(err)
	}
	server, err := jetstream.StartServer(t.Context(), jetstream.ServerConfig{StoreDir: filepath.Join(dir, "nats"), Log: slog.New(slog.DiscardHandler), NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Stop)
	nc, err := server.Connect()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	log, err := jetstream.Open(t.Context(), nc, jetstream.Config{Source: "test", Log: slog.New(slog.DiscardHandler), Meter: noop.Meter{}, Appending: book.appending})
	if err != nil {
		t.Fatal(err)
	}
	const token = "imgsrv_test"
	intake, err := tus.New(tus.Config{Log: log, Store: store, Guard: access.NewGuard(token), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle(tus.BasePath, intake)
	web := httptest.NewServer(mux)
	t.Cleanup(web.Close)
	publications, err := publication.New(publication.Config{Log: log, Store: store, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- publications.Run(ctx) }()

	for i, data := range [][]byte{bytesOf("hsqs", 3000, 1), bytesOf("hsqs", 500, 2), bytesOf("hsqs", 3000, 1)} { // the last is a blob already
		publishRecorded(t, log, store, web.URL, token, strconv.Itoa(i), data)
	}
	stop()
	if err := <-done; err != nil {
		t.Fatal(err)
	}

	return book
}

// check cuts the power after each operation, and looks whether what the facts that were sent by then say about bytes is true of what
// is left. kinds counts what was looked at.
func (l *ledger) check(t *testing.T) (kinds map[events.Type]int, broken error) {
	t.Helper()
	dir := folder(t)
	random := rand.New(rand.NewPCG(1, 1))
	kinds = map[events.Type]int{}
	for n := range l.rec.Ops() + 1 {
		for way, choose := range []powerlosstest.Choice{powerlosstest.Worst, random.IntN} {
			left := filepath.Join(dir, fmt.Sprint("left", n, "-", way))
			if err := os.Mkdir(left, 0o750); err != nil {
				t.Fatal(err)
			}
			if err := l.rec.Crash(n, left, choose); err != nil {
				t.Fatal(err)
			}
			for _, c := range l.claims {
				if c.ops > n {
					continue
				}
				kinds[c.fact]++
				if err := c.holds(left); err != nil {
					return kinds, fmt.Errorf("after operation %d: %w", n, err)
				}
			}
			if err := os.RemoveAll(left); err != nil {
				t.Fatal(err)
			}
		}
	}
	return kinds, nil
}

func TestFactsAreSentAfterTheirBytesAreSafe(t *testing.T) {
	t.Parallel()
	book := recorded(t, "")
	kinds, err := book.check(t)
	if err != nil {
		t.Error(err)
	}
	for _, want := range []events.Type{events.UploadFileCompleted{}.Type(), events.JobStepCompleted{}.Type(), events.BlobPromoted{}.Type(), events.VersionPublished{}.Type()} {
		if kinds[want] == 0 {
			t.Errorf("no %s was looked at", want)
		}
	}
	t.Logf("%d operations, %d claims of facts", book.rec.Ops(), len(book.claims))
}

// As above, a test that couldn't fail would say nothing.
func TestFactsThatAreSentTooEarlyAreNoticed(t *testing.T) {
	t.Parallel()
	for _, lie := range []string{"SyncData", "SyncFolder"} {
		if _, err := recorded(t, lie).check(t); err == nil {
			t.Errorf("without %s nothing is lost", lie)
		}
	}
}

// publishRecorded publishes a container with metadata that imgsrv makes, and waits for its job's last fact.
func publishRecorded(t *testing.T, log *jetstream.Log, store *blob.Store, base, token, name string, data []byte) {
	t.Helper()
	id := uuid.Must(uuid.NewV7()).String()
	made := []byte("metadata of " + name)
	variant := events.UploadVariant{Variant: events.Variant{Architecture: "amd64", Type: events.Container, Flavour: "default"},
		Files:    []events.UploadFile{{Format: "rootfs.squashfs", Size: int64(len(data)), State: events.FilePending}},
		Metadata: &events.MadeFile{Format: events.FormatMetadata, Digest: events.Digest("sha256:" + digestOf(made)), Data: made}}
	changes, err := events.Initiate(events.InitiateUpload{IsArchitecture: func(string) bool { return false }, Session: events.Upload{
		ID: id, Image: "image", Version: name, Visibility: events.Public, Variants: []events.UploadVariant{variant}, InitiatedAt: time.Now().UTC(), InitiatedBy: "admin"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := store.CreateSession(id); err != nil {
		t.Fatal(err)
	}
	if _, err := log.Append(t.Context(), jetstream.Cause{Correlation: id}, changes...); err != nil {
		t.Fatal(err)
	}
	send := func(method, url string, body []byte, want int, header ...string) *http.Response {
		request, err := http.NewRequestWithContext(t.Context(), method, url, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Authorization", "Bearer "+token)
		header = append(header, "Tus-Resumable", "1.0.0")
		for i := 0; i < len(header); i += 2 {
			request.Header.Set(header[i], header[i+1])
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		_ = response.Body.Close()
		if response.StatusCode != want {
			t.Fatalf("%s %s: %d, want %d", method, url, response.StatusCode, want)
		}
		return response
	}
	at := send("POST", base+tus.BasePath, nil, http.StatusCreated, "Upload-Length", strconv.Itoa(len(data)), "Upload-Metadata", tus.UploadMetadata(id, variant.Name(), "rootfs.squashfs")).Header.Get("Location")
	half := len(data) / 2
	for _, part := range [][2]int{{0, half}, {half, len(data)}} {
		send("PATCH", at, data[part[0]:part[1]], http.StatusNoContent, "Content-Type", "application/offset+octet-stream", "Upload-Offset", strconv.Itoa(part[0]))
	}
	tail, err := log.Tail(t.Context(), 0, events.JobEntity(events.JobIDFor(id)).Subject())
	if err != nil {
		t.Fatal(err)
	}
	defer tail.Close()
	waiting, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		batch, err := tail.Next(waiting, 1)
		if err != nil {
			t.Fatalf("job of %s: %v", name, err)
		}
		switch fact := batch[0].Fact.(type) {
		case events.JobSucceeded:
			return
		case events.JobFailed:
			t.Fatalf("job of %s failed: %+v", name, fact.Problem)
		}
	}
}
