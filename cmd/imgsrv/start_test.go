package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	natsserver "github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"

	"github.com/imgsrv/imgsrv/internal/datadir"
	"github.com/imgsrv/imgsrv/internal/selfsigned"
	"github.com/imgsrv/imgsrv/internal/testtool"
)

func TestDemoShowsEverything(t *testing.T) {
	t.Parallel()
	code, out, errs := command(t.Context(), "demo", "--once")
	if strings.Contains(errs, "no PostgreSQL") {
		testtool.Absent(t, "PostgreSQL's binaries")
	}
	if code != 0 {
		t.Fatalf("exit code %d: %s%s", code, out, errs)
	}
	for _, want := range []string{"imgsrv is ready", "$ imgsrv publish", "demo 1.0.0 published", "latest=1.0.0", "$ imgsrv download", "succeeded"} {
		if !strings.Contains(out, want) {
			t.Errorf("the demo doesn't show %q:\n%s", want, out)
		}
	}
}

// The demo's image is made by hand; the real tool has to find it sound.
func TestTheDemosImageIsSound(t *testing.T) {
	t.Parallel()
	testtool.Need(t, "qemu-img")
	file := filepath.Join(t.TempDir(), "demo.qcow2")
	if err := os.WriteFile(file, demoImage(), 0o600); err != nil {
		t.Fatal(err)
	}
	qemuCheck(t, file)
}

// With no flags but a folder: imgsrv's own PostgreSQL and NATS. A kill leaves PostgreSQL behind; the next
// start ends it and goes on with what it had.
func TestAKilledServerStartsAgainOverWhatItLeft(t *testing.T) {
	t.Parallel()
	dir := openDir(t)
	flags := ServerFlags{Listen: "127.0.0.1:0", TLSListen: "127.0.0.1:0", MetricsListen: "127.0.0.1:0", MetricsPath: "/metrics", NATSListen: "127.0.0.1:0",
		DataDir: filepath.Join(dir, "data"), LogFormat: "text", Verbosity: "error"}
	startHere(t, flags).end(t) // skips where there is no PostgreSQL
	squash := append([]byte("hsqs"), make([]byte, 1000)...)
	var token string
	for _, version := range []string{"1", "2", "3"} {
		node := startChild(t, flags)
		if token == "" {
			token = node.Token
		}
		if node.NewToken != "" || node.Token != token {
			t.Fatal("a start over an old folder made another token")
		}
		p := node.publisher(t)
		f := file{format: "rootfs.squashfs", data: squash}
		p.publish(request("image", version, "container", []string{"latest"}, f), f)
		var versions struct {
			Versions []struct{ Version string } `json:"versions"`
		}
		p.call("GET", "/api/images/image/versions", nil, &versions)
		if len(versions.Versions) == 0 || versions.Versions[0].Version != version {
			t.Fatalf("versions %+v after publishing %s", versions, version)
		}
		var metrics []byte
		if resp := p.call("GET", node.MetricsURL, nil, &metrics); resp.StatusCode != 200 {
			t.Errorf("metrics: %d", resp.StatusCode)
		}
		if want := `imgsrv_projections_rows{projection="catalog",table="versions"} ` + version; !strings.Contains(string(metrics), want) {
			t.Errorf("the metrics lack %s", want)
		}
		node.kill()
	}
	last := startChild(t, flags)
	last.stop(t) // and leaves no PostgreSQL, which would keep the folder from going
}

func TestASecondStartInOneFolderIsRefused(t *testing.T) {
	t.Parallel()
	flags := nodeFlags(t)
	node := startHere(t, flags)
	_, err := StartNode(t.Context(), flags, slog.New(slog.DiscardHandler))
	var inUse *datadir.InUseError
	if !errors.As(err, &inUse) {
		t.Fatalf("error %v, want that the folder is in use", err)
	}
	if err := node.Stop(); err != nil {
		t.Fatalf("first Stop: %v", err)
	}
	if err := node.Stop(); err != nil {
		t.Errorf("second Stop: %v", err)
	}
}

