package webhooks

import (
	"encoding/base64"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// The example that the libraries of Standard Webhooks are tested with.
func TestSignatureOfTheKnownExample(t *testing.T) {
	t.Parallel()
	secret, err := base64.StdEncoding.DecodeString("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
	if err != nil {
		t.Fatal(err)
	}
	got := sign(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", time.Unix(1614265330, 0), []byte(`{"test": 2432232314}`))
	if want := "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="; got != want {
		t.Errorf("signature %s, want %s", got, want)
	}
}

// Header values are ASCII without spaces, and receivers get back what was meant.
func TestHeaderValuesSurviveTheirEncoding(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		value := rapid.String().Draw(t, "value")
		encoded := escapeHeader(value)
		var decoded []byte
		for i := 0; i < len(encoded); i++ {
			switch c := encoded[i]; {
			case c <= ' ' || c >= 0x7f || c == '"':
				t.Fatalf("%q in %q", c, encoded)
			case c == '%':
				decoded = append(decoded, unhex(encoded[i+1])<<4|unhex(encoded[i+2]))
				i += 2
			default:
				decoded = append(decoded, c)
			}
		}
		if string(decoded) != value {
			t.Errorf("%q became %q", value, decoded)
		}
	})
}

func unhex(c byte) byte {
	if c >= 'A' {
		return c - 'A' + 10
	}
	return c - '0'
}

// The schedule lasts about a day.
func TestTheAttemptsSpanADay(t *testing.T) {
	t.Parallel()
	var total time.Duration
	for _, p := range pauses() {
		total += p
	}
	if total < 22*time.Hour || total > 26*time.Hour {
		t.Errorf("the attempts span %s", total)
	}
}
