package selfsigned

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestACertificateIsKeptUntilItIsAboutToEnd(t *testing.T) {
	t.Parallel()
	dir, now := filepath.Join(t.TempDir(), "tls"), time.Now()
	names := []string{"localhost", "127.0.0.1", "::1", "images.example"}
	first, made, err := Load(dir, names, now)
	if err != nil || !made {
		t.Fatalf("first Load: made %v, error %v", made, err)
	}
	for _, name := range names {
		if err := first.Leaf.VerifyHostname(name); err != nil {
			t.Errorf("the certificate is not for %s: %v", name, err)
		}
	}
	if info, err := os.Stat(filepath.Join(dir, "key.pem")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key's mode is %v (%v), want 0600", info.Mode(), err)
	}
	second, made, err := Load(dir, names, now.Add(24*time.Hour))
	if err != nil || made || !bytes.Equal(first.Certificate[0], second.Certificate[0]) {
		t.Errorf("a day later: made %v, error %v, want the same certificate", made, err)
	}
	for what, change := range map[string]func() (bool, error){
		"near its end": func() (bool, error) { _, made, err := Load(dir, names, now.Add(validity-renewal/2)); return made, err },
		"another name": func() (bool, error) { _, made, err := Load(dir, append(names, "other"), now); return made, err },
	} {
		if made, err := change(); err != nil || !made {
			t.Errorf("%s: made %v, error %v, want a new certificate", what, made, err)
		}
	}
}

func TestAnUnreadableCertificateIsAnErrorWithARemedy(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, name := range []string{"cert.pem", "key.pem"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("not PEM"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := Load(dir, []string{"localhost"}, time.Now()); err == nil {
		t.Fatal("no error")
	}
}
