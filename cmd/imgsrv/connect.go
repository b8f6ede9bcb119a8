package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/imgsrv/imgsrv/internal/client"
)

const goarch = runtime.GOARCH

// clientFlags are those of every command that talks to a server.
type clientFlags struct {
	Server        string `group:"connection" help:"URL of the server." default:"http://127.0.0.1:8080" placeholder:"URL"`
	Token         string `group:"connection" help:"Token for the server. Default: that in <data-dir>/admin.token, for a server on this machine." placeholder:"TOKEN"`
	OIDCTokenFile string `group:"connection" name:"oidc-token-file" help:"File with an OIDC token of the CI platform, in place of --token; read anew for each request." placeholder:"FILE"`
	DataDir       string `group:"connection" help:"Data folder of the server, where it is on this machine." default:".imgsrv" placeholder:"DIR"`
	CAFile        string `group:"connection" name:"ca-file" help:"Certificates to trust beside the system's, PEM file. Default: <data-dir>/tls/cert.pem, for a server on this machine." placeholder:"FILE"`
	JSON          bool   `group:"connection" name:"json" help:"Write results as JSON, for programs."`
	Quiet         bool   `group:"connection" help:"No progress on standard error."`
}

// connect makes the client that the flags ask for. Broken connections are told through p.
func (f *clientFlags) connect(p *progress) (*client.Client, error) { return f.connectWith(p, true) }

func (f *clientFlags) connectWith(p *progress, find bool) (*client.Client, error) {
	base, err := client.ParseServer(f.Server)
	if err != nil {
		return nil, &usageError{err.Error()}
	}
	if f.Token != "" && f.OIDCTokenFile != "" {
		return nil, usagef("--token and --oidc-token-file (or IMGSRV_TOKEN and IMGSRV_OIDC_TOKEN_FILE) exclude each other")
	}
	token, ca := f.Token, f.CAFile
	// What we find by ourselves is for this machine only.
	if isLoopback(base.Hostname()) {
		if find && token == "" && f.OIDCTokenFile == "" {
			// Without it one can still read; a server that wants it says so.
			token, _ = findToken(f.tokenFile())
		}
		if cert := filepath.Join(f.DataDir, "tls", "cert.pem"); ca == "" && base.Scheme == "https" && exists(cert) {
			ca = cert
		}
	}
	return client.New(f.Server, token, client.Options{CAFile: ca, TokenFile: f.OIDCTokenFile, UserAgent: "imgsrv-client", Retry: client.Retry{Notice: func(err error, wait time.Duration) {
		p.note("%v; trying again in %s", err, wait.Round(100*time.Millisecond))
	}}})
}

// anonymous makes a client that shows no token, and so sees what everybody sees.
func (f *clientFlags) anonymous(p *progress) (*client.Client, error) {
	public := *f
	public.Token, public.OIDCTokenFile = "", ""
	return public.connectWith(p, false)
}

// needToken says early that there is no token, for a command that needs one.
func (f *clientFlags) needToken() error {
	if f.Token != "" {
		return nil
	}
	if f.OIDCTokenFile != "" {
		_, err := client.ReadTokenFile(f.OIDCTokenFile)
		return err
	}
	base, err := client.ParseServer(f.Server)
	if err != nil {
		return &usageError{err.Error()}
	}
	if !isLoopback(base.Hostname()) {
		return fmt.Errorf("this needs a token for %s: give it with --token or IMGSRV_TOKEN", base.Host)
	}
	token, err := findToken(f.tokenFile())
	if err == nil && token == "" {
		err = fmt.Errorf("%s is empty", f.tokenFile())
	}
	if err != nil {
		return fmt.Errorf("this needs a token, and none was found (%w): give it with --token or IMGSRV_TOKEN, or the server's data folder with --data-dir", err)
	}
	return nil
}

func (f *clientFlags) tokenFile() string { return filepath.Join(f.DataDir, "admin.token") }

func findToken(path string) (string, error) {
	data, err := os.ReadFile(path) //nolint:gosec // the user's own choice
	return strings.TrimSpace(string(data)), err
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// isLoopback says whether a host of a URL is this machine by its name. Names are not looked up.
func isLoopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}
