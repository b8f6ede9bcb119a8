package main

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/imgsrv/imgsrv/internal/testtool"
)

// publisher talks to a server as scripts do: plain HTTP, no client of ours.
type publisher struct {
	t     *testing.T
	base  string
	token string
}

// call sends JSON (or bytes, or nothing) and decodes a JSON answer into out, where given.
func (p *publisher) call(method, path string, body any, out any, header ...string) *http.Response {
	p.t.Helper()
	resp, err := p.try(method, path, body, out, header...)
	if err != nil {
		p.t.Fatal(err)
	}
	return resp
}

func (p *publisher) try(method, path string, body any, out any, header ...string) (*http.Response, error) {
	var reader io.Reader
	contentType := ""
	switch b := body.(type) {
	case nil:
	case []byte:
		reader = bytes.NewReader(b)
	case io.Reader:
		reader = b
	default:
		data, err := json.Marshal(b)
		if err != nil {
			return nil, err
		}
		reader, contentType = bytes.NewReader(data), "application/json"
	}
	if path[0] == '/' {
		path = p.base + path
	}
	r, err := http.NewRequestWithContext(p.t.Context(), method, path, reader)
	if err != nil {
		return nil, err
	}
	if contentType != "" {
		r.Header.Set("Content-Type", contentType)
	}
	if p.token != "" {
		r.Header.Set("Authorization", "Bearer "+p.token)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(resp.Body)
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		return nil, err
	}
	if out != nil {
		if raw, ok := out.(*[]byte); ok {
			*raw = data
		} else if err := json.Unmarshal(data, out); err != nil {
			return nil, fmt.Errorf("%s %s: %d with %q: %w", method, path, resp.StatusCode, data, err)
		}
	}
	return resp, nil
}

// sessionAnswer is what POST /api/images says.
type sessionAnswer struct {
	ID        string `json:"upload_session_id"`
	State     string `json:"state"`
	StatusURL string `json:"status_url"`
	Files     []struct {
		Variant string `json:"variant"`
		Format  string `json:"format"`
		State   string `json:"state"`
		Tus     *struct {
			CreateURL string `json:"create_url"`
			Metadata  string `json:"metadata"`
		} `json:"tus"`
	} `json:"files"`
}

// jobAnswer is what GET /api/jobs/{id} says.
type jobAnswer struct {
	ID    string `json:"id"`
	State string `json:"state"`
	Steps []struct {
		Name    string `json:"name"`
		State   string `json:"state"`
		Attempt int    `json:"attempt"`
	} `json:"steps"`
	VersionURL string `json:"version_url"`
	Error      *struct {
		Code   string `json:"code"`
		Detail string `json:"detail"`
		Final  bool   `json:"final"`
	} `json:"error"`
}

// file is one file to publish.
type file struct {
	format string
	data   []byte
	sha256 string // declared; "" for none
}

func vm(image, version string, aliases []string, files ...file) map[string]any {
	return request(image, version, "virtual-machine", aliases, files...)
}

func request(image, version, kind string, aliases []string, files ...file) map[string]any {
	var declared []map[string]any
	for _, f := range files {
		d := map[string]any{"format": f.format, "size": len(f.data)}
		if f.sha256 != "" {
			d["sha256"] = f.sha256
		}
		declared = append(declared, d)
	}
	return map[string]any{"image": image, "version": version, "os": "debian", "release": "bookworm", "description": "a test image", "visibility": "public", "aliases": aliases,
		"variants": []any{map[string]any{"architecture": "x86_64", "type": kind, "flavour": "default", "files": declared}}}
}

// open opens a session; the answer has to be 201.
func (p *publisher) open(body map[string]any) sessionAnswer {
	p.t.Helper()
	var session sessionAnswer
	if resp := p.call("POST", "/api/images", body, &session); resp.StatusCode != 201 {
		p.t.Fatalf("POST /api/images: %d", resp.StatusCode)
	}
	return session
}

// create makes the tus upload of a session's n-th file and gives its URL.
func (p *publisher) create(session sessionAnswer, n, size int) string {
	p.t.Helper()
	f := session.Files[n]
	if f.Tus == nil {
		p.t.Fatalf("file %s needs no upload: %s", f.Format, f.State)
	}
	resp := p.call("POST", f.Tus.CreateURL, nil, nil, "Tus-Resumable", "1.0.0", "Upload-Length", strconv.Itoa(size), "Upload-Metadata", f.Tus.Metadata)
	if resp.StatusCode != 201 {
		p.t.Fatalf("tus creation: %d", resp.StatusCode)
	}
	return resp.Header.Get("Location")
}

