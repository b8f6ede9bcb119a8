package catalog

import (
	"encoding/base64"
	"errors"
	"testing"
	"time"
)

func TestCursorsThatNoPageGaveAreRefused(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"no base64":        "%%%",
		"padding":          base64.URLEncoding.EncodeToString([]byte("1 ab")),
		"no tie-breaker":   base64.RawURLEncoding.EncodeToString([]byte("17")),
		"no number":        base64.RawURLEncoding.EncodeToString([]byte("x 1")),
		"before the years": base64.RawURLEncoding.EncodeToString([]byte("-9223372036854775808 1")),
		"after the years":  base64.RawURLEncoding.EncodeToString([]byte("9223372036854775807 1")),
		"character 0":      base64.RawURLEncoding.EncodeToString([]byte("1 \x00")),
		"no UTF-8":         base64.RawURLEncoding.EncodeToString([]byte("1 \xff")),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got, err := parseCursor(text); !errors.Is(err, ErrBadCursor) {
				t.Errorf("parseCursor(%q) = %+v, %v, want ErrBadCursor", text, got, err)
			}
		})
	}
}

func FuzzParseCursor(f *testing.F) {
	f.Add(cursor{at: time.Date(2026, 1, 1, 0, 0, 0, 1000, time.UTC), tie: "42"}.String())
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		parsed, err := parseCursor(text)
		if err != nil {
			if !errors.Is(err, ErrBadCursor) {
				t.Fatalf("parseCursor(%q): %v, want ErrBadCursor", text, err)
			}
			return
		}
		again, err := parseCursor(parsed.String())
		if err != nil || !again.at.Equal(parsed.at) || again.tie != parsed.tie {
			t.Fatalf("parseCursor(%q) = %+v, which comes back as %+v, %v", text, parsed, again, err)
		}
	})
}
