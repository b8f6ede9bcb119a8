// Package targets says where imgsrv may connect to by itself, on somebody's word: to public addresses by https, and to what
// the operator has named. It must not know what for.
package targets

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"syscall"
	"time"

	"github.com/imgsrv/imgsrv/events"
)

const (
	dialTimeout   = 10 * time.Second
	lookupTimeout = 5 * time.Second
)

// Targets are public addresses by https, and what the operator has named.
type Targets struct {
	flag     string // of the server, that names further ones
	prefixes []netip.Prefix
	hosts    []hostPort
}

// hostPort is a host by the name that URLs have for it; port "" means any.
type hostPort struct{ host, port string }

// Parse reads what a flag of the server names: addresses, CIDR prefixes, HOST or HOST:PORT. The flag, such as
// --webhook-allow, is for the texts of refusals.
func Parse(flag string, allow []string) (*Targets, error) {
	t := &Targets{flag: flag}
	for _, entry := range allow {
		if strings.Contains(entry, "/") {
			prefix, err := netip.ParsePrefix(entry)
			if err != nil {
				return nil, fmt.Errorf("%q is neither a CIDR prefix nor a host: give 10.0.0.0/8, hooks.internal or hooks.internal:9000", entry)
			}
			t.prefixes = append(t.prefixes, prefix.Masked())
			continue
		}
		host, port, err := net.SplitHostPort(entry)
		if err != nil {
			host, port = strings.Trim(entry, "[]"), ""
		}
		if host == "" || strings.ContainsAny(host, " @*") {
			return nil, fmt.Errorf("%q is neither a CIDR prefix nor a host: give 10.0.0.0/8, hooks.internal or hooks.internal:9000", entry)
		}
		if addr, err := netip.ParseAddr(host); err == nil && port == "" {
			addr = addr.Unmap().WithZone("")
			t.prefixes = append(t.prefixes, netip.PrefixFrom(addr, addr.BitLen()))
			continue
		}
		t.hosts = append(t.hosts, hostPort{canonicalHost(host), port})
	}
	return t, nil
}

func canonicalHost(host string) string {
	if addr, err := netip.ParseAddr(host); err == nil {
		return addr.Unmap().WithZone("").String()
	}
	return strings.TrimSuffix(strings.ToLower(host), ".")
}

// named says whether the operator has named the host itself, whatever it resolves to.
func (t *Targets) named(host, port string) bool {
	host = canonicalHost(host)
	for _, h := range t.hosts {
		if h.host == host && (h.port == "" || h.port == port) {
			return true
		}
	}
	return false
}

// refused is why an address can't be a target; "" where it can. plain is an unencrypted connection.
func (t *Targets) refused(addr netip.Addr, plain bool) string {
	addr = addr.Unmap().WithZone("")
	for _, prefix := range t.prefixes {
		if prefix.Contains(addr) {
			return ""
		}
	}
	switch {
	case !isPublic(addr):
		return fmt.Sprintf("%s is no public address: where this is meant, the server is started with %s", addr, t.flag)
	case plain:
		return "imgsrv connects by https, and by http only to what " + t.flag + " of the server names"
	}
	return ""
}

// Check refuses a URL that leads where it may not, as far as that can be known now. The
// refusal is an [*events.Error].
func (t *Targets) Check(ctx context.Context, raw string) error {
	u, err := url.Parse(raw)
	if err != nil {
		return refuseURL("the URL can't be read")
	}
	host, plain := u.Hostname(), u.Scheme != "https"
	if t.named(host, portOf(u)) {
		return nil
	}
	addrs := []netip.Addr{}
	if addr, err := netip.ParseAddr(host); err == nil {
		addrs = append(addrs, addr)
	} else {
		ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
		defer cancel()
		if addrs, err = net.DefaultResolver.LookupNetIP(ctx, "ip", host); err != nil || len(addrs) == 0 {
			return refuseURL(fmt.Sprintf("the host %s has no address", host))
		}
	}
	for _, addr := range addrs {
		if why := t.refused(addr, plain); why != "" {
			return refuseURL(why)
		}
	}
	return nil
}

func refuseURL(why string) error {
	return &events.Error{Code: events.CodeInvalid, Text: "url: " + why, Fields: []events.FieldError{{Field: "url", Text: why}}}
}

func portOf(u *url.URL) string {
	switch {
	case u.Port() != "":
		return u.Port()
	case u.Scheme == "https":
		return "443"
	}
	return "80"
}

// Dialer connects to targets and to nothing else: the check is of the very address that is dialled.
func (t *Targets) Dialer(plain bool) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		d := net.Dialer{Timeout: dialTimeout}
		if host, port, err := net.SplitHostPort(address); err != nil || !t.named(host, port) {
			d.Control = func(_, resolved string, _ syscall.RawConn) error {
				to, err := netip.ParseAddrPort(resolved)
				if err != nil {
					return fmt.Errorf("refused: %w", err)
				}
				if why := t.refused(to.Addr(), plain); why != "" {
					return fmt.Errorf("refused: %s", why)
				}
				return nil
			}
		}
		return d.DialContext(ctx, network, address)
	}
}

// special are the networks of IANA's special-purpose registries (RFC 6890 and its successors) and the IPv6 ranges
// that embed an IPv4 address, behind which any private one may hide.
var special = prefixes(
	"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24",
	"192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24",
	"203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
	"2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20",
)

// global is the part of IPv6 that is given out for use in the internet; unique local, link-local, multicast, NAT64
// and mapped addresses are outside of it.
var global = netip.MustParsePrefix("2000::/3")

func prefixes(list ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(list))
	for i, s := range list {
		out[i] = netip.MustParsePrefix(s)
	}
	return out
}

// isPublic takes an address without zone that isn't a mapped one.
func isPublic(addr netip.Addr) bool {
	if addr.Is6() && !global.Contains(addr) {
		return false
	}
	for _, prefix := range special {
		if prefix.Contains(addr) {
			return false
		}
	}
	return addr.IsValid()
}
