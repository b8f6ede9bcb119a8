package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// build makes the program under test: as it is released, without the race detector.
func (b *bench) build(ctx context.Context) error {
	if b.program != "" {
		return nil
	}
	b.program = filepath.Join(b.dir, "imgsrv")
	args := []string{"build", "-o", b.program}
	if b.profiles != "" {
		overlay, err := b.profiling()
		if err != nil {
			return err
		}
		args = append(args, "-overlay", overlay)
	}
	b.logf("building imgsrv")
	if out, err := exec.CommandContext(ctx, "go", append(args, "github.com/imgsrv/imgsrv/cmd/imgsrv")...).CombinedOutput(); err != nil {
		return fmt.Errorf("go build ./cmd/imgsrv: %w: %s", err, out)
	}
	return nil
}

// profiling is a file more for cmd/imgsrv, for this build alone: it writes a CPU profile until SIGUSR1 says that it is enough.
func (b *bench) profiling() (overlay string, err error) {
	if err := os.MkdirAll(b.profiles, 0o755); err != nil {
		return "", err
	}
	const source = `package main

import (
	"os"
	"os/signal"
	"runtime/pprof"
	"syscall"
)

func init() {
	f, err := os.Create(os.Getenv("IMGSRV_BENCH_PROFILE"))
	if err != nil {
		return
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		panic(err)
	}
	enough := make(chan os.Signal, 1)
	signal.Notify(enough, syscall.SIGUSR1)
	go func() {
		<-enough
		pprof.StopCPUProfile()
		_ = f.Close()
	}()
}
`
	out, err := exec.Command("go", "list", "-f", "{{.Dir}}", "github.com/imgsrv/imgsrv/cmd/imgsrv").Output()
	if err != nil {
		return "", fmt.Errorf("find cmd/imgsrv: %w", err)
	}
	file, overlay := filepath.Join(b.dir, "profile.go"), filepath.Join(b.dir, "overlay.json")
	text, err := json.Marshal(map[string]any{"Replace": map[string]string{filepath.Join(strings.TrimSpace(string(out)), "zz_profile.go"): file}})
	if err != nil {
		return "", err
	}
	return overlay, errors.Join(os.WriteFile(file, []byte(source), 0o600), os.WriteFile(overlay, text, 0o600))
}

// server is an imgsrv that runs.
type server struct {
	*process
	http, https, metrics string // URLs
	token                string
	data, storage        string
	took                 time.Duration // from its start to the first answer that it is ready
	client               *http.Client
}

// noLimits lifts what would cap a benchmark: all its requests come from one client. The rest is as by default.
var noLimits = []string{"--max-parallel-uploads=0", "--max-open-sessions=0", "--rate-limit=0", "--scrub-rate=0"}

// imgsrv starts one, and waits until it is ready.
func (b *bench) imgsrv(ctx context.Context, data, storage string, flags ...string) (*server, error) {
	s := &server{data: data, storage: storage}
	args := append([]string{"start", "--data-dir", data, "--storage-dir", storage, "--listen=127.0.0.1:0", "--tls-listen=127.0.0.1:0",
		"--metrics-listen=127.0.0.1:0", "--nats-listen=127.0.0.1:0"}, noLimits...)
	cmd := exec.Command(b.program, append(args, flags...)...)
	if b.profiles != "" {
		name := fmt.Sprintf("%s-%d.pprof", filepath.Base(data), time.Now().UnixNano())
		path, err := filepath.Abs(filepath.Join(b.profiles, name))
		if err != nil {
			return nil, err
		}
		cmd.Env = append(os.Environ(), "IMGSRV_BENCH_PROFILE="+path)
	}
	said, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd.Stdout = write
	began := time.Now()
	s.process, err = b.start(cmd, syscall.SIGTERM)
	if err := errors.Join(err, write.Close()); err != nil {
		return nil, err
	}
	s.profiled = b.profiles != ""
	announced := make(chan struct{})
	go func() {
		defer said.Close() //nolint:errcheck // only read
		defer close(announced)
		lines := bufio.NewScanner(said)
		for lines.Scan() {
			what, value, _ := strings.Cut(strings.TrimSpace(lines.Text()), " ")
			value, _, _ = strings.Cut(strings.TrimSpace(value), " ")
			switch what {
			case "HTTP":
				s.http = value
			case "HTTPS":
				s.https = value
			case "metrics":
				s.metrics = value
			case "Ctrl-C":
				return
			}
		}
	}()
	select {
	case <-announced:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	s.client = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 1000}}
	b.after(s.client.CloseIdleConnections)
	if s.http == "" {
		<-s.done
		return nil, fmt.Errorf("imgsrv did not start; it said: %s", tail(s.log))
	}
	err = s.await(ctx, func() error { return s.get(ctx, "/readyz", nil) })
	s.took = time.Since(began)
	if err != nil {
		return nil, err
	}
	token, err := os.ReadFile(filepath.Join(data, "admin.token"))
	s.token = strings.TrimSpace(string(token))
	return s, err
}