func (p *publisher) patch(url string, offset int, data []byte) *http.Response {
	p.t.Helper()
	return p.call("PATCH", url, data, nil, "Tus-Resumable", "1.0.0", "Content-Type", "application/offset+octet-stream", "Upload-Offset", strconv.Itoa(offset))
}

func (p *publisher) offset(url string) int {
	p.t.Helper()
	resp := p.call("HEAD", url, nil, nil, "Tus-Resumable", "1.0.0")
	offset, err := strconv.Atoi(resp.Header.Get("Upload-Offset"))
	if err != nil {
		p.t.Fatalf("HEAD %s: %d, Upload-Offset %q", url, resp.StatusCode, resp.Header.Get("Upload-Offset"))
	}
	return offset
}

// brokenPatch sends the head of a PATCH and cuts the connection after sending n bytes of it.
func (p *publisher) brokenPatch(url string, offset int, data []byte, n int) {
	p.t.Helper()
	r, err := http.NewRequestWithContext(p.t.Context(), "PATCH", url, nil)
	if err != nil {
		p.t.Fatal(err)
	}
	conn, err := net.Dial("tcp", r.URL.Host)
	if err != nil {
		p.t.Fatal(err)
	}
	head := fmt.Sprintf("PATCH %s HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\nTus-Resumable: 1.0.0\r\nContent-Type: application/offset+octet-stream\r\nUpload-Offset: %d\r\nContent-Length: %d\r\n\r\n",
		r.URL.Path, r.URL.Host, p.token, offset, len(data))
	if _, err := conn.Write(append([]byte(head), data[:n]...)); err != nil {
		p.t.Fatal(err)
	}
	if err := conn.Close(); err != nil {
		p.t.Fatal(err)
	}
}

// upload uploads all files of a session in one PATCH each.
func (p *publisher) upload(session sessionAnswer, files ...file) {
	p.t.Helper()
	for n, f := range session.Files {
		if f.Tus == nil {
			continue
		}
		for _, have := range files {
			if have.format != f.Format {
				continue
			}
			if resp := p.patch(p.create(session, n, len(have.data)), 0, have.data); resp.StatusCode != 204 {
				p.t.Fatalf("upload of %s: %d", f.Format, resp.StatusCode)
			}
		}
	}
}

// await waits until the session's job has ended.
func (p *publisher) await(session sessionAnswer) jobAnswer {
	p.t.Helper()
	var status struct {
		State  string `json:"state"`
		JobURL string `json:"job_url"`
	}
	var job jobAnswer
	deadline := time.Now().Add(2 * time.Minute)
	for time.Now().Before(deadline) {
		p.call("GET", session.StatusURL, nil, &status)
		if status.JobURL != "" && (status.State == "published" || status.State == "failed") {
			p.call("GET", status.JobURL, nil, &job)
			if job.State == "succeeded" || job.State == "failed" {
				return job
			}
		}
		time.Sleep(20 * time.Millisecond) // a poll, as clients do it
	}
	p.t.Fatalf("session %s is %s, its job %s, after two minutes", session.ID, status.State, job.State)
	return job
}

// publish takes files all the way and fails the test unless they are published.
func (p *publisher) publish(body map[string]any, files ...file) jobAnswer {
	p.t.Helper()
	session := p.open(body)
	p.upload(session, files...)
	job := p.await(session)
	if job.State != "succeeded" {
		p.t.Fatalf("job %s: %+v", job.State, job.Error)
	}
	return job
}

func digestOf(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// qcow2Image makes a real qcow2 image with random data of so many bytes.
func qcow2Image(t *testing.T, dataBytes int, options ...string) []byte {
	t.Helper()
	testtool.Need(t, "qemu-img")
	dir := t.TempDir()
	raw, out := filepath.Join(dir, "disk.raw"), filepath.Join(dir, "disk.qcow2")
	data := make([]byte, dataBytes)
	_, _ = rand.Read(data) // never fails
	if err := os.WriteFile(raw, data, 0o600); err != nil {
		t.Fatal(err)
	}
	args := append([]string{"convert", "-f", "raw", "-O", "qcow2"}, options...)
	if text, err := exec.CommandContext(t.Context(), "qemu-img", append(args, raw, out)...).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img: %v: %s", err, text)
	}
	image, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return image
}

// qemuCheck has the real tool look for faults in an image.
func qemuCheck(t *testing.T, file string) {
	t.Helper()
	if text, err := exec.CommandContext(t.Context(), "qemu-img", "check", file).CombinedOutput(); err != nil {
		t.Errorf("qemu-img check: %v: %s", err, text)
	}
}
