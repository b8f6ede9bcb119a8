package jetstream_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/internal/natstest"
)

// Who tries. Whoever isn't in an operation's list must be refused.
const (
	nobody     = '-' // no credentials
	stranger   = '?' // a key that nobody added
	removed    = 'x' // a subscriber that was removed
	restricted = 'r' // subscriber "restricted", of debian alone
	free       = 'f' // subscriber "free", of all images
	own        = 'o' // the process itself, in the embedded server
	documented = 'd' // imgsrv's user by docs/nats-server.conf
)

const answerLimit = 20 * time.Second // for what is sure to come, on a busy machine

// operation is one thing to try on a connection; <name> in it is the subscriber's name, and @ the
// stream's.
type operation struct {
	what    string // publish, subscribe
	subject string
	body    string
	who     string // who may
	silent  bool   // is not answered
}

// operations are what NATS offers that could matter here. Those that would change what others need come last.
func operations() []operation {
	api := "$JS.API."
	consumer := `{"stream_name":"` + jetstream.StreamName + `","config":{"durable_name":"%s","ack_policy":"explicit"}}`
	push := `{"stream_name":"` + jetstream.StreamName + `","config":{"durable_name":"%s","ack_policy":"none","deliver_subject":"imgsrv.events.alias.debian.x"}}`
	read := []operation{
		{"publish", api + "INFO", "", "rfod", false},
		{"publish", api + "STREAM.NAMES", "", "o", false},
		{"publish", api + "STREAM.LIST", "", "o", false},
		{"publish", api + "STREAM.INFO.@", "", "od", false},
		{"publish", api + "STREAM.INFO.@", `{"subjects_filter":">"}`, "od", false},
		{"publish", api + "STREAM.MSG.GET.@", `{"seq":1}`, "od", false},
		{"publish", api + "DIRECT.GET.@", `{"seq":1}`, "od", false},
		{"publish", api + "DIRECT.GET.@.imgsrv.events.version.alpine.1", "", "od", false},
		{"publish", api + "CONSUMER.NAMES.@", "", "o", false},
		{"publish", api + "CONSUMER.LIST.@", "", "o", false},
		{"publish", api + "CONSUMER.INFO.@.<name>", "", "rfod", false},
		{"publish", api + "CONSUMER.INFO.@.other", "", "od", false},
		{"publish", api + "CONSUMER.INFO.@.publication", "", "od", false},
		{"publish", api + "CONSUMER.MSG.NEXT.@.<name>", `{"batch":1,"no_wait":true}`, "rfod", false},
		{"publish", api + "CONSUMER.MSG.NEXT.@.other", `{"batch":1,"no_wait":true}`, "od", false},
		{"publish", api + "CONSUMER.MSG.NEXT.@.publication", `{"batch":1,"no_wait":true}`, "od", false},

		{"subscribe", "imgsrv.events.version.debian.*", "", "rfo", true},
		{"subscribe", "imgsrv.events.version.debian.1", "", "rfo", true},
		{"subscribe", "imgsrv.events.alias.debian.*", "", "rfo", true},
		{"subscribe", "imgsrv.events.image.debian", "", "rfo", true},
		{"subscribe", "imgsrv.events.version.alpine.*", "", "fo", true},
		{"subscribe", "imgsrv.events.version.>", "", "fo", true},
		{"subscribe", "imgsrv.events.image.*", "", "fo", true},
		{"subscribe", "imgsrv.events.upload.>", "", "o", true},
		{"subscribe", "imgsrv.events.token.>", "", "o", true},
		{"subscribe", "imgsrv.events.subscriber.>", "", "o", true},
		{"subscribe", "imgsrv.events.>", "", "o", true},
		{"subscribe", "imgsrv.>", "", "o", true},
		{"subscribe", ">", "", "o", true},
		{"subscribe", "$JS.>", "", "o", true},
		{"subscribe", "$JS.ACK.>", "", "o", true},
		{"subscribe", "$JS.EVENT.ADVISORY.>", "", "o", true},
		{"subscribe", "$SYS.>", "", "o", true},
		{"subscribe", "_R_.>", "", "o", true},
		{"subscribe", "_INBOX.>", "", "rfod", true}, // each in an account of its own: see the tests below
		{"subscribe", "_INBOX_other.>", "", "o", true},
		{"subscribe", "anything", "", "o", true},
	}
	write := []operation{
		{"publish", "imgsrv.events.version.debian.9", "{}", "od", false},
		{"publish", "imgsrv.events.version.alpine.9", "{}", "od", false},
		{"publish", "imgsrv.events.nothing", "{}", "od", false},
		{"publish", "anything", "", "o", true},
		{"publish", "_INBOX.x", "", "o", true},
		{"publish", "$SYS.REQ.SERVER.PING", "", "o", true},
		{"publish", "$SYS.REQ.USER.INFO", "", "o", true},
		{"publish", "$JS.ACK.@.<name>.1.1.1.1.0", "+WPI", "rfod", true},
		{"publish", "$JS.ACK.@.other.1.1.1.1.0", "+WPI", "od", true},
		{"publish", "$JS.ACK.@.publication.1.1.1.1.0", "+WPI", "od", true},
		{"publish", "$JS.FC.@.other.1.x", "", "o", true},
		{"publish", api + "CONSUMER.RESET.@.<name>", `{"seq":1}`, "rfo", false},
		{"publish", api + "CONSUMER.RESET.@.other", `{"seq":1}`, "o", false},
		{"publish", api + "CONSUMER.RESET.@.publication", `{"seq":1}`, "o", false},
		{"publish", api + "CONSUMER.PAUSE.@.<name>", `{}`, "o", false},
		{"publish", api + "CONSUMER.PAUSE.@.other", `{}`, "o", false},
		{"publish", api + "CONSUMER.UNPIN.@.other", `{"group":"x"}`, "o", false},
		{"publish", api + "CONSUMER.LEADER.STEPDOWN.@.other", "", "o", true}, // answered in clusters
		{"publish", api + "CONSUMER.CREATE.@", fmt.Sprintf(consumer, ""), "o", false},
		{"publish", api + "CONSUMER.CREATE.@.new", fmt.Sprintf(consumer, "new"), "od", false},
		{"publish", api + "CONSUMER.CREATE.@.new", fmt.Sprintf(push, "new"), "od", false},
		{"publish", api + "CONSUMER.CREATE.@.<name>", fmt.Sprintf(consumer, "<name>"), "od", false},
		{"publish", api + "CONSUMER.CREATE.@.<name>.imgsrv.events.version.debian.*", fmt.Sprintf(consumer, "<name>"), "od", false},
		{"publish", api + "CONSUMER.CREATE.@.other", fmt.Sprintf(consumer, "other"), "od", false},
		{"publish", api + "CONSUMER.CREATE.@.publication", fmt.Sprintf(consumer, "publication"), "od", false},
		{"publish", api + "CONSUMER.DURABLE.CREATE.@.<name>", fmt.Sprintf(consumer, "<name>"), "o", false},
		{"publish", api + "CONSUMER.DELETE.@.<name>", "", "od", false},
		{"publish", api + "CONSUMER.DELETE.@.other", "", "od", false},
		{"publish", api + "CONSUMER.DELETE.@.publication", "", "od", false},
		{"publish", api + "STREAM.CREATE.X", `{"name":"X","subjects":["x"]}`, "o", false},
		{"publish", api + "STREAM.CREATE.@", `{"name":"@","subjects":["imgsrv.events.>"]}`, "od", false},
		{"publish", api + "STREAM.UPDATE.@", `{"name":"@","subjects":["x"]}`, "od", false},
		{"publish", api + "STREAM.SNAPSHOT.@", `{}`, "o", false},
		{"publish", api + "STREAM.RESTORE.X", `{}`, "o", false},
		{"publish", api + "STREAM.MSG.DELETE.@", `{"seq":1}`, "o", false},
		{"publish", api + "STREAM.PURGE.@", "", "o", false},
		{"publish", api + "STREAM.LEADER.STEPDOWN.@", "", "o", true},
		{"publish", api + "STREAM.DELETE.@", "", "o", false},
	}
	return append(read, write...)
}

