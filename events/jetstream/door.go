package jetstream

import (
	"encoding/base64"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"

	"github.com/imgsrv/imgsrv/events"
)

// knownPatience is how long a client waits at a start until the subscribers are known. A refusal instead would
// end clients for good that only reconnect: nats.go gives up after two of them.
const knownPatience = 15 * time.Second

// door decides who gets into the embedded server: the process itself, with all rights, and subscribers, each into
// an account of its own. It is asked by the server, on the goroutine of the client's connection.
type door struct {
	own string // public key of the process's own user
	log *slog.Logger
	ns  *server.Server // set before the server starts

	known  chan struct{} // closed when guests is complete
	opened sync.Once

	mu     sync.RWMutex
	guests map[string]guest // by public key
}

// guest is a subscriber that may come in.
type guest struct {
	name        string
	account     *server.Account
	permissions *server.Permissions
}

func newDoor(own string, log *slog.Logger) *door {
	return &door{own: own, log: log, known: make(chan struct{}), guests: map[string]guest{}}
}

// guard puts the door before a server that isn't started yet.
func (d *door) guard(ns *server.Server) error {
	d.ns = ns
	if err := export(ns.GlobalAccount()); err != nil {
		return fmt.Errorf("prepare the embedded NATS server for subscribers: %w", err)
	}
	return nil
}

// open says that all subscribers there are were admitted.
func (d *door) open() { d.opened.Do(func() { close(d.known) }) }

// Check is for nats-server: whether a client may come in, and as whom.
func (d *door) Check(c server.ClientAuthentication) bool {
	if c.Kind() != server.CLIENT {
		return false
	}
	key, ok := provenKey(c.GetOpts(), c.GetNonce())
	if !ok {
		return false
	}
	if key == d.own {
		c.RegisterUser(&server.User{Username: "imgsrv"})
		return true
	}
	timer := time.NewTimer(knownPatience)
	defer timer.Stop()
	select {
	case <-d.known:
	case <-timer.C:
		return false
	}
	// RegisterUser would leave a client that the account doesn't take where it is, in the stream's account.
	registers, ok := c.(interface {
		RegisterNkeyUser(*server.NkeyUser) error
	})
	if !ok {
		return false
	}
	d.mu.RLock()
	defer d.mu.RUnlock() // held until the client is the account's, so that dismiss finds it there
	g, ok := d.guests[key]
	if !ok {
		return false
	}
	if err := registers.RegisterNkeyUser(&server.NkeyUser{Nkey: key, Account: g.account, Permissions: g.permissions}); err != nil {
		d.log.Warn("nats: a subscriber could not be let in", "subscriber", g.name, "error", err)
		return false
	}
	return true
}

// provenKey is the public key of a user whose secret half the client has shown to have, by a signature over the
// server's nonce.
func provenKey(opts *server.ClientOpts, nonce []byte) (key string, ok bool) {
	key = opts.Nkey
	if len(nonce) == 0 || !nkeys.IsValidPublicUserKey(key) {
		return "", false
	}
	public, err := nkeys.FromPublicKey(key)
	if err != nil {
		return "", false
	}
	signature, err := base64.RawURLEncoding.DecodeString(opts.Sig)
	if err != nil {
		if signature, err = base64.StdEncoding.DecodeString(opts.Sig); err != nil {
			return "", false
		}
	}
	return key, public.Verify(nonce, signature) == nil
}

// admit lets a subscriber in from now on.
func (d *door) admit(s events.Subscriber) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, there := d.guests[s.PublicKey]; there {
		return nil
	}
	account, isNew := d.ns.LookupOrRegisterAccount("subscriber-" + s.Name + "-" + s.PublicKey)
	if isNew {
		if err := importFor(s, account, d.ns.GlobalAccount()); err != nil {
			return fmt.Errorf("make an account for subscriber %s: %w", s.Name, err)
		}
	}
	publish, subscribe := Permissions(s)
	d.guests[s.PublicKey] = guest{name: s.Name, account: account, permissions: &server.Permissions{
		Publish: &server.SubjectPermission{Allow: publish}, Subscribe: &server.SubjectPermission{Allow: subscribe}}}
	return nil
}

// dismiss shuts a subscriber out and cuts its connections. Its account stays, empty, until the server ends:
// nats-server has no way to remove one.
func (d *door) dismiss(publicKey string) {
	d.mu.Lock()
	g, there := d.guests[publicKey]
	delete(d.guests, publicKey)
	d.mu.Unlock()
	if !there {
		return
	}
	connections, err := d.ns.Connz(&server.ConnzOptions{Account: g.account.GetName(), Limit: 1 << 20})
	if err != nil {
		d.log.Error("nats: connections of a removed subscriber are not known", "subscriber", g.name, "error", err)
		return
	}
	for _, c := range connections.Conns {
		if err := d.ns.DisconnectClientByID(c.Cid); err != nil {
			d.log.Debug("nats: a connection of a removed subscriber ended by itself", "subscriber", g.name, "error", err)
		}
	}
}
