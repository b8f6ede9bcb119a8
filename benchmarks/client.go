package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// The clients of both sides are the same, and do next to nothing, since they share the processors with the servers: what arrives is
// dropped in the kernel and never copied (MSG_TRUNC, tcp(7)); of TLS they decrypt the handshake alone; what they send, the kernel
// takes from the file (sendfile).

// dropSize is how much is dropped by one call. The memory is never touched.
const dropSize = 8 << 20

// drop reads up to n bytes away; io.EOF at the end of the connection.
func drop(conn *net.TCPConn, n int) (dropped int, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var failed error
	err = raw.Read(func(fd uintptr) bool {
		dropped, failed = recvDrop(int(fd), min(n, dropSize))
		return !errors.Is(failed, syscall.EAGAIN)
	})
	if err := errors.Join(err, failed); err != nil {
		return 0, err
	}
	if dropped == 0 {
		return 0, io.EOF
	}
	return dropped, nil
}

// fetch downloads a URL on a connection of its own and drops it; size is how long the body has to be, at least. An https URL's
// certificate is not checked: it is the harness's own.
func fetch(target string, size int64) error {
	u, err := url.Parse(target)
	if err != nil {
		return err
	}
	c, err := net.Dial("tcp", u.Host)
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // only read
	tcp, got := c.(*net.TCPConn), int64(0)
	if u.Scheme == "https" {
		secure := tls.Client(c, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13, CurvePreferences: []tls.CurveID{tls.X25519}})
		if err := secure.Handshake(); err != nil {
			return err
		}
		c = secure
	}
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", u.Path, u.Host); err != nil {
		return err
	}
	if u.Scheme == "http" {
		k := &conn{tcp: tcp, buf: make([]byte, 16<<10)}
		answer, err := k.readAnswer()
		if err != nil {
			return err
		}
		if answer.status != 200 || answer.length != size {
			return fmt.Errorf("GET %s: %d with %d bytes", target, answer.status, answer.length)
		}
		return k.dropRest(answer)
	}
	for {
		n, err := drop(tcp, dropSize)
		if errors.Is(err, io.EOF) && got >= size {
			return nil
		}
		if err != nil {
			return fmt.Errorf("GET %s after %d bytes: %w", target, got, err)
		}
		got += int64(n)
	}
}

// conn is a connection for one request after the other.
type conn struct {
	tcp *net.TCPConn
	buf []byte
}

// answer is the head of one; have are the bytes of its body that came along.
type answer struct {
	status int
	length int64
	have   int64
	header []byte
}

func dial(host string) (*conn, error) {
	c, err := net.Dial("tcp", host)
	if err != nil {
		return nil, err
	}
	return &conn{tcp: c.(*net.TCPConn), buf: make([]byte, 16<<10)}, nil
}

func (c *conn) close() { _ = c.tcp.Close() }

// do sends a request and drops the answer.
func (c *conn) do(request []byte) (answer, error) {
	if _, err := c.tcp.Write(request); err != nil {
		return answer{}, err
	}
	a, err := c.readAnswer()
	if err != nil {
		return a, err
	}
	return a, c.dropRest(a)
}

func (c *conn) readAnswer() (a answer, err error) {
	n := 0
	for {
		m, err := c.tcp.Read(c.buf[n:])
		if err != nil {
			return a, fmt.Errorf("read an answer: %w", err)
		}
		n += m
		if end := bytes.Index(c.buf[:n], []byte("\r\n\r\n")); end >= 0 {
			a.header, a.have = c.buf[:end+2], int64(n-end-4)
			break
		}
		if n == len(c.buf) {
			return a, errors.New("the head of an answer is too long")
		}
	}
	if len(a.header) < 12 {
		return a, fmt.Errorf("no answer of HTTP: %q", a.header)
	}
	a.status, _ = strconv.Atoi(string(a.header[9:12]))
	if a.status == 304 || a.status == 204 {
		return a, nil
	}
	length, ok := field(a.header, "content-length")
	if !ok {
		return a, fmt.Errorf("an answer without a length: %.300q", a.header)
	}
	a.length, err = strconv.ParseInt(length, 10, 64)
	return a, err
}

