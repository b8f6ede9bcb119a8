package limits

import (
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/access"
	"github.com/imgsrv/imgsrv/handlers/problem"
)

const (
	// maxBuckets bounds the principals, and the addresses, whose rate is known at once: about 4 MB of each.
	maxBuckets = 16 << 10

	// Wrong credentials cost a client more: an honest one has them right, or stops after a few.
	failuresPerSecond = 1
	failuresBurst     = 30
)

// RequestsConfig says how many requests a client may make.
type RequestsConfig struct {
	PerSecond float64 // in the long run, for each principal and for each anonymous address; 0: no limit
	Burst     int     // at once; 0: those of one second
	// Exempt are addresses from which nobody anonymous and no admin is limited: this machine's own by rights, since
	// who is on it can do worse, and a proxy there counts clients by itself.
	Exempt []netip.Prefix
	// Free are paths that are never limited: probes.
	Free []string
	// Chunks begins the paths under which publishers may send any number of PATCHes.
	Chunks   string
	Refusals *Refusals
	Log      *slog.Logger
	Clock    func() time.Time // nil: time.Now
}

// Requests limits requests on one node. The nil Requests limits nothing.
type Requests struct {
	cfg        RequestsConfig
	principals *buckets
	addresses  *buckets
	failures   *buckets
}

// NewRequests is nil, no limit, for a rate of 0.
func NewRequests(cfg RequestsConfig) *Requests {
	if cfg.PerSecond <= 0 {
		return nil
	}
	if cfg.Burst <= 0 {
		cfg.Burst = max(1, int(cfg.PerSecond))
	}
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	return &Requests{cfg: cfg, principals: newBuckets(cfg.PerSecond, cfg.Burst, maxBuckets), addresses: newBuckets(cfg.PerSecond, cfg.Burst, maxBuckets),
		failures: newBuckets(failuresPerSecond, failuresBurst, maxBuckets)}
}

// Middleware answers a request over the limit with 429. It stands in front of all routes and asks by itself who makes
// the request, rather than behind each route's own authentication: so no route, mounted handler or path without a
// route can be forgotten. What it finds out the routes' own authentication finds in the context. It judges nothing else: a
// wrong token is passed on, and refused by the route, or is no matter to it.
func (l *Requests) Middleware(who func(*http.Request) (access.Principal, error)) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		if l == nil {
			return next
		}
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			principal, err := who(r)
			if refused := l.admit(r, principal, err); refused != nil {
				problem.Write(w, r.WithContext(access.With(r.Context(), principal)), l.cfg.Log, refused)
				return
			}
			next.ServeHTTP(w, r.WithContext(access.Authenticated(r.Context(), principal, err)))
		})
	}
}

func (l *Requests) admit(r *http.Request, principal access.Principal, authentication error) error {
	for _, path := range l.cfg.Free {
		if r.URL.Path == path {
			return nil
		}
	}
	address := clientAddress(r.RemoteAddr)
	limit, of, key := requestRate, l.principals, principal.Name
	switch {
	case authentication != nil: // also where it is a 404 for a token in a path, or can't be told now: what is made up costs as much
		limit, of, key = wrongCredentials, l.failures, bucketKey(address, r.RemoteAddr)
	case principal.Name == "":
		of, key = l.addresses, bucketKey(address, r.RemoteAddr)
	case r.Method == http.MethodPatch && strings.HasPrefix(r.URL.Path, l.cfg.Chunks) && principal.MaySomewhere(events.RolePublisher):
		// A tus client may send many: the number of those at once is limited, and each is paid for with its bytes.
		return nil
	}
	if (principal.Name == "" || principal.MayServer(events.RoleAdmin)) && l.exempt(address) {
		return nil
	}
	wait, ok := of.take(key, l.cfg.Clock())
	if ok {
		return nil
	}
	l.cfg.Refusals.note(r.Context(), limit, key)
	text := "there were too many requests from here: come back when Retry-After says"
	if limit == wrongCredentials {
		text = "there were too many requests from here with credentials that aren't right: mend them, and come back when Retry-After says"
	}
	return problem.New(problem.CodeTooManyRequests, text).After(wait)
}

func (l *Requests) exempt(address netip.Addr) bool {
	for _, prefix := range l.cfg.Exempt {
		if prefix.Contains(address) {
			return true
		}
	}
	return false
}

// clientAddress is the address of host:port; the zero Addr where it is none, as on a unix socket.
func clientAddress(remote string) netip.Addr {
	host, _, err := net.SplitHostPort(remote)
	if err != nil {
		host = remote
	}
	address, err := netip.ParseAddr(host)
	if err != nil {
		return netip.Addr{}
	}
	return address.Unmap().WithZone("")
}

// bucketKey is the address, of IPv6 its /64: a single host has that many.
func bucketKey(address netip.Addr, remote string) string {
	switch {
	case !address.IsValid():
		return remote
	case address.Is6():
		if prefix, err := address.Prefix(64); err == nil {
			return prefix.String()
		}
	}
	return address.String()
}

// ParseExempt reads CIDR prefixes and single addresses.
func ParseExempt(texts []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, text := range texts {
		if text == "" {
			continue
		}
		if !strings.Contains(text, "/") {
			address, err := netip.ParseAddr(text)
			if err != nil {
				return nil, errors.New(text + " is neither an address nor a CIDR prefix such as 10.0.0.0/8")
			}
			out = append(out, netip.PrefixFrom(address.Unmap(), address.Unmap().BitLen()))
			continue
		}
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, errors.New(text + " is neither an address nor a CIDR prefix such as 10.0.0.0/8")
		}
		out = append(out, prefix.Masked())
	}
	return out, nil
}