// fresh is an imgsrv with nothing in it, its data and storage in two folders of the disk.
func (b *bench) fresh(ctx context.Context, flags ...string) (*server, error) {
	data, err := b.folder("data")
	if err != nil {
		return nil, err
	}
	return b.imgsrv(ctx, data, filepath.Join(data, "storage"), flags...)
}

// get asks for JSON; out may be nil.
func (s *server) get(ctx context.Context, path string, out any, header ...string) error {
	_, err := s.call(ctx, http.MethodGet, path, nil, out, header...)
	return err
}

// call sends JSON and decodes the answer, which has to be a success.
func (s *server) call(ctx context.Context, method, path string, in, out any, header ...string) (http.Header, error) {
	var body io.Reader
	if in != nil {
		text, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(text)
	}
	if strings.HasPrefix(path, "/") {
		path = s.http + path
	}
	r, err := http.NewRequestWithContext(ctx, method, path, body)
	if err != nil {
		return nil, err
	}
	if in != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	if s.token != "" {
		r.Header.Set("Authorization", "Bearer "+s.token)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	answer, err := s.client.Do(r)
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(answer.Body)
	if err := errors.Join(err, answer.Body.Close()); err != nil {
		return nil, err
	}
	if answer.StatusCode/100 != 2 {
		return nil, &statusError{method + " " + path, answer.StatusCode, string(text[:min(len(text), 500)])}
	}
	if out != nil {
		return answer.Header, json.Unmarshal(text, out)
	}
	return answer.Header, nil
}

type statusError struct {
	request string
	status  int
	text    string
}

func (e *statusError) Error() string { return fmt.Sprintf("%s: %d %s", e.request, e.status, e.text) }

// putOff says whether a server has told a client to come back.
func putOff(err error) bool {
	var status *statusError
	return errors.As(err, &status) && status.status == http.StatusServiceUnavailable
}

// session is an upload session of one file.
type session struct {
	image, version string
	status         string // URL
	create         string // tus URL
	metadata       string
	size           int64
}

// open opens a session. kind is container or virtual-machine.
func (s *server) open(ctx context.Context, image, version, kind, format string, size int64) (session, error) {
	var answer struct {
		StatusURL string `json:"status_url"`
		Files     []struct {
			Tus *struct {
				CreateURL string `json:"create_url"`
				Metadata  string `json:"metadata"`
			} `json:"tus"`
		} `json:"files"`
	}
	file := map[string]any{"format": format, "size": size}
	request := map[string]any{"image": image, "version": version, "os": "debian", "release": "bookworm",
		"description": "a benchmark", "visibility": "public", "aliases": []string{"latest"},
		"variants": []any{map[string]any{"architecture": "x86_64", "type": kind, "flavour": "default", "files": []any{file}}}}
	_, err := s.call(ctx, http.MethodPost, "/api/images", request, &answer)
	for putOff(err) && ctx.Err() == nil {
		time.Sleep(100 * time.Millisecond) // come back, as clients are told to; the time counts
		_, err = s.call(ctx, http.MethodPost, "/api/images", request, &answer)
	}
	if err != nil {
		return session{}, err
	}
	if len(answer.Files) == 0 || answer.Files[0].Tus == nil {
		return session{}, errors.New("the session asks for no file")
	}
	tus := answer.Files[0].Tus
	return session{image: image, version: version, status: answer.StatusURL, create: tus.CreateURL, metadata: tus.Metadata, size: size}, nil
}

// createUpload begins a tus upload on any server and gives its URL.
func createUpload(ctx context.Context, client *http.Client, url, token, metadata string, size int64) (string, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url, nil)
	if err != nil {
		return "", err
	}
	r.Header.Set("Tus-Resumable", "1.0.0")
	r.Header.Set("Upload-Length", strconv.FormatInt(size, 10))
	if metadata != "" {
		r.Header.Set("Upload-Metadata", metadata)
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	answer, err := client.Do(r)
	if err != nil {
		return "", err
	}
	if err := answer.Body.Close(); err != nil {
		return "", err
	}
	if answer.StatusCode != http.StatusCreated {
		return "", fmt.Errorf("tus creation: %d", answer.StatusCode)
	}
	return answer.Header.Get("Location"), nil
}

// send uploads a session's file in PATCHes of at most chunk bytes.
func (s *server) send(ctx context.Context, up session, f *os.File, chunk int64) error {
	url, err := createUpload(ctx, s.client, up.create, s.token, up.metadata, up.size)
	if err != nil {
		return err
	}
	return patchAll(url, s.token, f, up.size, chunk)
}

// How often it is looked whether a version shows: one client eagerly, as what it measures is milliseconds; of many at once each seldom, since
// their looking takes the time of what they look for.
const (
	eagerly = 500 * time.Microsecond
	seldom  = 20 * time.Millisecond
)

// listed waits until a version is in the catalog.
func (s *server) listed(ctx context.Context, image, version string, every time.Duration) error {
	return s.lookUntil(ctx, every, func(ctx context.Context) (bool, error) {
		_, err := s.call(ctx, http.MethodGet, "/api/images/"+image+"/versions/"+version, nil, nil)
		var status *statusError
		if errors.As(err, &status) && status.status == http.StatusNotFound {
			return false, nil
		}
		return err == nil, err
	})
}

// shown waits until a version is in the catalog and in the simplestreams documents.
func (s *server) shown(ctx context.Context, image, version string, every time.Duration) error {
	if err := s.listed(ctx, image, version, every); err != nil {
		return err
	}
	return s.lookUntil(ctx, every, func(ctx context.Context) (bool, error) {
		document, _, err := s.download(ctx, "/streams/v1/images.json")
		return bytes.Contains(document, []byte("/images/"+image+"/versions/"+version+"/")), err
	})
}

func (s *server) lookUntil(ctx context.Context, every time.Duration, look func(context.Context) (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, readyPatience)
	defer cancel()
	for {
		there, err := look(ctx)
		if there || err != nil {
			return err
		}
		if ctx.Err() != nil {
			return fmt.Errorf("a version doesn't show: %w", ctx.Err())
		}
		time.Sleep(every)
	}
}

// put publishes a file the whole way.
func (s *server) put(ctx context.Context, image, version, kind, format string, f *os.File, size int64) error {
	up, err := s.open(ctx, image, version, kind, format, size)
	if err != nil {
		return err
	}
	if err := s.send(ctx, up, f, size); err != nil {
		return err
	}
	return s.shown(ctx, image, version, eagerly)
}

// digest is the digest of a version's file of a format.
func (s *server) digest(ctx context.Context, image, version, format string) (string, error) {
	var v struct {
		Variants []struct {
			Formats []struct {
				Format string `json:"format"`
				Digest string `json:"digest"`
			} `json:"formats"`
		} `json:"variants"`
	}
	if err := s.get(ctx, "/api/images/"+image+"/versions/"+version, &v); err != nil {
		return "", err
	}
	for _, variant := range v.Variants {
		for _, f := range variant.Formats {
			if f.Format == format {
				return strings.TrimPrefix(f.Digest, "sha256:"), nil
			}
		}
	}
	return "", fmt.Errorf("%s %s has no %s", image, version, format)
}

// casPath is where a blob is, in imgsrv's URLs and below its storage folder alike.
func casPath(digest string) string { return "/cas/sha256/" + digest[:2] + "/" + digest }
