package provenance_test

import (
	"encoding/base64"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"aead.dev/minisign"
	"github.com/google/go-cmp/cmp"

	"github.com/imgsrv/imgsrv/internal/provenance"
	"github.com/imgsrv/imgsrv/internal/testtool"
)

var (
	one = strings.Repeat("1", 64)
	two = strings.Repeat("a2", 32)
	at  = time.Date(2026, 11, 24, 21, 26, 54, 123456789, time.FixedZone("east", 7200))
)

func TestChecksumsAreSortedAndReadAgain(t *testing.T) {
	t.Parallel()
	sums := provenance.Checksums([]provenance.File{{Name: "b", SHA256: one}, {Name: "a", SHA256: two}})
	if want := two + "  a\n" + one + "  b\n"; string(sums) != want {
		t.Errorf("checksums %q, want %q", sums, want)
	}
	got, err := provenance.ParseChecksums(sums)
	if diff := cmp.Diff(map[string]string{"a": two, "b": one}, got); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
	for _, bad := range []string{"\n", one + " a\n", one + "  \n", one[1:] + "  a\n", strings.ToUpper(two) + "  a\n", one + "  ../a\n", "\\" + one + "  a\n",
		one + "  a\r\n", one + "  a\n" + two + "  a\n", strings.Repeat("g", 64) + "  a\n"} {
		if got, err := provenance.ParseChecksums([]byte(bad)); err == nil {
			t.Errorf("%q is read as %v", bad, got)
		}
	}
}

func TestFilesOfAVersionHaveNamesOfTheirOwn(t *testing.T) {
	t.Parallel()
	names := map[string]bool{}
	for _, flavour := range []string{"a", "a-b", "a-b-c"} {
		for _, format := range []string{"c", "b-c", "b.c", "disk.qcow2", "a.b-c", "a-b.c"} {
			names[provenance.FileName("image", "1", "amd64.container."+flavour, format)] = true
		}
	}
	for _, name := range []string{"c", "amd64.container.a.c", "-amd64.container.a.c"} {
		names[provenance.AttachmentName("image", "1", name)] = true
	}
	if len(names) != 21 {
		t.Errorf("21 files have %d names", len(names))
	}
}

func TestAStatementIsReadAgain(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		statement provenance.Statement
		want      string
	}{
		{provenance.Statement{Image: "debian", Version: "12.5.0+b1~rc2", PublishedAt: at}, "image:debian version:12.5.0+b1~rc2 published:2026-11-24T19:26:54Z"},
		{provenance.Statement{Image: "debian", Version: "1", Alias: "latest", PublishedAt: at}, "image:debian version:1 alias:latest published:2026-11-24T19:26:54Z"},
	} {
		if got := test.statement.String(); got != test.want {
			t.Errorf("statement %q, want %q", got, test.want)
		}
		want := test.statement
		want.PublishedAt = at.UTC().Truncate(time.Second)
		if got, err := provenance.ParseStatement(test.want + " later:field"); err != nil || got != want {
			t.Errorf("%q is read as %+v, %v", test.want, got, err)
		}
	}
	for _, bad := range []string{"", "image:a version:1", "image:a published:2026-11-24T19:26:54Z", "image:a version:1 published:yesterday",
		"image:a version:1 version:2 published:2026-11-24T19:26:54Z", "timestamp:1700000000\tfile:SHA256SUMS\thashed"} {
		if got, err := provenance.ParseStatement(bad); err == nil {
			t.Errorf("%q is read as %+v", bad, got)
		}
	}
	s := provenance.Statement{Image: "a", Version: "1", Alias: "latest"}
	for asked, want := range map[[2]string]bool{{"a", "1"}: true, {"a", "latest"}: true, {"a", "2"}: false, {"b", "1"}: false, {"b", "latest"}: false, {"a", ""}: false} {
		if s.Answers(asked[0], asked[1]) != want {
			t.Errorf("%v is answered: %v, want %v", asked, !want, want)
		}
	}
	if (provenance.Statement{Image: "a", Version: "1"}).Answers("a", "") {
		t.Error("a statement without alias answers for no version")
	}
}

func newKey(t *testing.T) *provenance.Key {
	t.Helper()
	key, made, err := provenance.LoadKey(filepath.Join(t.TempDir(), "signing.key"))
	if err != nil || !made {
		t.Fatalf("made %v, %v", made, err)
	}
	return key
}

