package main

import (
	"bytes"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/imgsrv/imgsrv/internal/pgtest"
	"github.com/imgsrv/imgsrv/internal/provenance"
)

// olderAndLatest are debian 1.0.0 and 2.0.0, which is latest, with the server's public key.
func olderAndLatest(t *testing.T) (flags []string, node *Node, key string, disks map[string]string) {
	t.Helper()
	flags, node = server(t)
	disks = map[string]string{"1.0.0": squashfs + rawDisk(50_000), "2.0.0": squashfs + rawDisk(60_000)}
	for _, version := range []string{"1.0.0", "2.0.0"} {
		if code, _, errs := command(t.Context(), with(flags, "publish", write(t, disks[version])[0], "--image=debian", "--version="+version, "--architecture=x86_64", "--alias=latest")...); code != 0 {
			t.Fatalf("publish: exit code %d: %s", code, errs)
		}
	}
	code, out, errs := command(t.Context(), with(flags, "signing-key")...)
	if code != 0 {
		t.Fatalf("signing-key: exit code %d: %s", code, errs)
	}
	return flags, node, strings.TrimSpace(out), disks
}

func TestAVerifiedDownload(t *testing.T) {
	t.Parallel()
	flags, node, key, disks := olderAndLatest(t)
	printed := decode[signingKey](t, func() string { _, out, _ := command(t.Context(), with(flags, "signing-key", "--json")...); return out }())
	if printed.PublicKey != key || len(printed.ID) != 16 {
		t.Errorf("signing-key --json: %+v, and without: %s", printed, key)
	}
	// As in signing.key, which is for nobody else.
	if info, err := os.Stat(filepath.Join(flags[3], "signing.key")); err != nil || info.Mode() != 0o600 {
		t.Errorf("signing.key: %v, %v", info, err)
	}
	dir := t.TempDir()
	pub := filepath.Join(dir, "server.pub")
	answer, err := http.Get(node.HTTPURL + "/api/signing-key")
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(answer.Body)
	if err := os.WriteFile(pub, text, 0o600); err != nil {
		t.Fatal(err)
	}
	_ = answer.Body.Close()
	if err != nil {
		t.Fatal(err)
	}
	for what, version := range map[string]string{"debian": "2.0.0", "debian/latest": "2.0.0", "debian/1.0.0": "1.0.0"} {
		for _, pinned := range [][]string{{"--verify", "--public-key=" + key}, {"--public-key", pub}} {
			target := filepath.Join(t.TempDir(), "disk")
			code, out, errs := command(t.Context(), with(flags, append([]string{"download", what, "-o", target}, pinned...)...)...)
			if got, err := os.ReadFile(target); code != 0 || err != nil || string(got) != disks[version] || !strings.Contains(out, "signed by "+printed.ID) {
				t.Errorf("download %s %v: exit code %d, %d bytes, %v: %s%s", what, pinned, code, len(got), err, out, errs)
			}
		}
	}
	code, out, _ := command(t.Context(), with(flags, "download", "debian", "-o", filepath.Join(dir, "disk"), "--public-key", key, "--json")...)
	if got := decode[downloaded](t, out); code != 0 || got.SignedBy != printed.ID || got.Version != "2.0.0" {
		t.Errorf("download --json: exit code %d, %+v", code, got)
	}
	// An image without the alias latest: what was published last.
	if code, _, errs := command(t.Context(), with(flags, "publish", write(t, disks["1.0.0"])[0], "--image=plain", "--version=7", "--architecture=x86_64")...); code != 0 {
		t.Fatalf("publish: exit code %d: %s", code, errs)
	}
	if code, out, errs := command(t.Context(), with(flags, "download", "plain", "-o", filepath.Join(dir, "plain"), "--public-key", key)...); code != 0 || !strings.Contains(out, "plain 7 ") {
		t.Errorf("download without an alias: exit code %d: %s%s", code, out, errs)
	}

	for _, test := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"debian", "--verify"}, 2, "imgsrv signing-key"},
		{[]string{"debian", "-o", "-", "--public-key", key}, 2, "needs a file"},
		{[]string{"debian", "--public-key", filepath.Join(dir, "absent.pub")}, 1, "neither"},
		{[]string{"debian/3.0.0", "--public-key", key}, 1, "3.0.0"},
	} {
		code, out, errs := command(t.Context(), with(flags, append([]string{"download"}, test.args...)...)...)
		if code != test.code || out != "" || !strings.Contains(errs, test.want) || strings.Count(errs, "\n") != 1 {
			t.Errorf("download %v: exit code %d, want %d with %q in one line: %s%s", test.args, code, test.code, test.want, out, errs)
		}
	}
}

