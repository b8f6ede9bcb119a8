package access_test

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/access"
	"github.com/imgsrv/imgsrv/handlers/problem"
	"github.com/imgsrv/imgsrv/internal/natstest"
)

// running is a directory as a node has it.
func running(t *testing.T, cfg access.DirectoryConfig) *access.Directory {
	t.Helper()
	cfg.Logger = slog.New(slog.DiscardHandler)
	d := access.NewDirectory(cfg)
	if err := d.CatchUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() {
		if err := d.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { stop(); done.Wait() })
	return d
}

func appended(t *testing.T, log *jetstream.Log, changes []events.Change, err error) events.Sequence {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	sequence, err := log.Append(t.Context(), jetstream.Cause{Actor: "admin"}, changes...)
	if err != nil {
		t.Fatal(err)
	}
	return sequence
}

func bearer(token string) *http.Request {
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.Header.Set("Authorization", "Bearer "+token)
	return r
}

// issued appends a principal and a token of it.
func issued(t *testing.T, log *jetstream.Log, name string, grants ...events.Grant) (token, id string, sequence events.Sequence) {
	t.Helper()
	changes, err := events.CreatePrincipal(events.Principal{Name: name, Kind: events.Service, Grants: grants}, events.Current[events.Principal]{})
	appended(t, log, changes, err)
	token, hash := access.NewToken()
	id = uuid.Must(uuid.NewV7()).String()
	owner, err := log.Principal(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	changes, err = events.IssueToken(events.Token{ID: id, Principal: name, Hash: hash, IssuedAt: time.Now()}, owner, time.Now())
	return token, id, appended(t, log, changes, err)
}

func TestARevocationCountsOnEveryNode(t *testing.T) {
	t.Parallel()
	log := natstest.Log(t)
	token, id, _ := issued(t, log, "ci", events.Grant{Role: events.RolePublisher, Images: "team-a-*"})
	// One that knew it from its start, and one that heard of it.
	nodes := []*access.Directory{running(t, access.DirectoryConfig{Log: log}), running(t, access.DirectoryConfig{Log: log})}
	second, _, sequence := issued(t, log, "ci-2")
	var principals []access.Principal
	for _, d := range nodes {
		if err := d.Wait(t.Context(), sequence); err != nil {
			t.Fatal(err)
		}
		p, err := d.Guard(nil).Authenticate(bearer(token))
		if err != nil || p.Name != "ci" || !p.May(events.RolePublisher, "team-a-1") || p.May(events.RolePublisher, "team-b-1") || p.MayServer(events.RoleReader) || !p.Alive() {
			t.Fatalf("%+v, %v", p, err)
		}
		principals = append(principals, p)
		if p, err := d.Guard(nil).Authenticate(bearer(second)); err != nil || p.Name != "ci-2" || p.MaySomewhere(events.RoleReader) {
			t.Fatalf("%+v, %v", p, err)
		}
	}
	// Not by a plain append: the use of the token may be recorded in between.
	sequence, err := log.Decide(t.Context(), jetstream.Cause{Actor: "admin"}, func(ctx context.Context) ([]events.Change, error) {
		current, err := log.Token(ctx, id)
		if err != nil {
			return nil, err
		}
		return events.RevokeToken(current, id, "admin", time.Now())
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, d := range nodes {
		if err := d.Wait(t.Context(), sequence); err != nil {
			t.Fatal(err)
		}
		if p, err := d.Guard(nil).Authenticate(bearer(token)); err == nil || problem.From(err).Status != http.StatusUnauthorized {
			t.Errorf("node %d lets in %+v, %v", i, p, err)
		}
		if principals[i].Alive() {
			t.Errorf("node %d keeps what began before the end", i)
		}
	}
	// And on one that starts later.
	if p, err := running(t, access.DirectoryConfig{Log: log}).Guard(nil).Authenticate(bearer(token)); err == nil {
		t.Errorf("a new node lets in %+v", p)
	}
}

func TestATokenEndsAtItsTime(t *testing.T) {
	t.Parallel()
	log, now := natstest.Log(t), time.Now().UTC()
	token, hash := access.NewToken()
	appended(t, log, []events.Change{{Fact: events.TokenIssued{Token: events.Token{ID: uuid.NewString(), Principal: events.AdminPrincipal, Hash: hash, IssuedAt: now, ExpiresAt: now.Add(time.Hour)}}}}, nil)
	var later atomic.Int64
	guard := running(t, access.DirectoryConfig{Log: log, Clock: func() time.Time { return now.Add(time.Duration(later.Load())) }}).Guard(nil)
	later.Store(int64(time.Hour - 1))
	p, err := guard.Authenticate(bearer(token))
	if err != nil || !p.Alive() {
		t.Fatalf("a moment before: %+v, %v", p, err)
	}
	later.Store(int64(time.Hour))
	if p, err := guard.Authenticate(bearer(token)); err == nil || problem.From(err).Status != http.StatusUnauthorized {
		t.Errorf("at its time: %+v, %v", p, err)
	}
	if p.Alive() {
		t.Error("what began before goes on")
	}
}

// A token may be narrower than its principal, and one in a path, which is easily seen by others, counts only if it does no more than read.
func TestATokenMayNoMoreThanItSays(t *testing.T) {
	t.Parallel()
	log, now := natstest.Log(t), time.Now().UTC()
	tokens := map[string]string{}
	for name, grants := range map[string][]events.Grant{"whole": nil, "narrow": {{Role: events.RoleReader, Images: "team-a-*"}}} {
		token, hash := access.NewToken()
		tokens[name] = token
		appended(t, log, []events.Change{{Fact: events.TokenIssued{Token: events.Token{ID: uuid.NewString(), Principal: events.AdminPrincipal, Hash: hash, Grants: grants, IssuedAt: now}}}}, nil)
	}
	guard := running(t, access.DirectoryConfig{Log: log}).Guard(nil)
	for name, narrow := range map[string]bool{"whole": false, "narrow": true} {
		p, err := guard.Authenticate(bearer(tokens[name]))
		if err != nil || !p.May(events.RoleReader, "team-a-1") || p.May(events.RoleReader, "team-b-1") == narrow || p.May(events.RolePublisher, "team-a-1") == narrow || p.MayServer(events.RoleReader) == narrow {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
		access.PathToken(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			p, err := guard.Authenticate(r)
			if narrow && (err != nil || !p.May(events.RoleReader, "team-a-1")) || !narrow && (err == nil || problem.From(err).Status != http.StatusNotFound) {
				t.Errorf("%s in a path: %+v, %v", name, p, err)
			}
		})).ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "https://host"+access.PathTokenBase+tokens[name]+"/streams/v1/index.json", nil))
	}
}