func TestOnlyTheWholeSignatureOfTheRightKeyIsValid(t *testing.T) {
	t.Parallel()
	key, other := newKey(t), newKey(t)
	sums := provenance.Checksums([]provenance.File{{Name: "a", SHA256: one}})
	said := provenance.Statement{Image: "debian", Version: "1", PublishedAt: at.UTC().Truncate(time.Second)}
	signature := key.Sign(sums, said)
	if again := key.Sign(sums, said); string(again) != string(signature) {
		t.Error("two signatures over the same differ")
	}
	if got, err := key.Public().Verify(sums, signature); err != nil || got != said {
		t.Fatalf("verified as %+v, %v", got, err)
	}
	parsed, err := provenance.ParsePublicKey(string(key.Public().File()))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parsed.Verify(sums, signature); err != nil {
		t.Errorf("by the key of its file: %v", err)
	}
	_, private, err := minisign.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := provenance.ParsePublicKey(private.Public().(minisign.PublicKey).String())
	if err != nil {
		t.Fatal(err)
	}
	bare := append(minisign.SignWithComments(private, sums, said.String(), "of the older form"), '\n')
	swapped := strings.Replace(string(signature), "version:1", "version:2", 1)
	for name, test := range map[string]struct {
		key       provenance.PublicKey
		sums      []byte
		signature string
	}{
		"another key":             {other.Public(), sums, string(signature)},
		"other sums":              {key.Public(), append(sums, sums...), string(signature)},
		"another trusted comment": {key.Public(), sums, swapped},
		"not over a hash":         {foreign, sums, string(bare)},
		"nothing":                 {key.Public(), sums, ""},
		"of something else":       {foreign, sums, signedHashed(private, sums, "timestamp:1\tfile:x")},
	} {
		if got, err := test.key.Verify(test.sums, []byte(test.signature)); !errors.Is(err, provenance.ErrSignature) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

func signedHashed(private minisign.PrivateKey, sums []byte, comment string) string {
	r := minisign.NewReader(strings.NewReader(string(sums)))
	if _, err := r.Read(make([]byte, len(sums)+1)); err != nil {
		return ""
	}
	return string(r.SignWithComments(private, comment, "x"))
}

func TestMinisignAndOursUnderstandEachOther(t *testing.T) {
	t.Parallel()
	testtool.Need(t, "minisign")
	dir := t.TempDir()
	run := func(args ...string) (string, error) {
		command := exec.CommandContext(t.Context(), "minisign", args...)
		command.Dir = dir
		out, err := command.CombinedOutput()
		return string(out), err
	}
	// A key of minisign's making, without a password, is one that the server can use.
	if out, err := run("-G", "-W", "-p", "key.pub", "-s", "key"); err != nil {
		t.Fatalf("minisign -G: %v\n%s", err, out)
	}
	theirs, made, err := provenance.LoadKey(filepath.Join(dir, "key"))
	if err != nil || made {
		t.Fatalf("load a key of minisign: made %v, %v", made, err)
	}
	pinned, err := provenance.FindPublicKey(filepath.Join(dir, "key.pub"))
	if err != nil || pinned.String() != theirs.Public().String() {
		t.Fatalf("its public half is %s (%v), ours of it %s", pinned, err, theirs.Public())
	}
	sums := provenance.Checksums([]provenance.File{{Name: "a", SHA256: one}})
	write := func(name string, data []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("SHA256SUMS", sums)
	for name, key := range map[string]*provenance.Key{"theirs": theirs, "ours": newKey(t)} {
		write(name+".pub", key.Public().File())
		write("SHA256SUMS.minisig", key.Sign(sums, provenance.Statement{Image: "debian", Version: "12.5.0", PublishedAt: at}))
		for _, with := range [][]string{{"-p", name + ".pub"}, {"-P", key.Public().String()}} {
			out, err := run(append([]string{"-V", "-H", "-m", "SHA256SUMS"}, with...)...)
			if err != nil || !strings.Contains(out, "image:debian version:12.5.0 published:2026-11-24T19:26:54Z") {
				t.Errorf("minisign -V with %s: %v\n%s", name, err, out)
			}
		}
	}
	// And our check takes what minisign signs.
	if out, err := run("-S", "-s", "key", "-m", "SHA256SUMS", "-t", "image:a version:1 published:2026-01-01T00:00:00Z"); err != nil {
		t.Fatalf("minisign -S: %v\n%s", err, out)
	}
	signature, err := os.ReadFile(filepath.Join(dir, "SHA256SUMS.minisig"))
	if err != nil {
		t.Fatal(err)
	}
	if said, err := pinned.Verify(sums, signature); err != nil || said.Image != "a" {
		t.Errorf("a signature of minisign: %+v, %v", said, err)
	}
	write("SHA256SUMS", append(sums, sums...))
	if out, err := run("-V", "-p", "key.pub", "-m", "SHA256SUMS"); err == nil {
		t.Errorf("minisign takes changed checksums:\n%s", out)
	}
}

func TestAKeyThatIsNoneIsSaidSo(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	_, private, err := minisign.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	// What minisign -G makes says in bytes 2 and 3 that a password was hashed by scrypt.
	plain, err := private.MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	comment, encoded, _ := strings.Cut(string(plain), "\n")
	raw, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		t.Fatal(err)
	}
	copy(raw[2:], "Sc")
	locked := comment + "\n" + base64.StdEncoding.EncodeToString(raw)
	for path, want := range map[string]string{file("empty", ""): "no secret key", file("text", "untrusted comment: x\nabc\n"): "no secret key",
		file("locked", locked+"\n"): "has a password", dir: "is a directory"} {
		if _, _, err := provenance.LoadKey(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
	for given, want := range map[string]string{file("no.pub", "hello"): "no public key", filepath.Join(dir, "absent"): "no such file", "": "neither"} {
		if _, err := provenance.FindPublicKey(given); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", given, err, want)
		}
	}
}