// Not parallel: it sets the environment.
func TestAPinnedKeyOfTheEnvironmentVerifiesEachDownload(t *testing.T) {
	flags, _, key, _ := olderAndLatest(t)
	dir := t.TempDir()
	foreign, _, err := provenance.LoadKey(filepath.Join(t.TempDir(), "signing.key"))
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("IMGSRV_PUBLIC_KEY", foreign.Public().String())
	if code, _, errs := command(t.Context(), with(flags, "download", "debian", "-o", filepath.Join(dir, "a"))...); code != 1 || !strings.Contains(errs, "made with the key") {
		t.Errorf("another server's key: exit code %d: %s", code, errs)
	}
	t.Setenv("IMGSRV_PUBLIC_KEY", key)
	if code, out, errs := command(t.Context(), with(flags, "download", "debian", "-o", filepath.Join(dir, "b"))...); code != 0 || !strings.Contains(out, "signed by") {
		t.Errorf("the server's key: exit code %d: %s%s", code, out, errs)
	}
	if there, err := os.ReadDir(dir); err != nil || len(there) != 1 {
		t.Errorf("the folder holds %v, %v", there, err)
	}
}

// liar stands between client and server. It may change each answer, and ask for something else than the client did.
func liar(t *testing.T, to string, ask func(path string) string, change func(path string, header http.Header, body []byte) []byte) string {
	t.Helper()
	target, err := url.Parse(to)
	if err != nil {
		t.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			if ask != nil {
				r.Out.URL.Path = ask(r.In.URL.Path)
			}
		},
		ModifyResponse: func(r *http.Response) error {
			if change == nil || r.StatusCode != http.StatusOK {
				return nil
			}
			body, err := io.ReadAll(r.Body)
			if err != nil {
				return err
			}
			body = change(r.Request.URL.Path, r.Header, body)
			r.Body = io.NopCloser(bytes.NewReader(body))
			if r.Request.Method != http.MethodHead {
				r.ContentLength = int64(len(body))
				r.Header.Set("Content-Length", strconv.Itoa(len(body)))
			}
			return nil
		},
	}
	front := httptest.NewServer(proxy)
	t.Cleanup(front.Close)
	return front.URL
}

func TestWhatSomebodyChangedOnTheWayIsRefused(t *testing.T) {
	t.Parallel()
	_, node, key, disks := olderAndLatest(t)
	sum := map[string]string{}
	for version, disk := range disks {
		sum[version] = hexSum(disk)
	}
	swap := func(body []byte, from, to string) []byte { return bytes.ReplaceAll(body, []byte(from), []byte(to)) }
	replay := func(path string) string { return strings.Replace(path, "/2.0.0", "/1.0.0", 1) }
	for name, test := range map[string]struct {
		what   string
		ask    func(string) string
		change func(path string, header http.Header, body []byte) []byte
		want   string
	}{
		"bytes of the file": {"debian/2.0.0", nil, func(path string, header http.Header, body []byte) []byte {
			if strings.Contains(path, "/formats/") && len(body) > 0 {
				body[len(body)-1] ^= 1
			}
			return body
		}, "SHA-256"},
		"file, manifest and headers, all in step": {"debian/2.0.0", func(path string) string {
			if strings.Contains(path, "/formats/") {
				return replay(path)
			}
			return path
		}, func(path string, _ http.Header, body []byte) []byte {
			if strings.HasSuffix(path, "/2.0.0") {
				return swap(body, sum["2.0.0"], sum["1.0.0"])
			}
			return body
		}, "SHA-256"},
		"checksums": {"debian/2.0.0", nil, func(path string, _ http.Header, body []byte) []byte {
			if strings.HasSuffix(path, "SHA256SUMS") {
				return swap(body, sum["2.0.0"], sum["1.0.0"])
			}
			return body
		}, "not valid"},
		"trusted comment": {"debian/2.0.0", replay, func(path string, _ http.Header, body []byte) []byte {
			if strings.HasSuffix(path, ".minisig") {
				return swap(body, "version:1.0.0", "version:2.0.0")
			}
			return body
		}, "not valid"},
		"all of an older version, as if it were the one asked for": {"debian/2.0.0", replay, nil, "it is that of debian/1.0.0"},
		"all of an older version, as if an alias led there":        {"debian/latest", func(path string) string { return strings.Replace(path, "/latest", "/1.0.0", 1) }, nil, "it is that of debian/1.0.0"},
		"the signature of an alias, for a version": {"debian/1.0.0", func(path string) string {
			return strings.Replace(path, "/1.0.0", "/latest", 1)
		}, nil, "it is that of debian/2.0.0"},
		"the manifest of another version": {"debian/2.0.0", func(path string) string {
			if strings.HasSuffix(path, "/2.0.0") {
				return replay(path)
			}
			return path
		}, nil, "manifest of debian/1.0.0"},
		"no signature": {"debian/2.0.0", nil, func(path string, _ http.Header, body []byte) []byte {
			if strings.HasSuffix(path, ".minisig") {
				return nil
			}
			return body
		}, "not valid"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			code, out, errs := command(t.Context(), "download", test.what, "-o", filepath.Join(dir, "disk"), "--public-key", key, "--quiet",
				"--server", liar(t, node.HTTPURL, test.ask, test.change))
			if code != 1 || out != "" || strings.Count(errs, "\n") != 1 || !strings.Contains(errs, test.want) {
				t.Errorf("exit code %d, want 1 with %q in one line: %s%s", code, test.want, out, errs)
			}
			if there, err := os.ReadDir(dir); err != nil || len(there) != 0 {
				t.Errorf("the folder holds %v, %v", there, err)
			}
		})
	}
}