func TestARoleThatIsTakenIsGoneAtOnce(t *testing.T) {
	t.Parallel()
	log := natstest.Log(t)
	grant := events.Grant{Role: events.RoleOperator}
	token, _, _ := issued(t, log, "op", grant)
	d := running(t, access.DirectoryConfig{Log: log})
	before, err := d.Guard(nil).Authenticate(bearer(token))
	if err != nil || !before.MayServer(events.RoleOperator) {
		t.Fatalf("%+v, %v", before, err)
	}
	current, err := log.Principal(t.Context(), "op")
	if err != nil {
		t.Fatal(err)
	}
	changes, err := events.RevokeRole(current, "op", grant)
	if err := d.Wait(t.Context(), appended(t, log, changes, err)); err != nil {
		t.Fatal(err)
	}
	after, err := d.Guard(nil).Authenticate(bearer(token))
	if err != nil || after.MaySomewhere(events.RoleReader) || before.Alive() {
		t.Errorf("%+v, %v; what began before lives: %t", after, err, before.Alive())
	}
}

// An event of a newer release may be a revocation: who can't read it has to take it for one.
func TestWhatANewerReleaseSaysOfATokenEndsItHere(t *testing.T) {
	t.Parallel()
	log, nc := natstest.LogAndConn(t)
	token, id, _ := issued(t, log, "ci", events.Grant{Role: events.RoleReader})
	other, _, _ := issued(t, log, "ci-2", events.Grant{Role: events.RoleReader})
	d := running(t, access.DirectoryConfig{Log: log})
	if _, err := d.Guard(nil).Authenticate(bearer(token)); err != nil {
		t.Fatal(err)
	}
	msg := newerEvent(events.TokenEntity(id).Subject(), "imgsrv.token.revoked.v9")
	if _, err := nc.RequestMsg(msg, 5*time.Second); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(30 * time.Second)
	for {
		if _, err := d.Guard(nil).Authenticate(bearer(token)); err != nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the token is still good")
		}
		time.Sleep(5 * time.Millisecond) // a poll
	}
	if _, err := d.Guard(nil).Authenticate(bearer(other)); err != nil {
		t.Errorf("and so did another one's: %v", err)
	}
	// What comes after it is still followed.
	third, _, sequence := issued(t, log, "ci-3")
	if err := d.Wait(t.Context(), sequence); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Guard(nil).Authenticate(bearer(third)); err != nil {
		t.Error(err)
	}
}

