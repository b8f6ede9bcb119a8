package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/imgsrv/imgsrv/internal/lxctest"
)

// handTree is a simplestreams server made by hand, in the layout of images.linuxcontainers.org: products of OS, release,
// architecture and variant, with the versions of each in it.
type handTree struct {
	t      *testing.T
	URL    string
	CAFile string

	mu       sync.Mutex
	files    map[string][]byte
	products map[string]map[string]any
	requests []string         // METHOD PATH RANGE STATUS
	cuts     map[string]int   // after so many bytes of a file the connection breaks, once
	hold     map[string]*held // a file stops at some byte until it is released
	down     bool
}

type held struct {
	after   int
	reached chan struct{}
	release chan struct{}
}

func newHandTree(t *testing.T) *handTree {
	t.Helper()
	h := &handTree{t: t, files: map[string][]byte{}, products: map[string]map[string]any{}, cuts: map[string]int{}, hold: map[string]*held{}}
	server := httptest.NewTLSServer(h)
	t.Cleanup(server.Close)
	h.URL, h.CAFile = server.URL, lxctest.CertificateFile(t, server.Certificate())
	return h
}

// add offers a container of a product OS:RELEASE:ARCH:VARIANT: lxd.tar.xz and a squashfs, or what the change makes of it.
func (h *handTree) add(product, serial string, meta, root []byte, change func(items map[string]map[string]any)) (fingerprint string) {
	dir := treeDir(product, serial)
	fingerprint = digestOf(append(bytes.Clone(meta), root...))
	items := map[string]map[string]any{
		"lxd.tar.xz":    {"ftype": "lxd.tar.xz", "path": dir + "lxd.tar.xz", "sha256": digestOf(meta), "size": len(meta), "combined_squashfs_sha256": fingerprint},
		"root.squashfs": {"ftype": "squashfs", "path": dir + "rootfs.squashfs", "sha256": digestOf(root), "size": len(root)},
	}
	if change != nil {
		change(items)
	}
	h.offer(product, serial, items, map[string][]byte{dir + "lxd.tar.xz": meta, dir + "rootfs.squashfs": root}, nil)
	return fingerprint
}

// treeDir is where the files of a version are.
func treeDir(product, serial string) string {
	return "images/" + strings.ReplaceAll(product, ":", "/") + "/" + serial + "/"
}

// offer puts a version into the documents, and files by their paths; says are further fields of the product.
func (h *handTree) offer(product, serial string, items map[string]map[string]any, files map[string][]byte, says map[string]any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	parts := strings.Split(product, ":")
	maps.Copy(h.files, files)
	if h.products[product] == nil {
		h.products[product] = map[string]any{"aliases": parts[0] + "/" + parts[1] + "/" + parts[3], "arch": parts[2], "os": strings.ToUpper(parts[0][:1]) + parts[0][1:], "release": parts[1],
			"release_title": parts[1], "variant": parts[3], "requirements": map[string]string{}, "versions": map[string]any{}}
	}
	maps.Copy(h.products[product], says)
	h.products[product]["versions"].(map[string]any)[serial] = map[string]any{"items": items}
	keys := []string{}
	for key := range h.products {
		keys = append(keys, key)
	}
	h.files["streams/v1/index.json"] = h.encode(map[string]any{"format": "index:1.0", "index": map[string]any{"images": map[string]any{"datatype": "image-downloads",
		"path": "streams/v1/images.json", "format": "products:1.0", "products": keys}}})
	h.files["streams/v1/images.json"] = h.encode(map[string]any{"content_id": "images", "datatype": "image-downloads", "format": "products:1.0", "products": h.products})
}

func (h *handTree) encode(v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		h.t.Fatal(err)
	}
	return data
}

func (h *handTree) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := strings.TrimPrefix(r.URL.Path, "/")
	h.mu.Lock()
	data, there := h.files[path]
	cut := h.cuts[path]
	delete(h.cuts, path)
	hold := h.hold[path]
	delete(h.hold, path)
	down := h.down
	h.mu.Unlock()
	recorded := &statusWriter{ResponseWriter: w, left: -1, hold: hold}
	if cut > 0 {
		recorded.left = cut
	}
	defer func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.requests = append(h.requests, fmt.Sprintf("%s %s %s %d", r.Method, path, r.Header.Get("Range"), recorded.status))
	}()
	switch {
	case down:
		http.Error(recorded, "down for maintenance", http.StatusServiceUnavailable)
	case !there:
		http.NotFound(recorded, r)
	default:
		w.Header().Set("ETag", strconv.Quote(digestOf(data)))
		http.ServeContent(recorded, r, path, time.Time{}, bytes.NewReader(data))
	}
}

// statusWriter notes the status, and breaks the connection or waits at the byte where it has to.
type statusWriter struct {
	http.ResponseWriter
	status int
	left   int // bytes until the break; -1: none
	sent   int
	hold   *held
}

func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

func (w *statusWriter) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	if w.left >= 0 && len(p) > w.left {
		_, _ = w.ResponseWriter.Write(p[:w.left])
		panic(http.ErrAbortHandler)
	}
	if w.left >= 0 {
		w.left -= len(p)
	}
	if w.hold != nil && w.sent+len(p) > w.hold.after {
		w.ResponseWriter.(http.Flusher).Flush()
		close(w.hold.reached)
		<-w.hold.release
		panic(http.ErrAbortHandler)
	}
	w.sent += len(p)
	return w.ResponseWriter.Write(p)
}

// asked are the requests since the last call.
func (h *handTree) asked() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	requests := h.requests
	h.requests = nil
	return requests
}

func (h *handTree) setDown(down bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.down = down
}
