package access

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
)

// Directory knows every principal and every token. It is folded from their events, so that a revocation counts
// on every node as soon as its event is there.
type Directory struct {
	log      *jetstream.Log
	follower *jetstream.Follower
	logger   *slog.Logger
	now      func() time.Time
	used     chan string // ids of tokens whose use is to be recorded
	trusted  func(trust string) bool

	mu         sync.RWMutex
	principals map[string]member
	tokens     map[string]Token // by id
	byHash     map[string]string
	exchanged  int             // facts of tokens that came in exchange for OIDC tokens
	unreadable map[string]bool // subjects of which a newer release has said something that can't be read here
}

// member is a principal, and since when: a token issued before is one of a predecessor.
type member struct {
	events.Principal
	since events.Sequence
}

// Token is a token as the directory knows it.
type Token struct {
	events.Token
	Issued  events.Sequence
	BuiltIn bool // of admin.token: it has no fact until it is revoked
}

// DirectoryConfig is what a directory works with.
type DirectoryConfig struct {
	Log    *jetstream.Log
	Logger *slog.Logger
	Clock  func() time.Time // nil: time.Now
	// Trusted, optional, says whether a trust rule is in force; tokens of others are dead. Without it all are.
	Trusted func(trust string) bool
}

// NewDirectory makes a directory that knows nobody yet: CatchUp and Run fill it.
func NewDirectory(cfg DirectoryConfig) *Directory {
	d := &Directory{log: cfg.Log, logger: cfg.Logger, now: cfg.Clock, trusted: cfg.Trusted, used: make(chan string, 64),
		principals: map[string]member{}, tokens: map[string]Token{}, byHash: map[string]string{}, unreadable: map[string]bool{}}
	if d.now == nil {
		d.now = time.Now
	}
	if d.trusted == nil {
		d.trusted = func(string) bool { return false }
	}
	if d.log != nil {
		d.follower = d.log.Follow(d.apply, events.SubjectOfKind(events.KindPrincipal), events.SubjectOfKind(events.KindToken))
	}
	return d
}

// CatchUp reads all principals and tokens that there are; before Run, and before anybody is let in.
func (d *Directory) CatchUp(ctx context.Context) error { return d.follower.CatchUp(ctx) }

// Run follows what happens, and records the days on which tokens are used, until ctx ends.
func (d *Directory) Run(ctx context.Context) error {
	var recorder sync.WaitGroup
	recorder.Go(func() {
		for {
			select {
			case id := <-d.used:
				d.recordUse(ctx, id)
			case <-ctx.Done():
				return
			}
		}
	})
	defer recorder.Wait()
	return d.follower.Run(ctx)
}

// Wait returns once the fact of that sequence counts on this node.
func (d *Directory) Wait(ctx context.Context, sequence events.Sequence) error {
	return d.follower.Wait(ctx, sequence)
}

// AddBuiltIn lets the bearer of the token in admin.token in, unless a fact says more of it. known says that the
// token has facts: it was revoked, or is one that was issued like any other.
func (d *Directory) AddBuiltIn(token string) (id string, known bool) {
	hash := hashOf(token)
	// The id follows from the hash, so that the token is the same one at each start.
	id = uuid.NewSHA1(uuid.NameSpaceOID, []byte("imgsrv token "+hash)).String()
	d.mu.Lock()
	defer d.mu.Unlock()
	if other, issued := d.byHash[hash]; issued {
		return other, true
	}
	if d.unreadable[events.TokenEntity(id).Subject()] {
		return id, true
	}
	d.tokens[id] = Token{BuiltIn: true, Token: events.Token{ID: id, Principal: events.AdminPrincipal, Name: "admin.token", Hash: hash, Grants: []events.Grant{}, IssuedBy: "imgsrv"}}
	d.byHash[hash] = id
	return id, false
}

// apply folds one fact. A fact of a newer release may say that somebody's rights are over: until this release
// is replaced its entity has none.
func (d *Directory) apply(event events.Event) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch fact := event.Fact.(type) {
	case events.PrincipalFact:
		p := fact.After()
		since := d.principals[p.Name].since
		if _, ok := fact.(events.PrincipalCreated); ok {
			since = event.Sequence
		}
		d.principals[p.Name] = member{Principal: p, since: max(since, d.principals[p.Name].since)}
		delete(d.unreadable, event.Subject)
	case events.TokenFact:
		t := fact.After()
		issued := d.tokens[t.ID].Issued
		if _, ok := fact.(events.TokenIssued); ok {
			issued = event.Sequence
		}
		d.tokens[t.ID] = Token{Token: t, Issued: issued}
		d.byHash[t.Hash] = t.ID
		if t.Trust != "" {
			d.forgetExchanged()
		}
	default:
		d.logger.Error("an event about access can't be read: a newer release wrote it; whom it is about has no rights here", "sequence", event.Sequence, "subject", event.Subject)
		d.unreadable[event.Subject] = true
		for name, m := range d.principals {
			if events.PrincipalEntity(name).Subject() == event.Subject {
				// It may have begun anew: what is older than that is a predecessor's.
				d.principals[name] = member{Principal: events.Principal{Name: name, Removed: true}, since: max(m.since, event.Sequence)}
			}
		}
	}
}

// exchangedKept is how long a token that came in exchange is remembered after its end, for lists; of exchangedSwept new ones
// the first looks for those to forget: there may be many a day, and each lives an hour.
const (
	exchangedKept  = 24 * time.Hour
	exchangedSwept = 1000
)