// tries does an operation as a client of a name, and says whether the server let it.
func tries(t *testing.T, nc *nats.Conn, name string, op operation) (allowed bool) {
	t.Helper()
	fill := strings.NewReplacer("<name>", name, "@", jetstream.StreamName)
	subject, body := fill.Replace(op.subject), []byte(fill.Replace(op.body))
	var answers *nats.Subscription
	var err error
	switch op.what {
	case "subscribe":
		_, err = nc.SubscribeSync(subject)
	case "publish":
		inbox := nc.NewInbox()
		if answers, err = nc.SubscribeSync(inbox); err == nil {
			err = nc.PublishRequest(subject, inbox, body)
		}
	}
	if err == nil {
		err = nc.FlushTimeout(answerLimit) // the server says its refusal before the pong
	}
	if err != nil {
		t.Fatalf("%s %s: %v", op.what, subject, err)
	}
	if err := nc.LastError(); err != nil {
		if !errors.Is(err, nats.ErrPermissionViolation) {
			t.Errorf("%s %s: %v, want a violation of permissions", op.what, subject, err)
		}
		return false
	}
	if !op.silent {
		if _, err := answers.NextMsg(answerLimit); err != nil {
			t.Errorf("%s %s is neither refused nor answered: %v", op.what, subject, err)
		}
	}
	return true
}

