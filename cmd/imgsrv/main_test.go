package main

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
	"github.com/google/go-cmp/cmp"

	"github.com/imgsrv/imgsrv/internal/client"
)

// parse gives the grammar that a command line fills.
func parse(t *testing.T, args ...string) *grammar {
	t.Helper()
	var g grammar
	parser, err := newParser(t.Context(), &g, Terminal{Out: t.Output(), Err: t.Output()}, func(int) { t.Error("the parser left the program") })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parser.Parse(args); err != nil {
		t.Fatal(err)
	}
	return &g
}

// command runs the program as a shell would.
func command(ctx context.Context, args ...string) (code int, out, errors string) {
	var stdout, stderr bytes.Buffer
	code = run(ctx, args, Terminal{Out: &stdout, Err: &stderr})
	return code, stdout.String(), stderr.String()
}

func TestPublishFlags(t *testing.T) {
	t.Parallel()
	got := parse(t, "publish", "a", "b", "--image", "debian", "--version=12", "--alias=latest", "--alias", "stable", "--format=,root.tar.xz",
		"--server=http://h:1", "--token=x", "--json").Publish
	cwd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	want := PublishCmd{
		clientFlags: clientFlags{Server: "http://h:1", Token: "x", DataDir: ".imgsrv", JSON: true},
		Files:       []string{filepath.Join(cwd, "a"), filepath.Join(cwd, "b")}, Image: "debian", Version: "12",
		Architecture: hostArchitecture(), Flavour: "default", Format: []string{"", "root.tar.xz"}, Alias: []string{"latest", "stable"},
	}
	if !reflect.DeepEqual(want, got) {
		t.Errorf("want %+v\n got %+v", want, got)
	}
}

func TestFlagsComeFromTheEnvironment(t *testing.T) {
	for name, value := range map[string]string{
		"IMGSRV_SERVER": "http://env:1", "IMGSRV_TOKEN": "env-token", "IMGSRV_DATA_DIR": "/env", "IMGSRV_CA_FILE": "/env/ca.pem",
		"IMGSRV_IMAGE": "env-image", "IMGSRV_VERSION": "9", "IMGSRV_ALIAS": "a,b", "IMGSRV_JSON": "true", "IMGSRV_TYPE": "container",
	} {
		t.Setenv(name, value)
	}
	got := parse(t, "publish", "f", "--version=10").Publish
	want := clientFlags{Server: "http://env:1", Token: "env-token", DataDir: "/env", CAFile: "/env/ca.pem", JSON: true}
	if diff := cmp.Diff(want, got.clientFlags); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got.Image != "env-image" || got.Version != "10" || got.Type != "container" || !reflect.DeepEqual(got.Alias, []string{"a", "b"}) {
		t.Errorf("got %+v", got)
	}
}

