package api_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/api"
)

// sse is one block of a stream of server-sent events.
type sse struct {
	id, event, comment string
	data               struct {
		Sequence          uint64
		ID, Type, Subject string
		Time              time.Time
		Actor             string
		Data              json.RawMessage
	}
}

// follower reads a stream as a browser would.
type follower struct {
	t      testing.TB
	resp   *http.Response
	lines  *bufio.Reader
	cancel func()
}

func (n *node) follow(query string, options ...option) *follower {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), time.Minute)
	n.t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, n.url+"/api/events"+query, nil)
	if err != nil {
		n.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+adminToken)
	for _, o := range options {
		o(req)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { cancel(); _ = resp.Body.Close() })
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "text/event-stream" {
		n.t.Fatalf("GET /api/events%s: %s, %s", query, resp.Status, resp.Header.Get("Content-Type"))
	}
	return &follower{t: n.t, resp: resp, lines: bufio.NewReader(resp.Body), cancel: cancel}
}

// block reads up to the next empty line; ok is false at the end of the stream.
func (f *follower) block() (b sse, ok bool) {
	f.t.Helper()
	for {
		line, err := f.lines.ReadString('\n')
		if err != nil {
			return b, false
		}
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
		value = strings.TrimPrefix(value, " ")
		switch {
		case line == "\n":
			return b, true
		case name == "":
			b.comment = value
		case name == "id":
			b.id = value
		case name == "event":
			b.event = value
		case name == "data":
			if err := json.Unmarshal([]byte(value), &b.data); err != nil {
				f.t.Fatalf("data is no JSON: %v: %s", err, value)
			}
		}
	}
}

// next is the next event.
func (f *follower) next() sse {
	f.t.Helper()
	for {
		b, ok := f.block()
		if !ok {
			f.t.Fatal("the stream ended")
		}
		if b.event != "" {
			if b.id != strconv.FormatUint(b.data.Sequence, 10) || b.event != b.data.Type {
				f.t.Fatalf("event %+v says two things", b)
			}
			return b
		}
	}
}

// upTo reads events until one of a sequence has come.
func (f *follower) upTo(last events.Sequence) (types []string, sequences []uint64) {
	f.t.Helper()
	for {
		e := f.next()
		types, sequences = append(types, fmt.Sprintf("%s %s", strings.TrimPrefix(e.event, "imgsrv."), e.data.Subject)), append(sequences, e.data.Sequence)
		if e.data.Sequence >= uint64(last) {
			return types, sequences
		}
	}
}

func (n *node) head() events.Sequence {
	n.t.Helper()
	head, err := n.events.Head(n.t.Context())
	if err != nil {
		n.t.Fatal(err)
	}
	return head
}

func TestEventsComeFromAnySequenceWithoutGaps(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.publish(session("debian", "1", []byte("one"), "latest"), []byte("one"))
	head := n.head()
	all := func(from uint64) (want []uint64) {
		for s := from; s <= uint64(head); s++ {
			want = append(want, s)
		}
		return want
	}
	if _, got := n.follow("", withHeader("Last-Event-ID", "0")).upTo(head); !cmp.Equal(got, all(1)) {
		t.Errorf("from the first: %v", got)
	}
	if _, got := n.follow("?after=3").upTo(head); !cmp.Equal(got, all(4)) {
		t.Errorf("after 3: %v", got)
	}
	if _, got := n.follow("?after=3", withHeader("Last-Event-ID", "5")).upTo(head); !cmp.Equal(got, all(6)) {
		t.Errorf("the header comes before the parameter: %v", got)
	}
	fresh := n.follow("")
	first, _ := fresh.block()
	if first.id != fmt.Sprint(head) || first.event != "" {
		t.Errorf("the stream begins with %+v, want the place to resume at", first)
	}
	n.want(n.do(http.MethodPut, "/api/images/debian/aliases/stable", map[string]any{"version": "1"}), http.StatusOK)
	if got := fresh.next(); got.data.Sequence != uint64(head)+1 || got.event != "imgsrv.version.named.v1" {
		t.Errorf("with a moved alias: %+v", got)
	}
	got := fresh.next()
	if got.data.Sequence != uint64(head)+2 || got.data.Actor != "admin" || got.data.Subject != "debian/stable" || got.data.ID == "" || got.data.Time.IsZero() || !bytes.Contains(got.data.Data, []byte(`"version":"1"`)) {
		t.Errorf("a new event: %+v", got)
	}
}

