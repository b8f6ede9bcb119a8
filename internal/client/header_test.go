package client

import (
	"encoding/hex"
	"net/http"
	"strings"
	"testing"
)

func TestContentRange(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		in           string
		first, total int64
		ok           bool
	}{
		{"bytes 0-0/1", 0, 1, true},
		{"bytes 10-19/20", 10, 20, true},
		{"bytes 10-19/*", 10, -1, true},
		{"bytes */20", 0, 0, false},
		{"bytes 10-19/15", 0, 0, false},
		{"bytes 19-10/20", 0, 0, false},
		{"bytes -1-3/20", 0, 0, false},
		{"bytes 1-99999999999999999999/*", 0, 0, false},
		{"items 0-0/1", 0, 0, false},
		{"", 0, 0, false},
	} {
		first, total, ok := contentRange(c.in)
		if first != c.first || total != c.total || ok != c.ok {
			t.Errorf("%q: got %d, %d, %v", c.in, first, total, ok)
		}
	}
}

func TestReprDigest(t *testing.T) {
	t.Parallel()
	// The SHA-256 of no bytes.
	const value, want = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	for _, c := range []struct{ in, want string }{
		{"sha-256=:" + value + ":", want},
		{"sha-512=:AAAA:, sha-256=:" + value + ":", want},
		{"sha-256=:" + value, ""},
		{"sha-256=:AAAA:", ""},
		{"sha-256=" + value, ""},
		{"sha-256", ""},
		{"", ""},
	} {
		if got := reprDigest(http.Header{"Repr-Digest": {c.in}}); got != c.want {
			t.Errorf("%q: got %q, want %q", c.in, got, c.want)
		}
	}
}

func FuzzContentRange(f *testing.F) {
	for _, seed := range []string{"bytes 0-0/1", "bytes 5-9/*", "bytes */7", "bytes 5-4/9"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, value string) {
		first, total, ok := contentRange(value)
		if !ok {
			return
		}
		if first < 0 || total < -1 || total >= 0 && first >= total {
			t.Errorf("%q gives first byte %d of %d", value, first, total)
		}
		if _, _, ok := contentRange(strings.Replace(value, "bytes", "items", 1)); ok {
			t.Errorf("%q was taken with another unit", value)
		}
	})
}

func FuzzReprDigest(f *testing.F) {
	f.Add("sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:")
	f.Add("sha-512=:AAAA:, SHA-256=:AAAA:")
	f.Fuzz(func(t *testing.T, value string) {
		got := reprDigest(http.Header{"Repr-Digest": {value}})
		if sum, err := hex.DecodeString(got); err != nil || got != "" && len(sum) != sumBytes {
			t.Errorf("%q gives %q", value, got)
		}
	})
}