// What is wrong with the machine or the flags is one line with a remedy, and a non-zero exit.
func TestAStartThatCannotWorkSaysWhy(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() }) // after the subtests
	taken := l.Addr().String()
	notADir := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(notADir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	free := []string{"--listen=127.0.0.1:0", "--tls-listen=", "--metrics-listen=", "--nats-listen="}
	for name, test := range map[string]struct {
		args []string
		want []string
	}{
		"port of HTTP":      {[]string{"--listen=" + taken, "--tls-listen=", "--metrics-listen=", "--nats-listen="}, []string{"address already in use", "--listen"}},
		"port of HTTPS":     {[]string{"--listen=127.0.0.1:0", "--tls-listen=" + taken, "--metrics-listen=", "--nats-listen="}, []string{"address already in use", "--tls-listen"}},
		"port of metrics":   {[]string{"--listen=127.0.0.1:0", "--tls-listen=", "--metrics-listen=" + taken, "--nats-listen="}, []string{"address already in use", "--metrics-listen"}},
		"port of NATS":      {[]string{"--listen=127.0.0.1:0", "--tls-listen=", "--metrics-listen=", "--nats-listen=" + taken}, []string{"address already in use", "--nats-listen"}},
		"data folder":       {append(free, "--data-dir="+notADir), []string{"data folder", "--data-dir"}},
		"storage folder":    {append(free, "--data-dir="+t.TempDir(), "--storage-dir="+notADir), []string{"storage", "--storage-dir"}},
		"key without cert":  {append(free, "--data-dir="+t.TempDir(), "--tls-key=x"), []string{"--tls-cert"}},
		"PostgreSQL away":   {append(free, "--data-dir="+t.TempDir(), "--postgres-url=postgres://nobody:secret@"+deadAddress(t)+"/x?connect_timeout=1"), []string{"PostgreSQL"}},
		"NATS away":         {append(free, "--data-dir="+t.TempDir(), "--nats-url=nats://"+deadAddress(t)), []string{"--nats-url"}},
		"no listener":       {[]string{"--listen=", "--tls-listen=", "--metrics-listen=", "--nats-listen="}, []string{"--listen"}},
		"no certificate":    {append(free, "--tls-listen=127.0.0.1:0", "--tls-cert=/nowhere", "--tls-key=/nowhere"), []string{"--tls-cert"}},
		"ACME and files":    {append(free, "--tls-listen=127.0.0.1:0", "--acme-domain=a.example", "--tls-cert=x", "--tls-key=y"), []string{"--acme-domain", "--tls-cert"}},
		"ACME for nobody":   {append(free, "--tls-listen=127.0.0.1:0", "--acme-email=a@a.example"), []string{"--acme-domain"}},
		"ACME without TLS":  {append(free, "--acme-domain=a.example"), []string{"--acme-domain", "--tls-listen"}},
		"ACME, wildcard":    {append(free, "--tls-listen=127.0.0.1:0", "--acme-domain=*.a.example"), []string{"--acme-domain", "wildcard"}},
		"ACME in plain":     {append(free, "--tls-listen=127.0.0.1:0", "--acme-domain=a.example", "--acme-directory=http://ca.example/"), []string{"--acme-directory"}},
		"ACME, CA file":     {append(free, "--tls-listen=127.0.0.1:0", "--acme-domain=a.example", "--acme-ca-file="+notADir), []string{"--acme-ca-file", "no certificate"}},
		"client CA":         {append(free, "--tls-listen=127.0.0.1:0", "--tls-client-ca=/nowhere"), []string{"--tls-client-ca", "/nowhere"}},
		"client CA, no TLS": {append(free, "--tls-client-ca="+notADir), []string{"--tls-client-ca", "--tls-listen"}},
		"HSTS without TLS":  {append(free, "--hsts=1h"), []string{"--hsts", "--tls-listen"}},
		"half a second":     {append(free, "--tls-listen=127.0.0.1:0", "--hsts=500ms"), []string{"--hsts"}},
		"CORS, all and one": {append(free, "--cors-origin=*", "--cors-origin=https://a.example"), []string{"--cors-origin", "alone"}},
		"CORS, a path":      {append(free, "--cors-origin=https://a.example/"), []string{"--cors-origin", "SCHEME://HOST"}},
		"metrics path":      {append(free, "--metrics-listen=127.0.0.1:0", "--metrics-path=/{"), []string{"--metrics-path"}},
		"odd syncing":       {append(free, "--events-sync=often"), []string{"--events-sync", "always"}},
		"syncing too often": {append(free, "--events-sync=1ns"), []string{"--events-sync", "1ms"}},
		"password of NATS":  {append(free, "--nats-url=nats://u:secret%zz@127.0.0.1:1"), []string{"--nats-url"}},
		"bad verbosity":     {append(free, "--verbosity=loud"), []string{"--verbosity"}},
		"negative size cap": {append(free, "--max-upload-bytes=-1"), []string{"--max-upload-bytes"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			code, _, errs := command(ctx, append([]string{"start", "--verbosity=error", "--data-dir=" + t.TempDir()}, test.args...)...)
			lines := strings.Split(strings.TrimSpace(errs), "\n")
			if code == 0 || len(lines) != 1 || !strings.HasPrefix(errs, "imgsrv: ") {
				t.Errorf("exit code %d and %d lines:\n%s", code, len(lines), errs)
			}
			for _, want := range test.want {
				if !strings.Contains(errs, want) {
					t.Errorf("the error doesn't name %q: %s", want, errs)
				}
			}
			if strings.Contains(errs, "secret") {
				t.Error("the error shows a password")
			}
		})
	}
}

