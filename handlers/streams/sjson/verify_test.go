package sjson_test

import (
	"bytes"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/imgsrv/imgsrv/handlers/streams/sjson"
)

func TestOnlyWhatTheKeySignedIsOpened(t *testing.T) {
	t.Parallel()
	signer, _, err := sjson.Load(filepath.Join(t.TempDir(), "a.asc"))
	if err != nil {
		t.Fatal(err)
	}
	other, _, err := sjson.Load(filepath.Join(t.TempDir(), "b.asc"))
	if err != nil {
		t.Fatal(err)
	}
	document := []byte("{\"a\": \"b\"}\n")
	signed, err := signer.Sign(document, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := sjson.NewVerifier(string(signer.PublicKey()))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := verifier.Open(signed); err != nil || !bytes.Equal(bytes.TrimSpace(got), bytes.TrimSpace(document)) {
		t.Errorf("opened %q, %v", got, err)
	}
	by, err := other.Sign(document, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string][]byte{"another key's": by, "changed": bytes.Replace(signed, []byte(`"b"`), []byte(`"c"`), 1), "unsigned": document, "empty": nil} {
		if got, err := verifier.Open(bad); !errors.Is(err, sjson.ErrSignature) || got != nil {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}
