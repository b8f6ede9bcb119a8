package webhooks_test

import (
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/webhooks"
)

func TestTargetsThatAreNotPublicAreRefused(t *testing.T) {
	t.Parallel()
	cases := []struct {
		url   string
		allow string // "" for nothing, parts by a space
		ok    bool
	}{
		{"https://8.8.8.8/", "", true},
		{"https://[2606:4700:4700::1111]/", "", true},
		{"http://8.8.8.8/", "", false}, // without TLS
		{"http://8.8.8.8/", "8.8.8.8", true},
		{"https://127.0.0.1/", "", false},
		{"https://127.8.9.10/", "", false},
		{"https://localhost/", "", false},
		{"https://LOCALHOST./", "", false},
		{"https://0.0.0.0/", "", false},
		{"https://10.1.2.3/", "", false},
		{"https://172.16.0.1/", "", false},
		{"https://172.32.0.1/", "", true},
		{"https://192.168.1.1/", "", false},
		{"https://169.254.169.254/latest/meta-data/", "", false},
		{"https://100.64.0.1/", "", false},
		{"https://100.100.100.200/", "", false}, // metadata of a cloud, in CGNAT's range
		{"https://192.0.0.192/", "", false},
		{"https://198.18.0.1/", "", false},
		{"https://203.0.113.5/", "", false},
		{"https://224.0.0.1/", "", false},
		{"https://255.255.255.255/", "", false},
		{"https://[::]/", "", false},
		{"https://[::1]/", "", false},
		{"https://[fe80::1]/", "", false},
		{"https://[fe80::1%25lo]/", "", false},
		{"https://[fd00:ec2::254]/", "", false},
		{"https://[ff02::1]/", "", false},
		{"https://[::ffff:10.0.0.1]/", "", false},    // mapped
		{"https://[::10.0.0.1]/", "", false},         // compatible
		{"https://[64:ff9b::a00:1]/", "", false},     // NAT64 of 10.0.0.1
		{"https://[2002:a00:1::1]/", "", false},      // 6to4 of 10.0.0.1
		{"https://[2001:0:a00:1::1]/", "", false},    // Teredo
		{"https://[2001:db8::1]/", "", false},        // documentation
		{"https://2130706433/", "", false},           // 127.0.0.1, if anybody resolves it
		{"https://0x7f.1/", "", false},               // the same
		{"https://no-such-host.invalid/", "", false}, // RFC 2606
		{"https://127.0.0.1:9000/", "127.0.0.0/8", true},
		{"http://127.0.0.1:9000/", "127.0.0.0/8", true},
		{"http://127.0.0.1:9000/", "127.0.0.1:9000", true},
		{"http://127.0.0.1:9001/", "127.0.0.1:9000", false},
		{"http://127.0.0.1/", "127.0.0.1:80", true},
		{"http://[::1]:9000/", "[::1]:9000", true},
		{"http://[::1]:9000/", "::1", true},
		{"http://localhost:9000/", "localhost", true},
		{"http://localhost:9000/", "LocalHost:9000", true},
		{"https://10.1.2.3/", "192.168.0.0/16 10.0.0.0/8", true},
		{"https://11.0.0.1.nip.invalid/", "10.0.0.0/8", false},
	}
	for _, c := range cases {
		t.Run(c.url+" "+c.allow, func(t *testing.T) {
			t.Parallel()
			targets, err := webhooks.ParseTargets(strings.Fields(c.allow))
			if err != nil {
				t.Fatal(err)
			}
			err = targets.Check(t.Context(), c.url)
			if c.ok && err != nil || !c.ok && !events.IsCode(err, events.CodeInvalid) {
				t.Errorf("error %v, want ok: %v", err, c.ok)
			}
		})
	}
}

func TestAllowedTargetsThatCantBeMeantAreAnError(t *testing.T) {
	t.Parallel()
	for _, entry := range []string{"", "10.0.0.0/33", "hooks/internal", "*.internal", "two hosts", "http://x"} {
		if _, err := webhooks.ParseTargets([]string{entry}); err == nil {
			t.Errorf("%q is taken", entry)
		}
	}
}

// What was allowed when the webhook was added, or was a public address then, may be another by now.
func TestTheAddressThatIsDialledIsChecked(t *testing.T) {
	t.Parallel()
	for name, host := range map[string]string{"by address": "127.0.0.1", "by name": "localhost"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newReceiver(t)
			s := newSite(t, quick, func(c *webhooks.Config) {
				targets, err := webhooks.ParseTargets(nil)
				if err != nil {
					t.Fatal(err)
				}
				c.Targets = targets
			})
			_, port, err := net.SplitHostPort(r.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			for _, scheme := range []string{"http", "https"} {
				hook, _ := s.add(events.Webhook{URL: scheme + "://" + net.JoinHostPort(host, port)})
				sequence := s.move("a", scheme)
				if d := s.delivery(hook, sequence, events.DeliveryDead); !strings.Contains(d.Error, "no public address") {
					t.Errorf("%s: %+v", scheme, d)
				}
			}
			select {
			case <-r.requests:
				t.Error("the receiver got it")
			default:
			}
		})
	}
}

func TestARedirectIsNotFollowed(t *testing.T) {
	t.Parallel()
	s, inner := newSite(t, quick), newReceiver(t)
	front := httptest.NewServer(http.RedirectHandler(inner.URL, http.StatusTemporaryRedirect))
	t.Cleanup(front.Close)
	hook, _ := s.add(events.Webhook{URL: front.URL})
	sequence := s.move("a", "x")
	if d := s.delivery(hook, sequence, events.DeliveryDead); d.Status != 307 || !strings.Contains(d.Error, "redirects are not followed") {
		t.Errorf("delivery %+v", d)
	}
	select {
	case <-inner.requests:
		t.Error("the redirect was followed")
	default:
	}
}