// quiet keeps nats.go from printing the violations that a test provokes.
func quiet(o *nats.Options) error {
	o.AsyncErrorCB = func(*nats.Conn, *nats.Subscription, error) {}
	return nil
}

// attempts walks all operations as one of the columns; connect makes a connection of its own for each.
func attempts(t *testing.T, column rune, name string, connect func(nats.Option) (*nats.Conn, error)) {
	t.Helper()
	for _, op := range operations() {
		want := strings.ContainsRune(op.who, column)
		nc, err := connect(quiet)
		if err != nil {
			if !errors.Is(err, nats.ErrAuthorization) || want {
				t.Errorf("%c can't connect: %v", column, err)
			}
			continue
		}
		if got := tries(t, nc, name, op); got != want {
			t.Errorf("%c: %s %s %s: allowed is %v, want %v", column, op.what, op.subject, op.body, got, want)
		}
		nc.Close()
	}
}

// stocked is a site with events of two images and a consumer of the server's own.
func stocked(t *testing.T) *natstest.Site {
	t.Helper()
	site := natstest.Listen(t)
	stock(t, site.Log, site.Own)
	return site
}

func stock(t *testing.T, log *jetstream.Log, nc *nats.Conn) {
	t.Helper()
	js, err := natsjs.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateConsumer(t.Context(), jetstream.StreamName, natsjs.ConsumerConfig{Durable: jetstream.ConsumerPublication, AckPolicy: natsjs.AckExplicitPolicy}); err != nil {
		t.Fatal(err)
	}
	for _, fact := range []events.Fact{
		published("debian", "1"), published("alpine", "1"), moved("latest", "1"),
		events.AliasMoved{Alias: events.Alias{Image: "alpine", Alias: "latest", Version: "1"}},
		events.UploadInitiated{Upload: events.Upload{ID: "u", Image: "debian"}},
	} {
		mustAppend(t, log, events.Change{Fact: fact})
	}
}

// Every operation, as everybody.
func TestWhoMayDoWhatOverNATS(t *testing.T) {
	t.Parallel()
	site := stocked(t)
	files := map[rune]string{restricted: site.Add(t, "restricted", "debian"), free: site.Add(t, "free"), removed: site.Add(t, "gone")}
	site.Add(t, "other")
	if _, err := site.Subscribers.Remove(t.Context(), "gone", "test", time.Now()); err != nil {
		t.Fatal(err)
	}
	before, err := site.Log.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	unknown, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	unknownKey, err := unknown.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	attempts(t, nobody, "", func(o nats.Option) (*nats.Conn, error) { return nats.Connect(site.Server.URL(), o) })
	attempts(t, stranger, "", func(o nats.Option) (*nats.Conn, error) {
		return nats.Connect(site.Server.URL(), o, nats.Nkey(unknownKey, unknown.Sign))
	})
	for column, name := range map[rune]string{removed: "gone", restricted: "restricted", free: "free"} {
		attempts(t, column, name, func(o nats.Option) (*nats.Conn, error) { return jetstream.Connect(site.Server.URL(), files[column], o) })
	}
	if head, err := site.Log.Head(t.Context()); err != nil || head != before {
		t.Errorf("after all that was tried the head is %d (%v), want %d", head, err, before)
	}
	attempts(t, own, "restricted", func(o nats.Option) (*nats.Conn, error) { return site.Server.Connect(o) })
}

