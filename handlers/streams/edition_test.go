package streams_test

import (
	"io"
	"log/slog"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/imgsrv/imgsrv/handlers/streams"
)

// While the projection says that the tables are the same, PostgreSQL isn't asked; once it says otherwise, it is.
func TestDocumentsAreKeptForAnEdition(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	var edition atomic.Uint64
	edition.Store(1)
	s.Handler = streams.New(streams.Config{Pool: s.pool, Log: slog.New(slog.DiscardHandler), RetryPause: time.Nanosecond,
		Edition: func() (uint64, bool) { n := edition.Load(); return n, n != 0 }})
	read := func() string {
		a := s.do(http.MethodGet, imagesURL)
		body, err := io.ReadAll(a.Body)
		if err != nil || a.StatusCode != http.StatusOK {
			t.Fatal(a.StatusCode, err)
		}
		return string(body)
	}
	s.publish(t, "debian", "1")
	first := s.want(t)[imagesURL]
	if read() != first {
		t.Fatal("the first document is wrong")
	}
	s.publish(t, "debian", "2") // the projection hasn't said so yet
	if read() != first {
		t.Error("PostgreSQL was asked though the edition is the same")
	}
	edition.Store(2)
	second := s.want(t)[imagesURL]
	if second == first || read() != second {
		t.Error("the document is an old one in a new edition")
	}
	edition.Store(0)
	s.publish(t, "debian", "3")
	if third := s.want(t)[imagesURL]; read() != third {
		t.Error("the document is an old one without an edition")
	}
}
