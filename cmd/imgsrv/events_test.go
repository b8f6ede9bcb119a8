package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/imgsrv/imgsrv/internal/client"
)

// twoVersions publishes debian/1 and debian/2, and moves latest back to 1.
func twoVersions(t *testing.T, flags []string, node *Node) *publisher {
	t.Helper()
	for i, disk := range []string{rawDisk(4000), rawDisk(5000)} {
		args := with(flags, "publish", write(t, disk)[0], "--image=debian", fmt.Sprintf("--version=%d", i+1), "--architecture=amd64", "--alias=latest")
		if code, _, errs := command(t.Context(), args...); code != 0 {
			t.Fatalf("publish: exit code %d: %s", code, errs)
		}
	}
	p := node.publisher(t)
	if resp := p.call("PUT", "/api/images/debian/aliases/latest", map[string]any{"version": "1"}, nil); resp.StatusCode != http.StatusOK {
		t.Fatalf("move the alias: %s", resp.Status)
	}
	return p
}

// untilLine runs a command that goes on until a line of its output satisfies.
func untilLine(t *testing.T, satisfies func(string) bool, args ...string) []string {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	var lines []string
	out := lineWriter{each: func(line string) {
		if lines = append(lines, line); satisfies(line) {
			stop()
		}
	}}
	var errs strings.Builder
	if code := run(ctx, args, Terminal{Out: &out, Err: &errs}); code != 0 || len(lines) == 0 || !satisfies(lines[len(lines)-1]) {
		t.Fatalf("%v: exit code %d, %s, lines:\n%s", args, code, errs.String(), strings.Join(lines, "\n"))
	}
	return lines
}

type lineWriter struct {
	rest string
	each func(string)
}

func (l *lineWriter) Write(b []byte) (int, error) {
	l.rest += string(b)
	for {
		line, rest, ok := strings.Cut(l.rest, "\n")
		if !ok {
			return len(b), nil
		}
		l.rest = rest
		l.each(line)
	}
}

func TestEventsAndHistoryOnTheCommandLine(t *testing.T) {
	t.Parallel()
	flags, node := server(t)
	twoVersions(t, flags, node)
	lines := untilLine(t, func(l string) bool { return strings.Contains(l, "alias.moved") && strings.Contains(l, "admin") },
		with(flags, "events", "tail", "--from=1", "--image=debian", "--type=imgsrv.version.*", "--type=imgsrv.alias.*")...)
	if len(lines) != 8 || !strings.Contains(lines[1], "version.published.v1") || !strings.Contains(lines[1], "debian/1") {
		t.Errorf("tail:\n%s", strings.Join(lines, "\n"))
	}
	lines = untilLine(t, func(l string) bool { return strings.Contains(l, "imgsrv.version.published.v1") },
		with(flags, "events", "tail", "--from=0", "--subject=debian/2", "--json")...)
	if event := decode[client.Event](t, lines[0]); event.Type != "imgsrv.version.reserved.v1" || event.Subject != "debian/2" {
		t.Errorf("tail --subject --json begins with %s", lines[0])
	}
	code, out, errs := command(t.Context(), with(flags, "events", "show", "1")...)
	if code != 0 || !strings.Contains(out, "imgsrv.upload.initiated.v1") || !strings.Contains(out, `"image": "debian"`) {
		t.Errorf("show: exit code %d, %s%s", code, out, errs)
	}
	if code, _, errs := command(t.Context(), with(flags, "events", "show", "9999")...); code != 1 || !strings.Contains(errs, "no event 9999") {
		t.Errorf("show of none: exit code %d, %s", code, errs)
	}
	code, out, errs = command(t.Context(), with(flags, "history", "debian")...)
	if code != 0 || !strings.Contains(out, "1: published") || !strings.Contains(out, "1: alias latest moved 2 → 1") {
		t.Errorf("history: exit code %d, %s%s", code, out, errs)
	}
	code, out, errs = command(t.Context(), with(flags, "history", "debian", "--who")...)
	for _, want := range []string{"admin                 2: opened upload session", "admin (by imgsrv)     2: published", "admin                 1: alias latest moved 2 → 1"} {
		if code != 0 || !strings.Contains(out, want) {
			t.Errorf("history --who: exit code %d, lacks %q: %s%s", code, want, out, errs)
		}
	}
	code, out, errs = command(t.Context(), with(flags, "history", "debian/2")...)
	if code != 0 || !strings.Contains(out, "  publish done") || strings.Contains(out, "debian/1") {
		t.Errorf("history of a version: exit code %d, %s%s", code, out, errs)
	}

	// Time travel: when version 1 was published there was one version.
	code, out, errs = command(t.Context(), with(flags, "history", "debian/1", "--json")...)
	if code != 0 {
		t.Fatalf("history --json: exit code %d, %s", code, errs)
	}
	told := decode[[]client.HistoryEvent](t, out)
	at := slices.IndexFunc(told, func(e client.HistoryEvent) bool { return e.Text == "alias latest → 1" })
	for _, what := range [][]string{{"images", "debian"}, {"images"}} {
		code, out, errs = command(t.Context(), with(flags, append(what, fmt.Sprintf("--at=%d", told[at].Sequence), "--json")...)...)
		if code != 0 || strings.Contains(out, `"version": "2"`) || strings.Contains(out, `"latest_version": "2"`) || !strings.Contains(out, "latest") {
			t.Errorf("%v --at: exit code %d, %s%s", what, code, out, errs)
		}
	}
}