func TestEventsAreFilteredByImageAndType(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	for _, image := range []string{"alpine", "debian", "fedora"} {
		n.publish(session(image, "1", []byte(image), "latest"), []byte(image))
	}
	n.want(n.do(http.MethodPut, "/api/images/debian/aliases/end", map[string]any{"version": "1"}), http.StatusOK)
	head := n.head()
	for query, want := range map[string][]string{
		"type=imgsrv.version.published.v1,imgsrv.alias.*":           {"version.published.v1 alpine/1", "alias.moved.v2 alpine/latest", "version.published.v1 debian/1", "alias.moved.v2 debian/latest", "version.published.v1 fedora/1", "alias.moved.v2 fedora/latest", "alias.moved.v2 debian/end"},
		"image=debian&type=imgsrv.alias.*":                          {"alias.moved.v2 debian/latest", "alias.moved.v2 debian/end"},
		"image=debian&image=fedora&type=imgsrv.alias.*":             {"alias.moved.v2 debian/latest", "alias.moved.v2 fedora/latest", "alias.moved.v2 debian/end"},
		"image=debian,alpine&type=imgsrv.image.*,imgsrv.alias.*":    {"image.described.v1 alpine", "alias.moved.v2 alpine/latest", "image.described.v1 debian", "alias.moved.v2 debian/latest", "alias.moved.v2 debian/end"},
		"image=debian&type=imgsrv.version.*&type=imgsrv.alias.mov*": {"version.reserved.v1 debian/1", "version.published.v1 debian/1", "alias.moved.v2 debian/latest", "version.named.v1 debian/1", "alias.moved.v2 debian/end"},
	} {
		if got, _ := n.follow("?after=0&" + query).upTo(head); !cmp.Equal(got, want) {
			t.Errorf("%s (-want +got):\n%s", query, cmp.Diff(want, got))
		}
	}
	got, _ := n.follow("?after=0&image=fedora,debian").upTo(head)
	if kinds := strings.Join(got, "\n"); strings.Contains(kinds, "alpine") || !strings.Contains(kinds, "upload.initiated") || !strings.Contains(kinds, "job.succeeded") || strings.Contains(kinds, "blob.") {
		t.Errorf("events about two images:\n%s", kinds)
	}
	for _, query := range []string{"type=imgsrv.nothing.v1", "type=nothing*", "image=UPPER", "after=x", "after=99999", "after=-1"} {
		n.problem(n.do(http.MethodGet, "/api/events?"+query, nil), http.StatusBadRequest, "bad-request")
	}
}

// turn gives an image another visibility.
func (n *node) turn(image string, to events.Visibility) {
	n.t.Helper()
	sequence := n.append(func(ctx context.Context) ([]events.Change, error) {
		current, err := n.events.Image(ctx, image)
		current.State.Visibility = to
		return []events.Change{{Fact: events.ImageDescribed{Image: current.State}, Expect: current.Sequence}}, err
	})
	if err := n.catalog.WaitFor(n.t.Context(), sequence); err != nil {
		n.t.Fatal(err)
	}
}

func TestWithoutATokenOnlyWhatIsPublicShows(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	secret := session("secret", "1", []byte("s"), "latest")
	secret["visibility"] = "private"
	n.publish(secret, []byte("s"))
	n.publish(session("open", "1", []byte("o"), "latest"), []byte("o"))
	n.publish(session("turned", "1", []byte("t")), []byte("t"))
	n.turn("turned", events.Private)
	n.want(n.do(http.MethodPut, "/api/images/open/aliases/end", map[string]any{"version": "1"}), http.StatusOK)
	head := n.head()
	want := []string{"version.published.v1 open/1", "image.described.v1 open", "alias.moved.v2 open/latest", "version.named.v1 open/1", "alias.moved.v2 open/end"}
	got, sequences := n.follow("?after=0", anonymous).upTo(head)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("without a token (-want +got):\n%s", diff)
	}
	if got, _ := n.follow("?after=0&type=imgsrv.alias.*&image=secret,open", anonymous).upTo(head); !cmp.Equal(got, []string{want[2], want[4]}) {
		t.Errorf("two images without a token: %v", got)
	}
	shown := map[uint64]bool{}
	for _, s := range sequences {
		shown[s] = true
	}
	for s := uint64(1); s <= uint64(head); s++ {
		path := fmt.Sprintf("/api/events/%d", s)
		full := n.want(n.do(http.MethodGet, path, nil), http.StatusOK)
		if full["sequence"] != float64(s) || full["data"] == nil || full["nats_subject"] == nil {
			t.Fatalf("event %d: %v", s, full)
		}
		if answer := n.do(http.MethodGet, path, nil, anonymous); (answer.StatusCode == http.StatusOK) != shown[s] || !shown[s] && answer.StatusCode != http.StatusNotFound {
			t.Errorf("event %d without a token: %s, in the stream: %v", s, answer.Status, shown[s])
		}
	}
	n.problem(n.do(http.MethodGet, fmt.Sprintf("/api/events/%d", head+1), nil), http.StatusNotFound, "not-found")
	n.problem(n.do(http.MethodGet, "/api/events?type=imgsrv.upload.*", nil, anonymous), http.StatusUnauthorized, "unauthorized")
	n.problem(n.do(http.MethodGet, "/api/events", nil, withToken("wrong")), http.StatusUnauthorized, "unauthorized")

	// What becomes public while somebody listens, is heard.
	live := n.follow("?image=new,secret,turned", anonymous)
	n.want(n.do(http.MethodPut, "/api/images/turned/aliases/unheard", map[string]any{"version": "1"}), http.StatusOK)
	n.publish(session("new", "1", []byte("n")), []byte("n"))
	if e := live.next(); e.event != "imgsrv.version.published.v1" || e.data.Subject != "new/1" {
		t.Errorf("the first publication of an image: %+v", e)
	}
	n.turn("turned", events.Public)
	n.want(n.do(http.MethodPut, "/api/images/turned/aliases/heard", map[string]any{"version": "1"}), http.StatusOK)
	if got, _ := live.upTo(n.head()); !cmp.Equal(got, []string{"image.described.v1 new", "image.described.v1 turned", "version.named.v1 turned/1", "alias.moved.v2 turned/heard"}) {
		t.Errorf("once the image is public: %v", got)
	}
}