// deadAddress is one that refuses connections.
func deadAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // its closing is the point
	return l.Addr().String()
}

func TestANATSServerOfOnesOwn(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cert, _, err := selfsigned.Load(dir, []string{"127.0.0.1"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	user, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	key, err := user.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	seed, err := user.Seed()
	if err != nil {
		t.Fatal(err)
	}
	creds := filepath.Join(dir, "imgsrv.nk")
	if err := os.WriteFile(creds, seed, 0o600); err != nil {
		t.Fatal(err)
	}
	// A client certificate is asked for too; the server's serves as one.
	ns, err := natsserver.NewServer(&natsserver.Options{Host: "127.0.0.1", Port: -1, JetStream: true, StoreDir: t.TempDir(), NoLog: true, NoSigs: true, TLS: true, TLSTimeout: 10,
		TLSConfig: &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAnyClientCert},
		Nkeys:     []*natsserver.NkeyUser{{Nkey: key}}})
	if err != nil {
		t.Fatal(err)
	}
	go ns.Start()
	defer ns.Shutdown()
	if !ns.ReadyForConnections(20 * time.Second) {
		t.Fatal("the NATS server doesn't come up")
	}
	flags := nodeFlags(t)
	flags.NATSURL = "tls://" + ns.Addr().String()
	flags.NATSCreds, flags.NATSCA, flags.NATSCert, flags.NATSKey = creds, filepath.Join(dir, "cert.pem"), filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for _, version := range []string{"1", "2"} {
		node := startChild(t, flags)
		p := node.publisher(t)
		f := file{format: "rootfs.squashfs", data: append([]byte("hsqs"), version...)}
		p.publish(request("image", version, "container", nil, f), f)
		// It can't let anybody in there, and says how its operator can.
		code, out, errs := command(t.Context(), "subscribers", "add", "s"+version, "--image", "image", "--server", p.base, "--token", p.token)
		if code != exitOK || !strings.HasPrefix(out, "SU") || !strings.Contains(errs, "SUBSCRIBER_s"+version) || strings.Contains(errs, strings.TrimSpace(out)) {
			t.Errorf("subscribers add: code %d\n%s", code, errs)
		}
		node.kill()
	}
	if entries, err := os.ReadDir(filepath.Join(flags.DataDir, "nats")); err == nil {
		t.Errorf("there is an event store of our own too: %v", entries)
	}

	flags.DataDir = t.TempDir()
	start := func(args ...string) string {
		code, _, errs := command(t.Context(), append([]string{"start", "--data-dir", flags.DataDir, "--postgres-url", flags.PostgresURL, "--listen", "127.0.0.1:0", "--tls-listen=", "--metrics-listen=", "--nats-url", flags.NATSURL}, args...)...)
		if code == exitOK || strings.Count(errs, "\n") != 1 || strings.Contains(errs, string(seed)) {
			t.Errorf("%v: code %d\n%s", args, code, errs)
		}
		return errs
	}
	withTLS := []string{"--nats-ca", flags.NATSCA, "--nats-cert", flags.NATSCert, "--nats-key", flags.NATSKey}
	for want, args := range map[string][]string{
		"--nats-creds":                      withTLS,
		"certificate":                       {"--nats-creds", creds, "--nats-cert", flags.NATSCert, "--nats-key", flags.NATSKey}, // nobody trusts the server's
		"no seed":                           append([]string{"--nats-creds", flags.NATSCA}, withTLS...),
		"--nats-cert and --nats-key":        {"--nats-creds", creds, "--nats-ca", flags.NATSCA, "--nats-cert", flags.NATSCert},
		"are for the NATS server of --nats": {"--nats-creds", creds, "--nats-url="},
	} {
		if errs := start(args...); !strings.Contains(errs, want) {
			t.Errorf("%v: the error doesn't name %q: %s", args, want, errs)
		}
	}
}

func TestHTTPSWithTheSelfSignedCertificateAndFastAnswersToPlainHTTP(t *testing.T) {
	t.Parallel()
	node := startChild(t, nodeFlags(t))
	pem, err := os.ReadFile(node.CertFile)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		t.Fatal("no certificate in the file")
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: true}, Timeout: 10 * time.Second}
	resp, err := client.Get(node.HTTPSURL + "/streams/v1/index.json")
	if err != nil || resp.StatusCode != 200 || resp.ProtoMajor != 2 {
		t.Fatalf("over HTTPS: %v %v", resp, err)
	}
	_ = resp.Body.Close()
	started := time.Now()
	resp, err = client.Get(strings.Replace(node.HTTPSURL, "https:", "http:", 1) + "/streams/v1/index.json")
	if err != nil || resp.StatusCode != http.StatusBadRequest || time.Since(started) > 5*time.Second {
		t.Errorf("plain HTTP on the HTTPS port: %v %v after %s, want 400 at once", resp, err, time.Since(started))
	} else {
		_ = resp.Body.Close()
	}
}