func TestAHistoryMovesToAnotherServer(t *testing.T) {
	t.Parallel()
	flags, node := server(t)
	from := twoVersions(t, flags, node)
	code, history, errs := command(t.Context(), with(flags, "events", "export")...)
	if code != 0 || !strings.Contains(errs, "exported") {
		t.Fatalf("export: exit code %d, %s", code, errs)
	}
	file := filepath.Join(t.TempDir(), "events.jsonl")
	if err := os.WriteFile(file, []byte(history), 0o600); err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(history, "\n")
	lines = lines[:len(lines)-1]

	flags, node = server(t)
	to := node.publisher(t)
	refused := func(name string, status int, body string) string {
		t.Helper()
		var problem struct{ Code, Detail string }
		if resp := to.call("POST", "/api/events/import", []byte(body), &problem); resp.StatusCode != status {
			t.Fatalf("%s: %s %+v, want %d", name, resp.Status, problem, status)
		}
		return problem.Detail
	}
	// What is wrong from the first line on leaves no trace.
	refused("a gap at the beginning", http.StatusUnprocessableEntity, lines[1])
	refused("no export", http.StatusUnprocessableEntity, "hello\n")
	refused("an unknown type", http.StatusUnprocessableEntity, strings.ReplaceAll(lines[0], "imgsrv.upload.initiated.v1", "imgsrv.upload.initiated.v99"))
	refused("another subject", http.StatusUnprocessableEntity, strings.Replace(lines[0], `"subject":"imgsrv.events.upload.`, `"subject":"imgsrv.events.upload.x`, 1))
	if code, _, errs := command(t.Context(), with(flags, "events", "import", write(t, strings.Join(lines[:3], "")+"broken\n")[0])...); code != 1 || !strings.Contains(errs, "line 4") || !strings.Contains(errs, "nothing was sent") {
		t.Errorf("import of a broken file: exit code %d, %s", code, errs)
	}

	// One that breaks in the middle leaves the beginning, and the stream waits for the rest.
	half := len(lines) / 2
	if text := refused("a gap in the middle", http.StatusUnprocessableEntity, strings.Join(lines[:half], "")+lines[half+1]); !strings.Contains(text, fmt.Sprintf("line %d", half+1)) {
		t.Errorf("the refusal doesn't name the line: %s", text)
	}
	var problem struct{ Code, Detail string }
	if resp := to.call("POST", "/api/images", vm("other", "1", nil, file2()), &problem); resp.StatusCode != http.StatusServiceUnavailable || !strings.Contains(problem.Detail, "imported") {
		t.Errorf("publishing in the middle of an import: %s %+v", resp.Status, problem)
	}
	refused("another history", http.StatusConflict, strings.Replace(lines[0], `"ce-id":["`, `"ce-id":["x`, 1))

	code, _, errs = command(t.Context(), with(flags, "events", "import", file)...)
	if code != 0 || !strings.Contains(errs, fmt.Sprintf("(%d were there), the last is %d", half, len(lines))) {
		t.Fatalf("import: exit code %d, %s", code, errs)
	}
	refused("a second history", http.StatusConflict, history)

	// The same answers, from the events on to the projections.
	code, again, errs := command(t.Context(), with(flags, "events", "export")...)
	if code != 0 {
		t.Fatalf("export: exit code %d, %s", code, errs)
	}
	if diff := cmp.Diff(withoutStoreTime(t, history), withoutStoreTime(t, again)); diff != "" {
		t.Errorf("the imported history (-from +to):\n%s", diff)
	}
	for _, path := range []string{"/api/images", "/api/images/debian", "/api/images/debian/versions", "/api/images/debian/versions/1", "/api/images/debian/versions/latest", "/api/images/debian/history", "/api/jobs", "/streams/v1/images.json"} {
		var want, got []byte
		from.call("GET", path, nil, &want)
		resp := to.call("GET", path, nil, &got, "Imgsrv-Min-Sequence", fmt.Sprint(len(lines)))
		if diff := cmp.Diff(strings.ReplaceAll(string(want), from.base, ""), strings.ReplaceAll(string(got), to.base, "")); diff != "" || resp.StatusCode != http.StatusOK {
			t.Errorf("%s: %s (-from +to):\n%s", path, resp.Status, diff)
		}
	}
	// And it lives on.
	if code, _, errs := command(t.Context(), with(flags, "publish", write(t, rawDisk(7000))[0], "--image=debian", "--version=3", "--alias=latest")...); code != 0 {
		t.Errorf("publish after the import: exit code %d, %s", code, errs)
	}
}

func file2() file { return file{format: "disk.raw", data: []byte(rawDisk(100))} }

// withoutStoreTime are the lines of an export without the one thing that is a stream's own.
func withoutStoreTime(t *testing.T, export string) (lines []map[string]any) {
	t.Helper()
	for line := range strings.Lines(export) {
		var record map[string]any
		if err := json.Unmarshal([]byte(line), &record); err != nil {
			t.Fatal(err)
		}
		delete(record, "time")
		lines = append(lines, record)
	}
	return lines
}
