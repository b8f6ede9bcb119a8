package client_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/tus/tusd/v2/pkg/filestore"
	"github.com/tus/tusd/v2/pkg/handler"
	"github.com/tus/tusd/v2/pkg/memorylocker"

	"github.com/imgsrv/imgsrv/internal/client"
	"github.com/imgsrv/imgsrv/internal/pipetest"
	"github.com/imgsrv/imgsrv/internal/tusname"
)

// peer is tusd with its own file store: a server that knows nothing of imgsrv.
type peer struct {
	*httptest.Server
	dir string

	mu      sync.Mutex
	offsets []int64                                       // of the PATCHes that came
	before  func(http.ResponseWriter, *http.Request) bool // true: answered
}

const tusBase = "/files/"

// patient waits for an upload's lock, and doesn't ask the request that holds it to end: tusd reads and writes that request's body
// unsynchronised then.
type patient struct{ handler.Locker }

func (p patient) NewLock(id string) (handler.Lock, error) {
	lock, err := p.Locker.NewLock(id)
	return patientLock{lock}, err
}

type patientLock struct{ held handler.Lock }

func (l patientLock) Lock(ctx context.Context, _ func()) error { return l.held.Lock(ctx, func() {}) }
func (l patientLock) Unlock() error                            { return l.held.Unlock() }

func newPeer(t *testing.T) *peer {
	t.Helper()
	p := unstartedPeer(t)
	p.Start()
	return p
}

func unstartedPeer(t *testing.T) *peer {
	t.Helper()
	p := &peer{dir: t.TempDir()}
	composer := handler.NewStoreComposer()
	filestore.New(p.dir).UseIn(composer)
	composer.UseLocker(patient{memorylocker.New()})
	tusd, err := handler.NewHandler(handler.Config{BasePath: tusBase, StoreComposer: composer, Logger: silent()})
	if err != nil {
		t.Fatal(err)
	}
	p.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		if r.Method == http.MethodPatch {
			offset, _ := strconv.ParseInt(r.Header.Get("Upload-Offset"), 10, 64)
			p.offsets = append(p.offsets, offset)
		}
		before := p.before
		p.mu.Unlock()
		if before != nil && before(w, r) {
			return
		}
		http.StripPrefix(tusBase, tusd).ServeHTTP(w, r)
	}))
	t.Cleanup(p.Close)
	return p
}

func (p *peer) target() client.TusTarget {
	return client.TusTarget{CreateURL: tusBase, Metadata: tusname.Metadata("s", "v", "f")}
}