func (d *Directory) forgetExchanged() {
	if d.exchanged++; d.exchanged%exchangedSwept != 0 {
		return
	}
	for id, t := range d.tokens {
		if t.Trust != "" && t.Expired(d.now().Add(-exchangedKept)) {
			delete(d.tokens, id)
			delete(d.byHash, t.Hash)
		}
	}
}

// byToken finds who shows a token. why says what is wrong with one that isn't good; it never says more to
// somebody who doesn't hold the token.
func (d *Directory) byToken(token string) (p Principal, why string) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	t, ok := d.tokens[d.byHash[hashOf(token)]]
	if !ok {
		return Principal{}, "the token is unknown"
	}
	if why := d.dead(t); why != "" {
		return Principal{}, why
	}
	p = Principal{Name: t.Principal, TokenID: t.ID, within: t.Grants}
	if t.Trust != "" {
		p.grants, p.within = t.Grants, nil
	} else {
		p.grants = d.grantsOf(t.Principal)
	}
	p.alive = func() bool { return d.isAlive(t.ID, p.grants) }
	if day := d.now().UTC().Truncate(24 * time.Hour); !t.BuiltIn && day.After(t.LastUsed) {
		select {
		case d.used <- t.ID:
		default: // the next use records it
		}
	}
	return p, ""
}

// byName finds a principal that other credentials than a token name, such as a client's certificate.
func (d *Directory) byName(name string) (Principal, bool) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	m, ok := d.principals[name]
	if !ok || m.Removed {
		return Principal{}, false
	}
	return Principal{Name: name, grants: m.Grants, alive: func() bool {
		d.mu.RLock()
		defer d.mu.RUnlock()
		now, ok := d.principals[name]
		return ok && !now.Removed && slices.Equal(now.Grants, m.Grants)
	}}, true
}

// isAlive: a role that was taken, or given, since makes a principal look again.
func (d *Directory) isAlive(id string, grants []events.Grant) bool {
	d.mu.RLock()
	defer d.mu.RUnlock()
	t, ok := d.tokens[id]
	return ok && d.dead(t) == "" && (t.Trust != "" || slices.Equal(grants, d.grantsOf(t.Principal)))
}

// dead says why a token is no longer good; "" for one that is.
func (d *Directory) dead(t Token) string {
	switch {
	case d.unreadable[events.TokenEntity(t.ID).Subject()]:
		return "a newer release of imgsrv has said something of the token that this one can't read"
	case t.Revoked:
		return "the token was revoked"
	case t.Expired(d.now()):
		return "the token has expired"
	case t.Trust != "" && !d.trusted(t.Trust):
		return "the trust rule that the token hangs on was removed"
	case t.Trust != "" || t.Principal == events.AdminPrincipal:
		return ""
	}
	if m, ok := d.principals[t.Principal]; !ok || m.Removed || t.Issued < m.since {
		return "the token's principal was removed"
	}
	return ""
}

func (d *Directory) grantsOf(principal string) []events.Grant {
	if principal == events.AdminPrincipal {
		return []events.Grant{{Role: events.RoleAdmin}}
	}
	return d.principals[principal].Grants
}

// recordUse appends the day of use. Where that fails, the next use tries again.
func (d *Directory) recordUse(ctx context.Context, id string) {
	current, err := d.log.Token(ctx, id)
	if err == nil {
		if changes := events.UseToken(current, d.now()); len(changes) > 0 {
			_, err = d.log.Append(ctx, jetstream.Cause{Actor: "imgsrv"}, changes...)
		}
	}
	if err != nil && ctx.Err() == nil {
		d.logger.Debug("use of a token not recorded", "token", id, "error", err)
	}
}

// Principals lists those that are there, by name; the built-in admin first.
func (d *Directory) Principals() []events.Principal {
	d.mu.RLock()
	defer d.mu.RUnlock()
	list := []events.Principal{d.principal(events.AdminPrincipal)}
	for _, name := range slices.Sorted(maps.Keys(d.principals)) {
		if p := d.principals[name].Principal; !p.Removed {
			list = append(list, p)
		}
	}
	return list
}

// Principal finds one that is there.
func (d *Directory) Principal(name string) (events.Principal, bool) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	p := d.principal(name)
	return p, p.Name != "" && !p.Removed
}

func (d *Directory) principal(name string) events.Principal {
	if name == events.AdminPrincipal {
		return events.Principal{Name: name, Kind: events.Service, Description: "built in", Grants: d.grantsOf(name), CreatedBy: "imgsrv"}
	}
	return d.principals[name].Principal
}

// Tokens lists tokens in the order in which they were issued; the secret isn't known. ended includes those that
// are revoked, expired or of somebody who was removed. The text says why a token is no longer good.
func (d *Directory) Tokens(ended bool) (tokens []Token, why []string) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	all := slices.SortedFunc(maps.Values(d.tokens), func(a, b Token) int {
		return cmp.Or(cmp.Compare(a.Issued, b.Issued), strings.Compare(a.ID, b.ID))
	})
	for _, t := range all {
		if reason := d.dead(t); reason == "" || ended {
			tokens, why = append(tokens, t), append(why, reason)
		}
	}
	return tokens, why
}

// Token finds one, dead or alive.
func (d *Directory) Token(id string) (t Token, why string, ok bool) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	t, ok = d.tokens[id]
	return t, d.dead(t), ok
}
