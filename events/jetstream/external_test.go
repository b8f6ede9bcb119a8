package jetstream_test

import (
	"crypto/tls"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	natsserver "github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
	"go.opentelemetry.io/otel/metric/noop"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/internal/natstest"
	"github.com/imgsrv/imgsrv/internal/selfsigned"
)

const configuration = "../../docs/nats-server.conf"

// documentedServer starts a nats-server with docs/nats-server.conf as it is; only where it listens and keeps its
// files is the test's. keys are the public keys that the configuration includes.
func documentedServer(t *testing.T, keys map[string]string) (at, ca string) {
	t.Helper()
	dir := t.TempDir()
	if _, _, err := selfsigned.Load(dir, []string{"127.0.0.1"}, time.Now()); err != nil {
		t.Fatal(err)
	}
	ca = filepath.Join(dir, "cert.pem")
	var include strings.Builder
	fmt.Fprintf(&include, "TLS_CERT: %q\nTLS_KEY: %q\n", ca, filepath.Join(dir, "key.pem"))
	for name, key := range keys {
		fmt.Fprintf(&include, "%s: %s\n", name, key)
	}
	text, err := os.ReadFile(configuration)
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string]string{"nats-server.conf": string(text), "nats-server.keys": include.String()} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	opts, err := natsserver.ProcessConfigFile(filepath.Join(dir, "nats-server.conf"))
	if err != nil {
		t.Fatal(err)
	}
	opts.Host, opts.Port, opts.StoreDir, opts.NoLog, opts.NoSigs = "127.0.0.1", -1, filepath.Join(dir, "store"), true, true
	ns, err := natsserver.NewServer(opts)
	if err != nil {
		t.Fatal(err)
	}
	go ns.Start()
	t.Cleanup(func() { ns.Shutdown(); ns.WaitForShutdown() })
	if !ns.ReadyForConnections(answerLimit) {
		t.Fatal("the NATS server doesn't come up")
	}
	u, err := url.Parse(ns.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	return "tls://" + u.Host, ca
}

// userKey makes a user, and a file with its seed alone.
func userKey(t *testing.T) (public, file string) {
	t.Helper()
	pair, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	seed, err := pair.Seed()
	if err != nil {
		t.Fatal(err)
	}
	if public, err = pair.PublicKey(); err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(t.TempDir(), "user.nk")
	if err := os.WriteFile(file, seed, 0o600); err != nil {
		t.Fatal(err)
	}
	return public, file
}

// The documented configuration of a NATS server lets imgsrv work, subscribers read what is theirs, and nobody
// anything else.
func TestTheDocumentedConfigurationAllowsWhatIsNeededAndNothingElse(t *testing.T) {
	t.Parallel()
	imgsrvKey, imgsrvFile := userKey(t)
	mirrorKey, mirrorFile := userKey(t)
	indexerKey, indexerFile := userKey(t)
	at, ca := documentedServer(t, map[string]string{"IMGSRV": imgsrvKey, "MIRROR": mirrorKey, "INDEXER": indexerKey})
	trust := nats.RootCAs(ca)
	connect := func(file string) *nats.Conn {
		t.Helper()
		nc, err := jetstream.Connect(at, file, trust)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(nc.Close)
		return nc
	}

	nc := connect(imgsrvFile)
	log, err := jetstream.Open(t.Context(), nc, jetstream.Config{Source: "test", Log: discard, Meter: noop.Meter{}})
	if err != nil {
		t.Fatal(err)
	}
	stock(t, log, nc)
	subscribers := jetstream.NewSubscribers(log, nil, discard)
	natstest.Run(t, subscribers)
	for name, images := range map[string][]string{"mirror": {"debian"}, "indexer": nil, "other": nil, "gone": nil} {
		natstest.Add(t, subscribers, events.Subscriber{Name: name, Images: images, MaxPending: 1})
	}
	if got, want := fmt.Sprint(hear(t, connect(mirrorFile), jetstream.SubscribeConfig{Durable: "mirror"}, 2)), "[1 debian 3 latest]"; got != want {
		t.Errorf("heard %s, want %s", got, want)
	}
	if got, want := fmt.Sprint(hear(t, connect(indexerFile), jetstream.SubscribeConfig{Durable: "indexer"}, 4)), "[1 debian 2 alpine 3 latest 4 latest]"; got != want {
		t.Errorf("heard %s, want %s", got, want)
	}

	before, err := log.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	unknown, _ := nkeys.CreateUser()
	unknownKey, _ := unknown.PublicKey()
	attempts(t, nobody, "", func(o nats.Option) (*nats.Conn, error) { return nats.Connect(at, trust, o) })
	attempts(t, stranger, "", func(o nats.Option) (*nats.Conn, error) {
		return nats.Connect(at, trust, o, nats.Nkey(unknownKey, unknown.Sign))
	})
	attempts(t, restricted, "mirror", func(o nats.Option) (*nats.Conn, error) { return jetstream.Connect(at, mirrorFile, trust, o) })
	attempts(t, free, "indexer", func(o nats.Option) (*nats.Conn, error) { return jetstream.Connect(at, indexerFile, trust, o) })
	elsewhere(t, log, connect(mirrorFile), "mirror")
	elsewhere(t, log, connect(indexerFile), "indexer")
	if head, err := log.Head(t.Context()); err != nil || head != before {
		t.Errorf("after all that was tried the head is %d (%v), want %d", head, err, before)
	}
	if _, err := nats.Connect(strings.Replace(at, "tls:", "nats:", 1), nats.Secure(&tls.Config{MinVersion: tls.VersionTLS12})); err == nil {
		t.Error("a certificate that nobody trusts is taken")
	}
	// The log can be written and read as before; then the rest, of which some is not needed and all the same its right.
	for range 2 {
		if _, err := log.Append(t.Context(), jetstream.Cause{}, events.Change{Fact: published("fedora", fmt.Sprint(before))}, events.Change{Fact: published("alma", fmt.Sprint(before))}); err != nil {
			t.Fatal(err)
		}
		before++
	}
	if err := log.Read(t.Context(), before, nil, func(events.Event) error { return nil }); err != nil {
		t.Error(err)
	}
	if _, err := subscribers.Remove(t.Context(), "gone", "test", time.Now()); err != nil {
		t.Error(err)
	}
	attempts(t, documented, "mirror", func(o nats.Option) (*nats.Conn, error) { return jetstream.Connect(at, imgsrvFile, trust, o) })
}

// What is printed for a subscriber is what stands in the documented configuration.
func TestAccountsOfTheDocumentedConfigurationAreThoseThatArePrinted(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(configuration)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []events.Subscriber{{Name: "mirror", PublicKey: "$MIRROR", Images: []string{"debian"}}, {Name: "indexer", PublicKey: "$INDEXER"}} {
		if want := jetstream.AccountConfig(s); !strings.Contains(string(text), want) {
			t.Errorf("docs/nats-server.conf lacks:\n%s", want)
		}
	}
}