// stored is the one file that the peer has.
func (p *peer) stored(t *testing.T) []byte {
	t.Helper()
	infos, err := filepath.Glob(filepath.Join(p.dir, "*.info"))
	if err != nil || len(infos) != 1 {
		t.Fatalf("the server has the uploads %v (%v), want one", infos, err)
	}
	data, err := os.ReadFile(strings.TrimSuffix(infos[0], ".info"))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func (p *peer) addr() string { return p.Listener.Addr().String() }

func TestUploadArrivesWholeOverBrokenConnections(t *testing.T) {
	t.Parallel()
	const size, chunk = 3<<20 + 17, 1 << 20
	want := content(size)
	p := newPeer(t)
	cut := newCutter(t, p.addr(), func(n int) budget {
		switch {
		case n == 0:
			return budget{up: 300_000, down: -1}
		case n == 1:
			return budget{up: -1, down: 40} // an answer that is lost
		case n < 6:
			return budget{up: 500_000 + int64(n)*10_001, down: -1}
		}
		return unbounded()
	})
	// Fewer failures in a row than there are cuts: what went forward in between begins the count anew.
	c := newClient(t, "http://"+cut.addr, client.Options{Retry: quick(3)})
	var last int64
	err := c.UploadFile(t.Context(), client.TusFile{Target: p.target(), Content: bytes.NewReader(want), Size: size, ChunkBytes: chunk,
		Progress: func(n int64) { last = n }})
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(p.stored(t), want) {
		t.Error("the stored bytes are not those that were sent")
	}
	if last != size {
		t.Errorf("the last progress is %d, want %d", last, size)
	}
	if cut.cuts.Load() == 0 {
		t.Error("no connection was cut: the test shows nothing")
	}
	resumed := false
	for _, offset := range p.offsets {
		resumed = resumed || offset%chunk != 0
	}
	if !resumed {
		t.Errorf("PATCHes began at %v: none goes on inside a piece that broke", p.offsets)
	}
}

func TestUploadOfAnEarlierRunGoesOnWhereItStood(t *testing.T) {
	t.Parallel()
	const size = 1 << 20
	want := content(size)
	p := newPeer(t)
	// The earlier run ended in its second PATCH.
	ctx, kill := context.WithCancel(t.Context())
	var url string
	first := newClient(t, p.URL, client.Options{})
	p.before = func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPatch {
			url = r.URL.Path
			if r.Header.Get("Upload-Offset") != "0" {
				kill()
				panic(http.ErrAbortHandler)
			}
		}
		return false
	}
	file := client.TusFile{Target: p.target(), Content: bytes.NewReader(want), Size: size, ChunkBytes: 300_000}
	if err := first.UploadFile(ctx, file); !errors.Is(err, context.Canceled) {
		t.Fatalf("the first run ended with %v, want context.Canceled", err)
	}
	p.mu.Lock()
	p.before, p.offsets = nil, nil
	p.mu.Unlock()

	file.Target, file.URL = client.TusTarget{}, url
	if err := newClient(t, p.URL, client.Options{}).UploadFile(t.Context(), file); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(p.stored(t), want) {
		t.Error("the stored bytes are not those that were sent")
	}
	if diff := cmp.Diff([]int64{300_000, 600_000, 900_000}, p.offsets); diff != "" {
		t.Errorf("PATCHes of the second run (-want +got):\n%s", diff)
	}
}

func TestUploadSurvivesPassingRefusals(t *testing.T) {
	t.Parallel()
	for _, status := range []int{http.StatusConflict, http.StatusLocked, http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusTooManyRequests} {
		for _, method := range []string{http.MethodPatch, http.MethodHead, http.MethodPost} {
			if status == http.StatusConflict && method != http.MethodPatch {
				continue // 409 is about offsets, which only PATCH states
			}
			t.Run(strconv.Itoa(status)+" to "+method, func(t *testing.T) {
				t.Parallel()
				want := content(10_000)
				p := newPeer(t)
				refused := 0
				p.before = func(w http.ResponseWriter, r *http.Request) bool {
					if r.Method == method && refused < 2 {
						refused++
						http.Error(w, "not now", status)
						return true
					}
					return false
				}
				err := newClient(t, p.URL, client.Options{}).UploadFile(t.Context(), client.TusFile{Target: p.target(), Content: bytes.NewReader(want), Size: int64(len(want))})
				if err != nil {
					t.Fatal(err)
				}
				if refused != 2 || !bytes.Equal(p.stored(t), want) {
					t.Errorf("after %d refusals the stored bytes differ", refused)
				}
			})
		}
	}
}

func TestUploadEndsAtAFinalRefusal(t *testing.T) {
	t.Parallel()
	for _, status := range []int{http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity, http.StatusInsufficientStorage} {
		t.Run(strconv.Itoa(status), func(t *testing.T) {
			t.Parallel()
			p := newPeer(t)
			requests := 0
			p.before = func(w http.ResponseWriter, _ *http.Request) bool {
				requests++
				w.Header().Set("Content-Type", "application/problem+json")
				w.WriteHeader(status)
				_, _ = io.WriteString(w, `{"title":"No","code":"no","detail":"because"}`)
				return true
			}
			err := newClient(t, p.URL, client.Options{}).UploadFile(t.Context(), client.TusFile{Target: p.target(), Content: strings.NewReader("x"), Size: 1})
			var got *client.Problem
			if !errors.As(err, &got) || got.Status != status || got.Code != "no" {
				t.Errorf("error %v, want the server's problem", err)
			}
			if requests != 1 {
				t.Errorf("%d requests, want one", requests)
			}
		})
	}
}

