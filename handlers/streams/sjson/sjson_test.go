package sjson_test

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/google/go-cmp/cmp"

	"github.com/imgsrv/imgsrv/handlers/streams/sjson"
	"github.com/imgsrv/imgsrv/internal/testtool"
)

var changed = time.Now().Add(-24 * time.Hour)

// gpgv checks a clear-signed document with a key, and gives its text.
func gpgv(t *testing.T, publicKey, document []byte) (text, said string, err error) {
	t.Helper()
	block, err := armor.Decode(bytes.NewReader(publicKey))
	if err != nil {
		t.Fatal(err)
	}
	var ring bytes.Buffer
	if _, err := ring.ReadFrom(block.Body); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, data := range map[string][]byte{"ring.gpg": ring.Bytes(), "document": document} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	command := exec.CommandContext(t.Context(), "gpgv", "--homedir", dir, "--keyring", filepath.Join(dir, "ring.gpg"), "--output", filepath.Join(dir, "text"), filepath.Join(dir, "document"))
	out, err := command.CombinedOutput()
	if err != nil {
		return "", string(out), err
	}
	plain, err := os.ReadFile(filepath.Join(dir, "text"))
	return string(plain), string(out), err
}

func TestGpgvTakesWhatWasSignedAndNothingElse(t *testing.T) {
	t.Parallel()
	testtool.Need(t, "gpgv")
	path := filepath.Join(t.TempDir(), "streams.key")
	signer, made, err := sjson.Load(path)
	if err != nil || !made {
		t.Fatalf("made %v, %v", made, err)
	}
	const document = "{\n \"a\": \"b\",\n- dashed\n}"
	signed, err := signer.Sign([]byte(document), changed)
	if err != nil {
		t.Fatal(err)
	}
	text, said, err := gpgv(t, signer.PublicKey(), signed)
	if err != nil || strings.TrimRight(text, "\n") != document {
		t.Errorf("gpgv: %v, text %q\n%s", err, text, said)
	}
	if _, said, err := gpgv(t, signer.PublicKey(), bytes.Replace(signed, []byte(`"b"`), []byte(`"c"`), 1)); err == nil {
		t.Errorf("gpgv takes a changed document:\n%s", said)
	}
	other, _, err := sjson.Load(filepath.Join(t.TempDir(), "other.key"))
	if err != nil {
		t.Fatal(err)
	}
	if _, said, err := gpgv(t, other.PublicKey(), signed); err == nil {
		t.Errorf("gpgv takes another key:\n%s", said)
	}
	// Another node with the same file says the same bytes.
	again, made, err := sjson.Load(path)
	if err != nil || made {
		t.Fatalf("the second time: made %v, %v", made, err)
	}
	if repeated, err := again.Sign([]byte(document), changed); err != nil || !bytes.Equal(repeated, signed) {
		t.Errorf("signed twice, the bytes differ (%v)", err)
	}
}

func TestAKeyOfGnuPGSigns(t *testing.T) {
	t.Parallel()
	testtool.Need(t, "gpg", "gpgv", "gpgconf")
	home, err := os.MkdirTemp("", "gpg") // short: the agent's socket is in it
	if err != nil {
		t.Fatal(err)
	}
	gpg := func(args ...string) []byte {
		t.Helper()
		var out, errs bytes.Buffer
		command := exec.CommandContext(t.Context(), "gpg", append([]string{"--homedir", home, "--batch", "--armor", "--pinentry-mode", "loopback", "--passphrase"}, args...)...)
		command.Stdout, command.Stderr = &out, &errs
		if err := command.Run(); err != nil {
			t.Fatalf("gpg %v: %v\n%s", args, err, errs.String())
		}
		return out.Bytes()
	}
	t.Cleanup(func() {
		if out, err := exec.Command("gpgconf", "--homedir", home, "--kill", "all").CombinedOutput(); err != nil {
			t.Errorf("stop gpg-agent: %v\n%s", err, out)
		}
		_ = os.RemoveAll(home)
	})
	gpg("", "--quick-generate-key", "plain@example.org", "rsa2048", "sign", "never")
	gpg("secret", "--quick-generate-key", "locked@example.org", "ed25519", "sign", "never")
	file := func(name string, key []byte) string {
		path := filepath.Join(home, name)
		if err := os.WriteFile(path, key, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	signer, made, err := sjson.Load(file("plain", gpg("", "--export-secret-keys", "plain@example.org")))
	if err != nil || made {
		t.Fatalf("made %v, %v", made, err)
	}
	// The document is older than the key: the signature may not be.
	signed, err := signer.Sign([]byte("{}"), changed)
	if err != nil {
		t.Fatal(err)
	}
	if text, said, err := gpgv(t, gpg("", "--export", "plain@example.org"), signed); err != nil || strings.TrimSpace(text) != "{}" {
		t.Errorf("gpgv with the exported public key: %v, %q\n%s", err, text, said)
	}
	for path, want := range map[string]string{
		file("locked", gpg("secret", "--export-secret-keys", "locked@example.org")): "passphrase",
		file("public", gpg("", "--export", "plain@example.org")):                    "secret part",
		file("several", gpg("", "--export")):                                        "not one",
		file("none", []byte("hello\n")):                                             "not one",
	} {
		if _, _, err := sjson.Load(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
}

func TestASignedIndexLeadsToSignedDocuments(t *testing.T) {
	t.Parallel()
	got, err := sjson.Index([]byte(`{"index":{"images":{"datatype":"image-downloads","path":"streams/v1/images.json","products":["a:b"],"later":1}},"format":"index:1.0"}`))
	if err != nil {
		t.Fatal(err)
	}
	var index any
	if err := json.Unmarshal(got, &index); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{"format": "index:1.0", "index": map[string]any{"images": map[string]any{"datatype": "image-downloads",
		"path": "streams/v1/images.sjson", "products": []any{"a:b"}, "later": 1.0}}}
	if diff := cmp.Diff(any(want), index); diff != "" {
		t.Error(diff)
	}
	for _, bad := range []string{"", "[]", `{"index":[]}`, `{"index":{"a":{}}}`} {
		if got, err := sjson.Index([]byte(bad)); err == nil {
			t.Errorf("of %q an index is made: %s", bad, got)
		}
	}
}