func TestEveryFlagHasItsVariable(t *testing.T) {
	t.Parallel()
	parser, err := newParser(t.Context(), &grammar{}, Terminal{}, func(int) {})
	if err != nil {
		t.Fatal(err)
	}
	err = kong.Visit(parser.Model, func(node kong.Visitable, next kong.Next) error {
		if f, ok := node.(*kong.Flag); ok && f.Name != "help" {
			want := "IMGSRV_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
			if len(f.Envs) != 1 || f.Envs[0] != want {
				t.Errorf("--%s comes from %v, want %s", f.Name, f.Envs, want)
			}
			if f.Help == "" {
				t.Errorf("--%s has no help", f.Name)
			}
		}
		return next(nil)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestEveryCommandHasAnExampleThatParses(t *testing.T) {
	t.Parallel()
	parser, err := newParser(t.Context(), &grammar{}, Terminal{}, func(int) {})
	if err != nil {
		t.Fatal(err)
	}
	for _, command := range parser.Model.Leaves(false) {
		example := command.Tag.Get("example")
		line, _, _ := strings.Cut(strings.ReplaceAll(example, "\\\n", ""), " > ")
		var args []string
		for _, quoted := range regexp.MustCompile(`'[^']*'|\S+`).FindAllString(line, -1) {
			args = append(args, strings.Trim(quoted, "'"))
		}
		if len(args) == 0 {
			t.Errorf("%s has no example", command.Path())
			continue
		}
		forget(parser)
		if ctx, err := parser.Parse(args); err != nil && !strings.Contains(err.Error(), "no such file") {
			t.Errorf("%s: %v", example, err)
		} else if err == nil && ctx.Selected().Path() != command.Path() {
			t.Errorf("%s is %s, want %s", example, ctx.Selected().Path(), command.Path())
		}
	}
}

func TestJobsMeansItsList(t *testing.T) {
	t.Parallel()
	if got := parse(t, "jobs", "--state=failed").Jobs.List.State; got != "failed" {
		t.Errorf("state %q", got)
	}
	if got := parse(t, "jobs", "0199a1b2").Jobs.List.ID; got != "0199a1b2" {
		t.Errorf("ID %q", got)
	}
	if got := parse(t, "jobs", "retry", "0199a1b2").Jobs.Retry.ID; got != "0199a1b2" {
		t.Errorf("ID %q to retry", got)
	}
}

func TestExitCodes(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = w.Write([]byte(`{"title":"A token is needed","code":"unauthorized","detail":"the token\nis unknown"}`))
	}))
	t.Cleanup(server.Close)
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, []byte("hsqs"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		args []string
		code int
		says string // on standard error
	}{
		"help":              {[]string{"--help"}, 0, ""},
		"help of a command": {[]string{"publish", "--help"}, 0, ""},
		"no command":        {nil, 2, "name a command"},
		"help of one":       {[]string{"help", "publish"}, 0, ""},
		"missing flags":     {[]string{"publish", "f"}, 2, "imgsrv publish --help"},
		"unknown state":     {[]string{"jobs", "--state=odd"}, 2, "--state"},
		"wrong word":        {[]string{"publish", "f", "--image=a", "--version=1", "--type=vm"}, 2, `one of "virtual-machine","container"`},
		"wrong duration":    {[]string{"tokens", "create", "--expires=30d"}, 2, "720h"},
		"address of a port": {[]string{"start", "--listen=8080"}, 1, "--listen is an address, host:port"},
		"two rights":        {[]string{"subscribers", "add", "x", "--all", "--image=a"}, 2, "not both"},
		"bad server":        {[]string{"images", "--server=ftp://x"}, 2, "http://127.0.0.1:8080"},
		"formats and files": {[]string{"publish", file, "--image=a", "--version=1", "--format=a,b", "--token=x"}, 2, "--format"},
		"two outputs":       {[]string{"download", "a", "--json", "-o", "-"}, 2, "standard output"},
		"nobody there":      {[]string{"images", "--server", gone.URL}, 1, "imgsrv start"},
		"refused":           {[]string{"images", "--server", server.URL}, 1, "--token"},
		"no such file":      {[]string{"publish", file + "x", "--image=a", "--version=1", "--token=x"}, 1, file + "x"},
		"no token":          {[]string{"publish", file, "--image=a", "--version=1", "--data-dir", t.TempDir()}, 1, "admin.token"},
		"no token remotely": {[]string{"publish", file, "--image=a", "--version=1", "--server=https://images.example.org"}, 1, "IMGSRV_TOKEN"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			code, out, errs := command(t.Context(), c.args...)
			if code != c.code {
				t.Errorf("exit code %d, want %d: %s", code, c.code, errs)
			}
			if code == 0 {
				if out == "" || errs != "" {
					t.Errorf("help on standard output: %q, on standard error: %q", out, errs)
				}
				return
			}
			if out != "" || !strings.HasPrefix(errs, "imgsrv: ") || strings.Count(errs, "\n") != 1 || !strings.Contains(errs, c.says) {
				t.Errorf("standard error %q, want one line with %q; standard output %q", errs, c.says, out)
			}
		})
	}
}

func TestInterruptedCommandExitsWith130(t *testing.T) {
	t.Parallel()
	ctx, interrupt := context.WithCancel(t.Context())
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		interrupt()
		<-r.Context().Done()
	}))
	t.Cleanup(server.Close)
	if code, _, errs := command(ctx, "images", "--server", server.URL); code != 130 || errs != "imgsrv: interrupted\n" {
		t.Errorf("exit code %d: %q", code, errs)
	}
}

func TestTokenOfTheServersFolderStaysOnThisMachine(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "admin.token"), []byte("found\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var got string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r.Header.Get("Authorization")
		_, _ = w.Write([]byte(`{"images":[]}`))
	}))
	t.Cleanup(server.Close)
	if code, _, errs := command(t.Context(), "images", "--server", server.URL, "--data-dir", dir); code != 0 || got != "Bearer found" {
		t.Errorf("on this machine: %q was sent (exit code %d, %s)", got, code, errs)
	}
	if code, _, _ := command(t.Context(), "images", "--server", server.URL, "--data-dir", dir, "--token=given"); code != 0 || got != "Bearer given" {
		t.Errorf("with --token: %q was sent", got)
	}
	for host, want := range map[string]bool{"127.0.0.1": true, "127.9.9.9": true, "::1": true, "localhost": true, "LOCALHOST": true,
		"localhost.example.org": false, "127.0.0.1.example.org": false, "10.0.0.1": false, "example.org": false, "": false} {
		if isLoopback(host) != want {
			t.Errorf("%q is this machine: %v, want %v", host, !want, want)
		}
	}
}

func TestArchitecturesOfGoMachines(t *testing.T) {
	t.Parallel()
	for goarch, want := range map[string]string{"amd64": "amd64", "arm64": "arm64", "386": "i386", "arm": "armhf", "ppc64le": "ppc64el", "riscv64": "riscv64", "s390x": "s390x", "loong64": "loong64", "wasm": "wasm"} {
		if got := architectureOf(goarch); got != want {
			t.Errorf("%s: got %s, want %s", goarch, got, want)
		}
	}
}

func TestRemedies(t *testing.T) {
	t.Parallel()
	other := errors.New("something else")
	if got := withRemedy(other); !errors.Is(got, other) || got.Error() != other.Error() {
		t.Errorf("an error without a remedy became %v", got)
	}
	if got := withRemedy(&client.ConnectionError{Server: "https://x", Err: other}).Error(); !strings.Contains(got, "--ca-file") || !strings.Contains(got, "something else") {
		t.Errorf("HTTPS without trust: %q", got)
	}
}