// Also where the token is the one in admin.token, and where a principal has begun anew in between.
func TestWhatCantBeReadBringsNoOldRightsBack(t *testing.T) {
	t.Parallel()
	log, nc := natstest.LogAndConn(t)
	const first = "the token in admin.token"
	id, known := access.NewDirectory(access.DirectoryConfig{Logger: slog.New(slog.DiscardHandler)}).AddBuiltIn(first)
	if known {
		t.Fatal("known before anything happened")
	}
	token, _, _ := issued(t, log, "ci", events.Grant{Role: events.RoleReader})
	for subject, eventType := range map[string]string{events.TokenEntity(id).Subject(): "imgsrv.token.revoked.v9", events.PrincipalEntity("ci").Subject(): "imgsrv.principal.created.v9"} {
		if _, err := nc.RequestMsg(newerEvent(subject, eventType), 5*time.Second); err != nil {
			t.Fatal(err)
		}
	}
	granted, err := log.Append(t.Context(), jetstream.Cause{}, events.Change{Expect: lastOf(t, log, events.PrincipalEntity("ci")),
		Fact: events.PrincipalRoleGranted{Principal: events.Principal{Name: "ci", Grants: []events.Grant{{Role: events.RoleAdmin}}}}})
	if err != nil {
		t.Fatal(err)
	}
	d := running(t, access.DirectoryConfig{Log: log})
	if err := d.Wait(t.Context(), granted); err != nil {
		t.Fatal(err)
	}
	if _, known := d.AddBuiltIn(first); !known {
		t.Error("what a newer release said of the first token is forgotten")
	}
	for _, dead := range []string{first, token} {
		if p, err := d.Guard(nil).Authenticate(bearer(dead)); err == nil {
			t.Errorf("%q is let in: %+v", dead, p)
		}
	}
}

// lastOf is the sequence of an entity's last event, also one that can't be read.
func lastOf(t *testing.T, log *jetstream.Log, entity events.Entity) events.Sequence {
	t.Helper()
	head, err := log.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for sequence := head; sequence > 0; sequence-- {
		if event, ok, _ := log.At(t.Context(), sequence); ok && event.Subject == entity.Subject() {
			return sequence
		}
	}
	t.Fatalf("%s has no event", entity.ID)
	return 0
}

func TestTheDayOfATokensUseIsRecordedOnce(t *testing.T) {
	t.Parallel()
	log := natstest.Log(t)
	token, id, _ := issued(t, log, "ci")
	var mu sync.Mutex
	now := time.Date(2026, 11, 25, 23, 59, 0, 0, time.UTC)
	d := running(t, access.DirectoryConfig{Log: log, Clock: func() time.Time { mu.Lock(); defer mu.Unlock(); return now }})
	use := func() {
		t.Helper()
		if _, err := d.Guard(nil).Authenticate(bearer(token)); err != nil {
			t.Fatal(err)
		}
	}
	recorded := func(day string) events.Sequence {
		t.Helper()
		deadline := time.Now().Add(30 * time.Second)
		for {
			current, err := log.Token(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			if current.State.LastUsed.Format(time.DateOnly) == day {
				if err := d.Wait(t.Context(), current.Sequence); err != nil {
					t.Fatal(err)
				}
				return current.Sequence
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s is not recorded: %+v", day, current.State)
			}
			time.Sleep(5 * time.Millisecond) // a poll
		}
	}
	use()
	first := recorded("2026-11-25")
	use()
	use()
	mu.Lock()
	now = now.Add(2 * time.Minute)
	mu.Unlock()
	use()
	if second := recorded("2026-11-26"); second != first+1 {
		t.Errorf("recorded at %d and %d: two uses in between have left facts", first, second)
	}
}

func TestRightsInOneLine(t *testing.T) {
	t.Parallel()
	var nobody access.Principal
	reader := access.NewPrincipal("r", events.Grant{Role: events.RoleReader, Images: "b-*"}, events.Grant{Role: events.RolePublisher, Images: "a-*"})
	all := access.NewPrincipal("all", events.Grant{Role: events.RoleReader})
	if got := reader.Readable(); len(got) != 1 || !slices.Equal(got[0], []string{"a-*", "b-*"}) {
		t.Errorf("%v", got)
	}
	if len(nobody.Readable()) != 1 || len(nobody.Readable()[0]) != 0 || len(all.Readable()) != 0 {
		t.Errorf("%v, %v", nobody.Readable(), all.Readable())
	}
	if nobody.OnlyReads() || reader.OnlyReads() || !all.OnlyReads() {
		t.Error("only all reads and nothing else")
	}
}