func TestUploadGivesUpWithoutProgress(t *testing.T) {
	t.Parallel()
	p := newPeer(t)
	requests := 0
	p.before = func(w http.ResponseWriter, _ *http.Request) bool {
		requests++
		http.Error(w, "never", http.StatusServiceUnavailable)
		return true
	}
	c := newClient(t, p.URL, client.Options{Retry: quick(4)})
	err := c.UploadFile(t.Context(), client.TusFile{Target: p.target(), Content: strings.NewReader("x"), Size: 1})
	var got *client.Problem
	if !errors.As(err, &got) || got.Status != http.StatusServiceUnavailable || requests != 4 {
		t.Errorf("after %d requests: %v; want the last refusal after 4", requests, err)
	}
}

func TestUploadWhoseLastAnswerWasLostIsDone(t *testing.T) {
	t.Parallel()
	want := content(5_000)
	p := newPeer(t)
	arrived := false
	p.before = func(w http.ResponseWriter, r *http.Request) bool {
		switch {
		case r.Method == http.MethodPatch:
			// The server keeps the whole file and forgets its URL; the answer doesn't arrive.
			got, err := io.ReadAll(r.Body)
			arrived = err == nil && bytes.Equal(got, want)
			panic(http.ErrAbortHandler)
		case arrived:
			http.Error(w, "no such upload", http.StatusNotFound)
			return true
		}
		return false
	}
	file := client.TusFile{Target: p.target(), Content: bytes.NewReader(want), Size: int64(len(want)), Status: func(context.Context) (client.UploadFile, error) {
		if !arrived {
			return client.UploadFile{State: client.FilePending}, nil
		}
		return client.UploadFile{State: client.FileComplete}, nil
	}}
	if err := newClient(t, p.URL, client.Options{}).UploadFile(t.Context(), file); err != nil || !arrived {
		t.Errorf("upload: %v, arrived: %v", err, arrived)
	}
}

func TestUploadOfAFileThatIsTooShortSaysSo(t *testing.T) {
	t.Parallel()
	p := newPeer(t)
	err := newClient(t, p.URL, client.Options{}).UploadFile(t.Context(), client.TusFile{Target: p.target(), Content: strings.NewReader("short"), Size: 100})
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("error %v, want io.ErrUnexpectedEOF", err)
	}
}

func TestUploadOfAnotherFileIsNotContinued(t *testing.T) {
	t.Parallel()
	p := newPeer(t)
	c := newClient(t, p.URL, client.Options{})
	if err := c.UploadFile(t.Context(), client.TusFile{Target: p.target(), Content: strings.NewReader("one"), Size: 3}); err != nil {
		t.Fatal(err)
	}
	infos, _ := filepath.Glob(filepath.Join(p.dir, "*.info"))
	url := tusBase + strings.TrimSuffix(path.Base(infos[0]), ".info")
	if err := c.UploadFile(t.Context(), client.TusFile{URL: url, Content: strings.NewReader("other"), Size: 5}); err == nil {
		t.Error("an upload of 3 bytes was continued with a file of 5")
	}
}

func TestStalledUploadIsResumed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, stalledUploadIsResumed)
}

func stalledUploadIsResumed(t *testing.T) {
	want := content(1 << 20) // more than the client's buffers take
	p := unstartedPeer(t)
	release := make(chan struct{})
	var stalled atomic.Bool
	p.before = func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPatch && stalled.CompareAndSwap(false, true) {
			<-release // nobody reads the body
			panic(http.ErrAbortHandler)
		}
		return false
	}
	t.Cleanup(func() { time.Sleep(time.Minute) }) // last: tusd's contexts end some seconds after their requests
	c := newClient(t, "http://peer.test", client.Options{Transport: pipetest.Serve(t, p.Config.Handler)})
	t.Cleanup(func() { close(release) }) // before the server ends
	if err := c.UploadFile(t.Context(), client.TusFile{Target: p.target(), Content: bytes.NewReader(want), Size: int64(len(want))}); err != nil {
		t.Fatal(err)
	}
	if !stalled.Load() || !bytes.Equal(p.stored(t), want) {
		t.Error("the stored bytes are not those that were sent")
	}
}
