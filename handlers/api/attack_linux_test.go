package api_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"github.com/go-chi/chi/v5"
	"golang.org/x/sys/unix"

	"github.com/imgsrv/imgsrv/events"
)

// watchOpens tells which files of a folder were opened, by the kernel's word.
func watchOpens(t *testing.T, dir string) func() []string {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_OPEN|unix.IN_CREATE|unix.IN_MODIFY|unix.IN_DELETE|unix.IN_MOVED_FROM); err != nil {
		t.Fatal(err)
	}
	return func() (names []string) {
		buffer := make([]byte, 1<<16)
		for {
			n, err := unix.Read(fd, buffer)
			if err != nil || n <= 0 {
				return names
			}
			for at := 0; at+unix.SizeofInotifyEvent <= n; {
				event := (*unix.InotifyEvent)(unsafe.Pointer(&buffer[at]))
				name := buffer[at+unix.SizeofInotifyEvent : at+unix.SizeofInotifyEvent+int(event.Len)]
				names = append(names, string(bytes.TrimRight(name, "\x00")))
				at += unix.SizeofInotifyEvent + int(event.Len)
			}
		}
	}
}

// traversals are ways to name the file secret beside the storage.
func traversals(abs string) []string {
	var all []string
	for _, up := range []string{"..", "../..", "../../..", "../../../..", "../../../../.."} {
		plain := up + "/secret"
		encoded := strings.ReplaceAll(strings.ReplaceAll(plain, ".", "%2e"), "/", "%2f")
		all = append(all, plain, strings.ReplaceAll(plain, "/", "%2f"), encoded, strings.ReplaceAll(encoded, "%", "%25"), strings.ReplaceAll(plain, "/", `\`),
			strings.ReplaceAll(plain, "/", "%5c"), plain+"%00", encoded+"%00.qcow2", strings.ReplaceAll(plain, "..", "..%00"),
			strings.ReplaceAll(plain, "/", "%c0%af"), strings.ReplaceAll(plain, "..", "....//"), plain+"%0d%0aX-Header:%20x")
	}
	return append(all, abs, url.PathEscape(abs), "file://"+abs, "~", ".", "..", "%00")
}

// targets are requests, method and path, with each of the bad names in the place of each parameter of each route.
func (d *door) targets(t *testing.T, badNames []string) (targets [][2]string) {
	t.Helper()
	add := func(method, route string) {
		parts := strings.Split(route, "/")
		for i, part := range parts {
			if !strings.HasPrefix(part, "{") && part != "*" {
				continue
			}
			for _, bad := range badNames {
				path := append([]string(nil), parts...)
				for k := range path {
					if strings.HasPrefix(path[k], "{") {
						path[k] = "a"
					}
				}
				path[i] = bad
				targets = append(targets, [2]string{method, strings.Join(path, "/")})
			}
		}
	}
	err := chi.Walk(d.Handler.(chi.Routes), func(method, route string, _ http.Handler, _ ...func(http.Handler) http.Handler) error {
		switch method {
		case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete:
			add(method, strings.ReplaceAll(route, "/*/", "/"))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, route := range []string{"/api/uploads/tus/{id}", "/api/uploads/tus/{id}.0", "/streams/v1/{name}", "/cas/sha256/{prefix}/{hex}", "/{any}"} {
		add(http.MethodGet, route)
	}
	return targets
}

// TestNoPathLeadsOutOfTheStorage tries every parameter of every route, and ids of uploads, with the names of a file beside the
// storage. It is never opened.
func TestNoPathLeadsOutOfTheStorage(t *testing.T) {
	t.Parallel()
	d := newDoor(t)
	secret := filepath.Join(d.around, "secret")
	opened := watchOpens(t, d.around)
	if _, err := os.ReadFile(secret); err != nil {
		t.Fatal(err)
	}
	if got := opened(); len(got) == 0 || got[0] != "secret" {
		t.Fatalf("the watch sees %v", got)
	}
	targets := d.targets(t, traversals(secret))
	for _, target := range targets {
		u, err := url.ParseRequestURI(target[1])
		if err != nil {
			continue // net/http refuses it
		}
		if w := d.knock(t, target[0], target[1], asAdmin+"\r\nTus-Resumable: 1.0.0\r\nUpload-Offset: 0\r\nContent-Type: application/offset+octet-stream", []byte("x")); w.Code < 400 {
			t.Errorf("%s %s (%q): %d", target[0], target[1], u.Path, w.Code)
		}
	}
	if got := opened(); len(got) > 0 {
		for _, name := range got {
			if name != "storage" {
				t.Errorf("%s was touched, beside the storage", name)
			}
		}
	}
	d.untouched(t)
	t.Logf("%d requests", len(targets))
}

// TestEndlessNamesBreakNoConnection: NATS ends a connection on which a subject is too long, for good. No name of a request makes one.
func TestEndlessNamesBreakNoConnection(t *testing.T) {
	t.Parallel()
	d := newDoor(t)
	for _, target := range d.targets(t, []string{strings.Repeat("a", 5000), strings.Repeat(".", 2500)}) {
		if w := d.knock(t, target[0], target[1], asAdmin+"\r\nTus-Resumable: 1.0.0\r\nContent-Type: application/json", []byte("{}")); w.Code < 400 {
			t.Errorf("%s %.60s: %d", target[0], target[1], w.Code)
		}
		if _, err := d.log.Head(t.Context()); err != nil {
			t.Fatalf("after %s %.60s: %v", target[0], target[1], err)
		}
	}
}

// TestABlobThatIsALinkIsNotFollowed: somebody who can write in the storage lets a published blob lead elsewhere.
func TestABlobThatIsALinkIsNotFollowed(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	data := []byte("published")
	n.publish(session("debian", "1", data), data)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("SECRETxxx"), 0o600); err != nil {
		t.Fatal(err)
	}
	file, _, err := n.blobs.OpenBlob(sha(data))
	if err != nil {
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(file.Name()); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(secret, file.Name()); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{formatPath("debian", "1"), blobPath(data)} {
		a := n.do(http.MethodGet, path, nil)
		n.problem(a, 500, "blob-damaged")
		if strings.Contains(string(a.body), "SECRET") {
			t.Errorf("%s gives what the link leads to", path)
		}
	}
	if !strings.Contains(n.logged.String(), "not a regular file") {
		t.Error("the log doesn't say why")
	}
}

// TestRangesCostNoMoreThanTheFile: many small ranges are refused; overlapping ones don't multiply the file.
func TestRangesCostNoMoreThanTheFile(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	data := pattern(1 << 20)
	n.publish(session("debian", "1", data), data)
	small := make([]string, 5000)
	for i := range small {
		small[i] = fmt.Sprintf("%d-%d", 2*i, 2*i)
	}
	a := n.do(http.MethodGet, formatPath("debian", "1"), nil, withHeader("Range", "bytes="+strings.Join(small, ",")))
	n.problem(a, 416, "range-not-satisfiable")
	for _, ranges := range []string{strings.Repeat("0-,", 15) + "0-", strings.Repeat("0-1048574,", 15) + "-1", "0-700000,100000-800000,200000-900000"} {
		a := n.do(http.MethodGet, formatPath("debian", "1"), nil, withHeader("Range", "bytes="+ranges))
		if a.StatusCode >= 400 || len(a.body) > len(data)+len(data)/10 {
			t.Errorf("%s: %d with %d bytes of a file of %d", ranges, a.StatusCode, len(a.body), len(data))
		}
	}
	if a := n.do(http.MethodGet, formatPath("debian", "1"), nil, withHeader("Range", "bytes="+strings.Join(small[:16], ","))); a.StatusCode != 206 {
		t.Errorf("16 ranges: %d", a.StatusCode)
	}
}

// TestBodiesThatAreMeantToHurt: they are refused as the client's fault, and the answer is no larger than it helps.
func TestBodiesThatAreMeantToHurt(t *testing.T) {
	t.Parallel()
	d := newDoor(t)
	deep := func(open, inner, end string, depth int) string {
		return strings.Repeat(open, depth) + inner + strings.Repeat(end, depth)
	}
	var names strings.Builder
	for i := range 60_000 {
		fmt.Fprintf(&names, `"x%d":1,`, i)
	}
	variant := `{"architecture":"amd64","type":"container","files":[{"format":"disk.raw","size":1}]}`
	wrap := func(variants string) string { return `{"image":"debian","version":"1","variants":[` + variants + `]}` }
	for name, body := range map[string]string{
		"deep arrays":             deep("[", "", "]", 400_000),
		"deep objects":            `{"image":` + deep(`{"a":`, "1", "}", 150_000) + `}`,
		"deep and cut off":        deep(`{"a":[`, "", "", 150_000),
		"more than a body":        wrap(strings.Repeat(variant+",", 20_000) + variant),
		"many empty variants":     wrap(strings.Repeat(`{},`, 300_000) + "{}"),
		"many wrong types":        wrap(strings.Repeat(`0,`, 400_000) + "0"),
		"many bad variants":       wrap(strings.Repeat(`{"architecture":"x","type":"container","files":[]},`, 10_000) + variant),
		"many files":              wrap(`{"architecture":"amd64","type":"container","files":[` + strings.Repeat(`{"format":"..","size":-1},`, 30_000) + `{"format":"a","size":1}]}`),
		"many aliases":            `{"image":"debian","version":"1","aliases":[` + strings.Repeat(`"..",`, 150_000) + `"a"],"variants":[` + variant + `]}`,
		"many unknown members":    `{"image":"debian","version":"1",` + strings.Repeat(`"x":1,`, 100_000) + `"variants":[` + variant + `]}`,
		"members of many names":   `{"image":"debian","version":"1",` + names.String() + `"variants":[` + variant + `]}`,
		"a long alias":            `{"image":"debian","version":"1","aliases":["` + strings.Repeat("a", 900_000) + `"],"variants":[` + variant + `]}`,
		"a long name":             `{"image":"` + strings.Repeat("a", 900_000) + `","version":"1","variants":[` + variant + `]}`,
		"the last of two members": strings.Replace(wrap(variant), `"image":"debian"`, `"image":"debian","image":"../../etc"`, 1),
		"other case":              strings.Replace(wrap(variant), `"image":"debian"`, `"image":"debian","IMAGE":"../../etc"`, 1),
		"no UTF-8":                strings.Replace(wrap(variant), `debian`, "deb\xff\xfeian", 1),
		"lone surrogates":         strings.Replace(wrap(variant), `debian`, `\ud800`, 1),
		"character 0":             strings.Replace(wrap(variant), `debian`, `deb\u0000ian`, 1),
		"a line break":            strings.Replace(wrap(variant), `debian`, `deb\r\nian`, 1),
		"a huge number":           strings.Replace(wrap(variant), `"size":1}`, `"size":1e400}`, 1),
		"a long number":           strings.Replace(wrap(variant), `"size":1}`, `"size":`+strings.Repeat("9", 500_000)+`}`, 1),
		"a fraction":              strings.Replace(wrap(variant), `"size":1}`, `"size":1.5}`, 1),
		"two documents":           wrap(variant) + wrap(variant),
	} {
		w := d.knock(t, http.MethodPost, "/api/images", asAdmin+"\r\nContent-Type: application/json", []byte(body))
		if w.Code < 400 || w.Code >= 500 {
			t.Errorf("%s: %d: %.300s", name, w.Code, w.Body)
		}
		if w.Body.Len() > 64<<10 {
			t.Errorf("%s: %d bytes of answer to %d", name, w.Body.Len(), len(body))
		}
		if strings.Contains(w.Body.String(), "map[") { // printed, again for each broken rule, it is seconds of work
			t.Errorf("%s: a member of the body is repeated as a whole: %.300s", name, w.Body)
		}
	}
	long := `{"version":"` + strings.Repeat("a", 900_000) + `"}`
	if w := d.knock(t, http.MethodPut, "/api/images/debian/aliases/latest", asAdmin+"\r\nContent-Type: application/json", []byte(long)); w.Code != http.StatusUnprocessableEntity || w.Body.Len() > 64<<10 {
		t.Errorf("a long version: %d, %d bytes of answer", w.Code, w.Body.Len())
	}
	if head, err := d.log.Head(t.Context()); err != nil || head != 0 {
		t.Errorf("%d events, %v", head, err)
	}
}

// TestPlacesInTheStreamThatAreNone: what is no sequence is refused before the stream is asked.
func TestPlacesInTheStreamThatAreNone(t *testing.T) {
	t.Parallel()
	d := newDoor(t)
	for _, id := range []string{"-1", "1", "99999999999999999999", "1e3", "0x10", " 1 2", "NaN", strings.Repeat("9", 30_000), "1; DROP", "%0d%0a", "\xff"} {
		for _, path := range []string{"/api/events", "/api/events?type=imgsrv.version.*"} {
			if w := d.knock(t, http.MethodGet, path, asAdmin+"\r\nLast-Event-ID: "+id, nil); w.Code != http.StatusBadRequest || w.Body.Len() > 1000 {
				t.Errorf("Last-Event-ID %.40q: %d: %.200s", id, w.Code, w.Body)
			}
		}
	}
}

// TestNamesMakeNoHeaders: a version's names stand in Content-Disposition, and a request's own id in X-Request-Id.
func TestNamesMakeNoHeaders(t *testing.T) {
	t.Parallel()
	d := newDoor(t)
	for _, bad := range []string{"a\"; filename=\"b", "a\r\nSet-Cookie: x", "a;b", "a b", "a\u2028b", "a\x7f"} {
		body, err := json.Marshal(session("debian", "1", []byte("x")))
		if err != nil {
			t.Fatal(err)
		}
		for _, good := range []string{`"debian"`, `"1"`, `"disk.qcow2"`} {
			quoted, err := json.Marshal(bad)
			if err != nil {
				t.Fatal(err)
			}
			changed := strings.Replace(string(body), good, string(quoted), 1)
			if w := d.knock(t, http.MethodPost, "/api/images", asAdmin+"\r\nContent-Type: application/json", []byte(changed)); w.Code != http.StatusUnprocessableEntity {
				t.Errorf("%q in place of %s: %d", bad, good, w.Code)
			}
		}
		if w := d.knock(t, http.MethodGet, "/healthz", "X-Request-Id: "+strings.NewReplacer("\r", "", "\n", "", "\x7f", "").Replace(bad), nil); w.Header().Get("X-Request-Id") == bad {
			t.Errorf("%q is passed on", bad)
		}
	}
	if err := events.CheckFormatName("x\r\ny"); err == nil {
		t.Error("a name of two lines is fine")
	}
}