func TestAServerSignsWithTheKeysItIsGiven(t *testing.T) {
	t.Parallel()
	keys := t.TempDir()
	flags := ServerFlags{Listen: "127.0.0.1:0", MetricsPath: "/metrics", SigningKey: filepath.Join(keys, "sums.key"), StreamsSigningKey: filepath.Join(keys, "streams.asc")}
	var printed []string
	for range 2 { // two nodes, one key
		flags.DataDir, flags.PostgresURL = t.TempDir(), pgtest.URL(t)
		node := startHere(t, flags)
		if exists(filepath.Join(flags.DataDir, "signing.key")) {
			t.Error("a key was made in the data folder all the same")
		}
		code, out, errs := command(t.Context(), "signing-key", "--server", node.HTTPURL)
		if code != 0 {
			t.Fatalf("signing-key: exit code %d: %s", code, errs)
		}
		for _, path := range []string{"index.sjson", "images.sjson", "signing-key.asc"} {
			begin := "-----BEGIN PGP SIGNED MESSAGE-----\n"
			if path == "signing-key.asc" {
				begin = "-----BEGIN PGP PUBLIC KEY BLOCK-----\n"
			}
			answer, err := http.Get(node.HTTPURL + "/streams/v1/" + path)
			if err != nil {
				t.Fatal(err)
			}
			text, err := io.ReadAll(answer.Body)
			_ = answer.Body.Close()
			if err != nil || answer.StatusCode != http.StatusOK || !strings.HasPrefix(string(text), begin) {
				t.Errorf("%s: %s %v\n%s", path, answer.Status, err, text)
			}
			out += path + "\n" + string(text)
		}
		printed = append(printed, out)
	}
	if printed[0] != printed[1] {
		t.Errorf("two nodes with the same keys say\n%s\nand\n%s", printed[0], printed[1])
	}
	for _, file := range []string{flags.SigningKey, flags.StreamsSigningKey} {
		if info, err := os.Stat(file); err != nil || info.Mode() != 0o600 {
			t.Errorf("%s: %v, %v", file, info, err)
		}
		bad := flags
		bad.DataDir, bad.PostgresURL = t.TempDir(), pgtest.URL(t)
		if err := os.WriteFile(file, []byte("no key\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		node, err := StartNode(t.Context(), bad, slog.New(slog.DiscardHandler))
		if err == nil {
			t.Errorf("a server starts with what is no key in %s", file)
			_ = node.Stop()
		} else if !strings.Contains(err.Error(), "signing-key") {
			t.Errorf("the error names no flag: %v", err)
		}
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
	}
}