func TestAQuietStreamHasHeartbeats(t *testing.T) {
	t.Parallel()
	n := newNode(t, func(c *api.Config) { c.EventHeartbeat = 20 * time.Millisecond })
	f := n.follow("")
	if first, _ := f.block(); first.id != "0" {
		t.Fatalf("the stream begins with %+v", first)
	}
	for range 3 {
		if b, ok := f.block(); !ok || b.comment != "alive" || b.event != "" || b.id != "" {
			t.Fatalf("got %+v, want a heartbeat", b)
		}
	}
}

// consumers are those of the stream: each follower has one.
func (n *node) streamConsumers() int {
	n.t.Helper()
	names := n.stream.ListConsumers(n.t.Context())
	count := 0
	for range names.Info() {
		count++
	}
	if err := names.Err(); err != nil {
		n.t.Fatal(err)
	}
	return count
}

func TestASlowReaderIsCutAndGoesOnWhereItWas(t *testing.T) {
	t.Parallel()
	n := newNode(t, func(c *api.Config) { c.EventPatience = 100 * time.Millisecond })
	// More than the buffers of a connection hold.
	description := strings.Repeat("x", 2000)
	n.publish(session("debian", "1", []byte("d")), []byte("d"))
	for range 40 {
		var batch []events.Change
		for k := range 150 {
			name := fmt.Sprintf("bulk-%d-%d", len(description), k)
			current, err := n.events.Image(t.Context(), name)
			if err != nil {
				t.Fatal(err)
			}
			batch = append(batch, events.Change{Fact: events.ImageDescribed{Image: events.Image{Name: name, Description: description, Visibility: events.Public}}, Expect: current.Sequence})
		}
		n.append(func(context.Context) ([]events.Change, error) { return batch, nil })
	}
	head, idle := n.head(), n.streamConsumers()

	conn, err := net.Dial("tcp", strings.TrimPrefix(n.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_, _ = fmt.Fprintf(conn, "GET /api/events?after=0 HTTP/1.0\r\nAuthorization: Bearer %s\r\n\r\n", adminToken)
	reader := bufio.NewReader(conn)
	if _, err := http.ReadResponse(reader, nil); err != nil {
		t.Fatal(err)
	}
	// The server, which has made the consumer by now, gives up on a client that reads nothing more, and takes the consumer away.
	for deadline := time.Now().Add(time.Minute); n.streamConsumers() > idle; {
		if time.Now().After(deadline) {
			t.Fatal("the follower is still there")
		}
		time.Sleep(10 * time.Millisecond) // a poll
	}
	last := uint64(0)
	read := func(f *follower) {
		t.Helper()
		for last < uint64(head) {
			b, ok := f.block()
			if !ok {
				return
			}
			if b.event != "" {
				if b.data.Sequence != last+1 {
					t.Fatalf("event %d after %d", b.data.Sequence, last)
				}
				last = b.data.Sequence
			}
		}
	}
	read(&follower{t: t, lines: reader})
	if last == 0 || last >= uint64(head) {
		t.Fatalf("the slow reader got %d of %d events", last, head)
	}
	// On a busy machine this one may be too slow as well, and resumes as often as that.
	for last < uint64(head) {
		before := last
		f := n.follow("", withHeader("Last-Event-ID", fmt.Sprint(last)))
		read(f)
		f.cancel()
		if last == before {
			t.Fatalf("resumed after %d, it got nothing of %d events", last, head)
		}
	}
}