// field finds a header field, without an allocation per line.
func field(header []byte, name string) (string, bool) {
	for len(header) > 0 {
		line, rest, _ := bytes.Cut(header, []byte("\r\n"))
		header = rest
		if len(line) > len(name) && line[len(name)] == ':' && strings.EqualFold(string(line[:len(name)]), name) {
			return string(bytes.TrimSpace(line[len(name)+1:])), true
		}
	}
	return "", false
}

func (c *conn) dropRest(a answer) error {
	for left := a.length - a.have; left > 0; {
		n, err := drop(c.tcp, int(min(left, dropSize)))
		if err != nil {
			return fmt.Errorf("read a body, %d bytes from its end: %w", left, err)
		}
		left -= int64(n)
	}
	return nil
}

// load makes n requests to host with so many clients at once, each on one connection. request gives the i-th; every answer has to be
// status. It gives the requests a second and how long each took.
func load(ctx context.Context, host string, clients, n, status int, request func(i int) []byte) (rate float64, took []time.Duration, err error) {
	conns := make([]*conn, clients)
	for i := range conns {
		if conns[i], err = dial(host); err != nil {
			return 0, nil, err
		}
		defer conns[i].close()
	}
	took = make([]time.Duration, n)
	errs := make([]error, clients)
	var work sync.WaitGroup
	began := time.Now()
	for c := range conns {
		work.Go(func() {
			for i := c; i < n && ctx.Err() == nil; i += clients {
				started := time.Now()
				a, err := conns[c].do(request(i))
				if err == nil && a.status != status {
					err = fmt.Errorf("status %d, want %d: %.300q", a.status, status, a.header)
				}
				if err != nil {
					errs[c] = err
					return
				}
				took[i] = time.Since(started)
			}
		})
	}
	work.Wait()
	all := time.Since(began)
	return float64(n) / all.Seconds(), took, errors.Join(append(errs, ctx.Err())...)
}

// getRequest is a GET with header fields.
func getRequest(host, path string, header ...string) []byte {
	var r strings.Builder
	fmt.Fprintf(&r, "GET %s HTTP/1.1\r\nHost: %s\r\n", path, host)
	for i := 0; i < len(header); i += 2 {
		fmt.Fprintf(&r, "%s: %s\r\n", header[i], header[i+1])
	}
	r.WriteString("\r\n")
	return []byte(r.String())
}

// patchAll sends a file's first size bytes to a tus upload, in PATCHes of at most chunk bytes on one connection.
func patchAll(target, token string, f *os.File, size, chunk int64) error {
	u, err := url.Parse(target)
	if err != nil {
		return err
	}
	c, err := dial(u.Host)
	if err != nil {
		return err
	}
	defer c.close()
	auth := ""
	if token != "" {
		auth = "Authorization: Bearer " + token + "\r\n"
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	for at := int64(0); at < size; at += chunk {
		n := min(chunk, size-at)
		if _, err := fmt.Fprintf(c.tcp, "PATCH %s HTTP/1.1\r\nHost: %s\r\n%sTus-Resumable: 1.0.0\r\nContent-Type: application/offset+octet-stream\r\nUpload-Offset: %d\r\nContent-Length: %d\r\n\r\n",
			u.Path, u.Host, auth, at, n); err != nil {
			return err
		}
		if _, err := c.tcp.ReadFrom(io.LimitReader(f, n)); err != nil {
			return fmt.Errorf("PATCH at %d: %w", at, err)
		}
		a, err := c.readAnswer()
		if err != nil {
			return fmt.Errorf("PATCH at %d: %w", at, err)
		}
		if a.status != 204 {
			return fmt.Errorf("PATCH at %d: %d: %.500q", at, a.status, a.header)
		}
	}
	return nil
}
