package mirrors

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/access"
)

func TestWhatIsSecretInAnAddressIsTakenOut(t *testing.T) {
	t.Parallel()
	token, _ := access.NewToken()
	for address, want := range map[string]struct {
		open      string
		secret    bool
		wholePath bool
	}{
		"https://images.example.org":                        {"https://images.example.org", false, false},
		"https://images.example.org/r/stable":               {"https://images.example.org/r/stable", false, false},
		"https://user:pass@images.example.org:8443/a/b":     {"https://images.example.org:8443/a/b", true, false},
		"https://user@images.example.org":                   {"https://images.example.org", true, false},
		"https://images.example.org/r/" + token:             {"https://images.example.org", true, false},
		"https://images.example.org/%72/" + token + "/":     {"https://images.example.org", true, false},
		"https://example.org/images/r/" + token:             {"https://example.org", true, false},
		"https://example.org/imgsrv_images":                 {"https://example.org/imgsrv_images", false, false},
		"https://u:p@images.example.org/" + "secret/images": {"https://images.example.org", true, true},
		"https://images.example.org/secret":                 {"https://images.example.org", true, true},
		"https://images.example.org/":                       {"https://images.example.org", false, true},
	} {
		if open, secret := Split(address, want.wholePath); open != want.open || secret != want.secret {
			t.Errorf("%s: %s, secret %v, want %+v", address, open, secret, want)
		}
	}
}

func TestCredentialsAreKeptForTheServerAlone(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "mirror-credentials")
	c := NewCredentials(dir)
	const address = "https://user:pass@images.example.org/r/x"
	id, err := c.Keep(address)
	if err != nil {
		t.Fatal(err)
	}
	for path, mode := range map[string]os.FileMode{dir: 0o700 | os.ModeDir, filepath.Join(dir, id): 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode() != mode {
			t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
	}
	mirror := events.Mirror{URL: "https://images.example.org/r/x", CredentialsID: id}
	if got, err := c.address(mirror); err != nil || got != address {
		t.Errorf("address %q, %v", got, err)
	}
	other := mirror
	other.URL = "https://elsewhere.example.org"
	if got, err := c.address(other); err == nil {
		t.Errorf("the credentials of one server for another: %q", got)
	}
	other.CredentialsID = "../../etc/passwd"
	if _, err := c.address(other); err == nil {
		t.Error("a name that leads elsewhere was read")
	}

	// A file that no mirror names goes, once an event could have come.
	if err := c.sweep(nil, time.Now()); err != nil {
		t.Fatal(err)
	}
	if _, err := c.address(mirror); err != nil {
		t.Errorf("swept at once: %v", err)
	}
	later := time.Now().Add(2 * orphanAge)
	if err := c.sweep([]events.Mirror{mirror}, later); err != nil {
		t.Fatal(err)
	}
	if _, err := c.address(mirror); err != nil {
		t.Errorf("swept although a mirror needs it: %v", err)
	}
	if err := c.sweep(nil, later); err != nil {
		t.Fatal(err)
	}
	if _, err := c.address(mirror); err == nil || !strings.Contains(err.Error(), id) {
		t.Errorf("after the sweep: %v", err)
	}
}

func TestSecretsAreTakenOutOfTexts(t *testing.T) {
	t.Parallel()
	scrub := scrubber("https://user:p%40ssword@images.example.org/r/imgsrv_0123456789abcdef/x")
	for _, text := range []string{"it says p@ssword", "it says p%40ssword", "to https://user:p%40ssword@images.example.org/r/imgsrv_0123456789abcdef/x", "/r/imgsrv_0123456789abcdef/streams"} {
		if got := scrub.Replace(text); strings.Contains(got, "ssword") || strings.Contains(got, "0123456789abcdef") {
			t.Errorf("%s becomes %s", text, got)
		}
	}
	if got := scrubber("https://only%40token@images.example.org").Replace("only@token and only%40token"); strings.Contains(got, "token") {
		t.Errorf("a token in the place of the user: %s", got)
	}
}