// The key of a subscriber is worth nothing without its secret half.
func TestAPublicKeyAloneOpensNothing(t *testing.T) {
	t.Parallel()
	site := stocked(t)
	site.Add(t, "mirror")
	list, err := site.Subscribers.List(t.Context())
	if err != nil || len(list) != 1 {
		t.Fatal(list, err)
	}
	other, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	for name, sign := range map[string]nats.SignatureHandler{
		"signed by another":  other.Sign,
		"no signature":       func([]byte) ([]byte, error) { return nil, nil },
		"signature of trash": func([]byte) ([]byte, error) { return []byte("trash"), nil },
	} {
		if nc, err := nats.Connect(site.Server.URL(), nats.Nkey(list[0].PublicKey, sign)); !errors.Is(err, nats.ErrAuthorization) {
			t.Errorf("%s: %v", name, err)
			nc.Close()
		}
	}
}

// elsewhere are answers that a subscriber has sent to a subject of somebody else's. NATS asks no permission for
// the subject of an answer: in one account with the stream, each of these would be stored or believed.
func elsewhere(t *testing.T, log *jetstream.Log, nc *nats.Conn, name string) {
	t.Helper()
	api := "$JS.API.CONSUMER."
	for _, reply := range []string{
		"imgsrv.events.version.debian.9", "imgsrv.events.nothing",
		"$JS.ACK." + jetstream.StreamName + ".other.1.1.1.1.0", "$JS.API.STREAM.DELETE." + jetstream.StreamName, "_INBOX.victim",
	} {
		for _, ask := range []struct{ subject, body string }{
			{api + "INFO." + jetstream.StreamName + "." + name, ""},
			{api + "MSG.NEXT." + jetstream.StreamName + "." + name, `{"batch":1,"no_wait":true}`},
			{api + "MSG.NEXT." + jetstream.StreamName + "." + name, `{"batch":100,"no_wait":true}`},
			{api + "RESET." + jetstream.StreamName + "." + name, `{"seq":1}`},
		} {
			if err := nc.PublishRequest(ask.subject, reply, []byte(ask.body)); err != nil {
				t.Fatal(err)
			}
		}
	}
	// Traces of a message are sent to whom a header names.
	msg := nats.NewMsg(api + "INFO." + jetstream.StreamName + "." + name)
	msg.Header.Set("Nats-Trace-Dest", "imgsrv.events.version.debian.9")
	if err := nc.PublishMsg(msg); err != nil {
		t.Fatal(err)
	}
	// What was asked before is answered before.
	js, err := natsjs.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.Consumer(t.Context(), jetstream.StreamName, name); err != nil {
		t.Fatal(err)
	}
	if _, err := log.Head(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestAnswersSentElsewhereArriveNowhere(t *testing.T) {
	t.Parallel()
	site := stocked(t)
	restricted := site.Connect(t, site.Add(t, "restricted", "debian"))
	unrestricted := site.Connect(t, site.Add(t, "free"))
	other := site.Connect(t, site.Add(t, "other"))
	// Event 1 is out to other, and not acknowledged; whoever forged its acknowledgement would make other miss it.
	js, err := natsjs.New(other)
	if err != nil {
		t.Fatal(err)
	}
	consumer, err := js.Consumer(t.Context(), jetstream.StreamName, "other")
	if err != nil {
		t.Fatal(err)
	}
	if msg, err := consumer.Next(); err != nil || msg.Subject() != "imgsrv.events.version.debian.1" {
		t.Fatal(msg, err)
	}
	victim, err := site.Own.SubscribeSync("_INBOX.victim")
	if err != nil {
		t.Fatal(err)
	}
	if err := site.Own.Flush(); err != nil {
		t.Fatal(err)
	}
	before, err := site.Log.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	elsewhere(t, site.Log, restricted, "restricted")
	elsewhere(t, site.Log, unrestricted, "free")
	if head, err := site.Log.Head(t.Context()); err != nil || head != before {
		t.Errorf("the head is %d (%v), want %d: an answer was appended", head, err, before)
	}
	if info, err := consumer.Info(t.Context()); err != nil || info.NumAckPending != 1 || info.AckFloor.Stream != 0 {
		t.Errorf("the other subscriber stands at %+v (%v), want one event that isn't acknowledged", info, err)
	}
	if n, _, err := victim.Pending(); err != nil || n != 0 {
		t.Errorf("%d answers came to somebody else's inbox (%v)", n, err)
	}
	// The same from the stream's own account is appended: without accounts the test above would fail.
	if err := site.Own.PublishRequest("$JS.API.STREAM.INFO."+jetstream.StreamName, "imgsrv.events.nothing", nil); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(answerLimit); ; {
		head, err := site.Log.Head(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if head > before {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("an answer in the stream's own account isn't stored: this test proves nothing any more")
		}
	}
}

// Subscribers may listen on all inboxes, and hear none but their own.
func TestNobodyOverhearsDeliveriesToOthers(t *testing.T) {
	t.Parallel()
	site := stocked(t)
	listener := site.Connect(t, site.Add(t, "listener", "debian"))
	overheard, err := listener.SubscribeSync("_INBOX.>")
	if err != nil {
		t.Fatal(err)
	}
	if err := listener.Flush(); err != nil {
		t.Fatal(err)
	}
	got := hear(t, site.Connect(t, site.Add(t, "free")), jetstream.SubscribeConfig{Durable: "free"}, 4)
	if len(got) != 4 {
		t.Errorf("heard %v", got)
	}
	// Its own request is heard, so that the silence before means something.
	if _, err := listener.Request("$JS.API.CONSUMER.INFO."+jetstream.StreamName+".listener", nil, answerLimit); err != nil {
		t.Fatal(err)
	}
	msg, err := overheard.NextMsg(answerLimit)
	if err != nil {
		t.Fatal(err)
	}
	var info natsjs.ConsumerInfo
	if err := json.Unmarshal(msg.Data, &info); err != nil || info.Name != "listener" {
		t.Errorf("overheard %s", msg.Data)
	}
}

func TestASubscriberHearsOfItsImagesAlone(t *testing.T) {
	t.Parallel()
	site := stocked(t)
	debian := site.Connect(t, site.Add(t, "debian", "debian"))
	all := site.Connect(t, site.Add(t, "all"))
	if got, want := fmt.Sprint(hear(t, debian, jetstream.SubscribeConfig{Durable: "debian"}, 2)), "[1 debian 3 latest]"; got != want {
		t.Errorf("heard %s, want %s", got, want)
	}
	if got, want := fmt.Sprint(hear(t, all, jetstream.SubscribeConfig{Durable: "all"}, 4)), "[1 debian 2 alpine 3 latest 4 latest]"; got != want {
		t.Errorf("heard %s, want %s", got, want)
	}
	if position, ok, err := jetstream.SubscriberPosition(t.Context(), debian, "debian"); err != nil || !ok || position.Pending != 0 {
		t.Errorf("more waits for it: %+v, %v, %v", position, ok, err)
	}
	// Live, without a consumer.
	live, err := debian.SubscribeSync("imgsrv.events.version.debian.*")
	if err != nil {
		t.Fatal(err)
	}
	if err := debian.Flush(); err != nil {
		t.Fatal(err)
	}
	mustAppend(t, site.Log, events.Change{Fact: published("alpine", "2")})
	mustAppend(t, site.Log, events.Change{Fact: published("debian", "2")})
	if msg, err := live.NextMsg(answerLimit); err != nil || msg.Subject != "imgsrv.events.version.debian.2" {
		t.Errorf("live: %v, %v", msg, err)
	}
}
