package main

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/imgsrv/imgsrv/internal/client"
)

// lines is text without the spaces that only pad columns at line ends.
func lines(s string) []string {
	all := strings.Split(strings.TrimSuffix(s, "\n"), "\n")
	for i := range all {
		all[i] = strings.TrimRight(all[i], " ")
	}
	return all
}

func TestTables(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	local := at.Local().Format(time.RFC3339)
	for name, c := range map[string]struct {
		print func(io.Writer) error
		want  []string
	}{
		"images": {func(w io.Writer) error {
			return printImages(w, []client.Image{
				{Name: "debian-bookworm", OS: "debian", Release: "bookworm", Visibility: "public", Latest: "12.5.0", Versions: 2, Aliases: map[string]string{"stable": "12.4.0", "latest": "12.5.0"}, PublishedAt: at},
				{Name: "x", Visibility: "private"},
			})
		}, []string{
			"IMAGE            LATEST  VERSIONS  ALIASES                       OS               VISIBILITY  PUBLISHED",
			"debian-bookworm  12.5.0  2         latest=12.5.0, stable=12.4.0  debian bookworm  public      " + local,
			"x                -       0         -                             -                private     -",
		}},
		"versions": {func(w io.Writer) error {
			return printVersions(w, []client.VersionSummary{{Version: "12.5.0", Aliases: []string{"latest"}, Variants: []string{"amd64.container.default", "arm64.container.default"},
				Attachments: []string{"sbom.json", "notes.md"}, PublishedAt: at}})
		}, []string{
			"VERSION  ALIASES  VARIANTS                                          ATTACHMENTS          PUBLISHED",
			"12.5.0   latest   amd64.container.default, arm64.container.default  sbom.json, notes.md  " + local,
		}},
		"a name that moves the cursor": {func(w io.Writer) error {
			return printVersions(w, []client.VersionSummary{{Version: "1\x1b[2J\t2\n3"}})
		}, []string{
			"VERSION    ALIASES  VARIANTS  ATTACHMENTS  PUBLISHED",
			"1 [2J 2 3  -                  -            -",
		}},
		"a job": {func(w io.Writer) error {
			return printJob(w, &client.Job{ID: "7", State: client.JobFailed, Image: "a", Version: "1", QueuedAt: at, Error: &client.JobError{Detail: "no qcow2"},
				Steps: []client.JobStep{{Name: "verify", State: "succeeded", Attempt: 1, StartedAt: at, FinishedAt: at.Add(1500 * time.Millisecond)}, {Name: "inspect", State: "failed", Attempt: 2, StartedAt: at, Error: "no qcow2"}}})
		}, []string{
			"job     7", "state   failed", "image   a 1", "queued  " + local, "error   no qcow2", "",
			"STEP     STATE      ATTEMPT  STARTED" + strings.Repeat(" ", len(local)-len("STARTED")) + "  TOOK  ERROR",
			"verify   succeeded  1        " + local + "  1.5s  -",
			"inspect  failed     2        " + local + "  -     no qcow2",
		}},
		"a publication": {func(w io.Writer) error {
			return (&published{Image: "a", Version: "1", VersionURL: "http://h/v", Files: []publishedFile{{Format: "disk.qcow2", URL: "http://h/d", Size: 196608}}, IncusNames: []string{"a/1", "a"},
				Attachments: []publishedAttachment{{Name: "notes.md", URL: "http://h/n", Size: 1024}}}).print(w)
		}, []string{
			"a 1 published",
			"  version     http://h/v",
			"  disk.qcow2  http://h/d  192 KiB",
			"  notes.md    http://h/n  1.0 KiB",
			"  Incus, LXD  REMOTE:a/1",
			"              REMOTE:a",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var b bytes.Buffer
			if err := c.print(&b); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, lines(b.String())); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestFailuresNameStepReasonAndRemedy(t *testing.T) {
	t.Parallel()
	steps := []client.JobStep{{Name: "verify", State: "succeeded"}, {Name: "inspect", State: "failed", Error: "it has a backing file"}, {Name: "promote", State: "pending"}}
	for name, c := range map[string]struct {
		job  client.Job
		want string
	}{
		"refused content": {client.Job{ID: "7", State: client.JobFailed, Steps: steps, Error: &client.JobError{Code: "backing-file", Detail: "it has a backing file", Final: true}},
			"job 7 failed at step inspect: it has a backing file (backing-file)"},
		"what may pass": {client.Job{ID: "7", State: client.JobFailed, Steps: steps, Error: &client.JobError{Detail: "the disk is full"}},
			"job 7 failed at step inspect: the disk is full; once the cause is gone: imgsrv jobs retry 7"},
		"cancelled": {client.Job{ID: "7", State: client.JobCancelled}, "job 7 cancelled: it gives no reason; once the cause is gone: imgsrv jobs retry 7"},
	} {
		if got := failureOf(&c.job).Error(); got != c.want {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
	}
}

func TestIncusNames(t *testing.T) {
	t.Parallel()
	v := &client.Version{Image: "deb", Version: "12", Aliases: []string{"latest", "stable"}}
	if diff := cmp.Diff([]string{"deb/12", "deb/latest", "deb", "deb/stable"}, incusNames(v, "default")); diff != "" {
		t.Errorf("default flavour (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"deb/12/cloud", "deb/latest/cloud", "deb/cloud", "deb/stable/cloud"}, incusNames(v, "cloud")); diff != "" {
		t.Errorf("another flavour (-want +got):\n%s", diff)
	}
}

func TestProgressWithoutATerminalIsALineNowAndThen(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	now := time.Unix(0, 0)
	p := newProgress(Terminal{Err: &b}, false)
	p.now = func() time.Time { return now }
	p.start("uploading", 10<<20)
	for range 10 {
		now = now.Add(time.Second)
		p.set(5 << 20)
	}
	p.stop()
	p.note("done")
	if want := "uploading: 5.0 MiB of 10 MiB (50 %)\nuploading: 5.0 MiB of 10 MiB (50 %)\ndone\n"; b.String() != want {
		t.Errorf("got %q, want %q", b.String(), want)
	}
}

func TestProgressOnATerminalIsABarThatGoesAway(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	p := newProgress(Terminal{Err: &b, Fancy: true}, false)
	p.start("uploading", 10<<20)
	p.set(5 << 20)
	p.set(1 << 20) // a connection broke
	p.set(10 << 20)
	p.stop()
	shown := b.String()
	if !strings.Contains(shown, "uploading") || strings.Contains(shown, "\n") || strings.Contains(shown, "\x1b[3") {
		t.Errorf("the bar is %q: want it in one line without colours", shown)
	}
	if last := shown[strings.LastIndexByte(strings.TrimSuffix(shown, "\r"), '\r')+1:]; strings.TrimSpace(last) != "" {
		t.Errorf("at the end stays %q", last)
	}
}

func TestQuietSaysNothing(t *testing.T) {
	t.Parallel()
	for _, fancy := range []bool{false, true} {
		var b bytes.Buffer
		p := newProgress(Terminal{Err: &b, Fancy: fancy}, true)
		p.start("uploading", 10)
		p.set(10)
		p.note("done")
		p.stop()
		if b.Len() > 0 {
			t.Errorf("it says %q", b.String())
		}
	}
}