// At SIGTERM a running upload ends at an offset from which it can be resumed, and nothing is lost.
func TestAStopEndsUploadsWhereTheyCanBeResumed(t *testing.T) {
	t.Parallel()
	flags := nodeFlags(t)
	node := startChild(t, flags)
	p := node.publisher(t)
	data := append([]byte("hsqs"), bytes.Repeat([]byte("0123456789"), 400_000)...)
	session := p.open(request("image", "1", "container", nil, file{format: "rootfs.squashfs", data: data}))
	url := p.create(session, 0, len(data))
	// A slow client: some of the bytes, and then it keeps the request open.
	reading, writing, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer reading.Close() //nolint:errcheck // the client may have closed it
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		_, _ = writing.Write(data[:3_000_000])
	}()
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		_, _ = p.try("PATCH", url, reading, nil, "Tus-Resumable", "1.0.0", "Content-Type", "application/offset+octet-stream", "Upload-Offset", "0")
	}()
	<-sent
	arrived := filepath.Join(flags.DataDir, "storage", "uploads", session.ID, "0")
	eventually(t, func() string {
		if info, err := os.Stat(arrived); err == nil && info.Size() > 0 {
			return ""
		}
		return "no byte arrives"
	})
	node.stop(t)
	_ = writing.Close()
	<-answered

	node = startChild(t, flags)
	p.base, session.StatusURL = node.HTTPURL, "/api/uploads/"+session.ID
	url = node.HTTPURL + url[strings.Index(url, "/api/"):]
	offset := p.offset(url)
	if offset == 0 {
		t.Error("what arrived before the stop is lost")
	}
	if resp := p.patch(url, offset, data[offset:]); resp.StatusCode != 204 {
		t.Fatalf("resuming at %d: %d", offset, resp.StatusCode)
	}
	if job := p.await(session); job.State != "succeeded" {
		t.Errorf("job %+v", job)
	}
}
