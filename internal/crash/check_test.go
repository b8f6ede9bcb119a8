package crash

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/internal/pgtest"
)

func databaseOf(t *testing.T) string {
	t.Helper()
	return pgtest.URL(t)
}

// check holds the server, and then the data folder that it leaves, against what the script leads to.
func (r *run) check(wants ...expectation) {
	r.t.Helper()
	head := r.checkEvents()
	for _, want := range wants {
		r.checkVersions(want, head)
	}
	for _, projection := range []string{"catalog", "jobs", "streams"} {
		var verified struct {
			Total       int64
			Differences json.RawMessage
		}
		r.call("POST", "/api/projections/"+projection+"/verify", nil, []int{200}).decode(r.t, &verified)
		if verified.Total != 0 {
			r.t.Errorf("projection %s isn't what the events make: %d rows differ: %s", projection, verified.Total, verified.Differences)
		}
	}
	// What is left to be removed is removed by consumers, which a crash holds up by the time that a delivery may take.
	r.awaitTidy()
	if r.killed > 0 && len(r.strays()) > 0 {
		// The folder of a session that never began is kept for a while: another node might be about to append its fact. Say that it
		// was a while.
		r.server().stop(r.t)
		r.srv, r.flags = nil, append(r.flags, "--upload-expiry", "1ms")
		r.server()
		r.awaitTidy()
	}
	r.server().stop(r.t)
	for _, stray := range r.strays() {
		r.t.Errorf("a stray file: %s", stray)
	}
	r.checkBlobs()
	r.srv = nil
}

// awaitTidy waits until nothing is left to be removed, for somewhat longer than a consumer waits for an answer to a delivery.
func (r *run) awaitTidy() {
	for deadline := time.Now().Add(8 * time.Second); len(r.strays()) > 0 && time.Now().Before(deadline); {
		r.pause()
	}
}

// checkEvents looks for every event that was acknowledged, and for what may be there only once. It returns the last sequence.
func (r *run) checkEvents() (head string) {
	r.t.Helper()
	a := r.call("GET", "/api/events/export", nil, []int{200})
	var records []jetstream.Record
	for lines := bufio.NewReader(bytes.NewReader(a.body)); ; {
		line, err := lines.ReadBytes('\n')
		if len(line) == 0 && err != nil {
			break
		}
		var record jetstream.Record
		if err := json.Unmarshal(line, &record); err != nil {
			r.t.Fatalf("export: %v", err)
		}
		records = append(records, record)
	}
	ids, succeeded, ended := map[string]bool{}, map[string]int{}, map[string]string{}
	for i, record := range records {
		if uint64(record.Sequence) != uint64(i+1) {
			r.t.Fatalf("event %d stands at %d", record.Sequence, i+1)
		}
		kind, id := record.Headers["ce-type"][0], record.Headers["ce-id"][0]
		if ids[id] {
			r.t.Errorf("event %s is there twice, again at %d (%s)", id, record.Sequence, kind)
		}
		ids[id] = true
		if strings.HasPrefix(record.Subject, "imgsrv.events.job.") {
			ended[record.Subject] = kind
		}
		switch kind {
		case "imgsrv.job.succeeded.v1", "imgsrv.version.published.v1":
			if succeeded[record.Subject]++; succeeded[record.Subject] > 1 {
				r.t.Errorf("%s twice for %s", kind, record.Subject)
			}
		}
	}
	for job, last := range ended {
		if last != "imgsrv.job.succeeded.v1" && last != "imgsrv.job.failed.v1" {
			r.t.Errorf("the last fact of %s is %s", job, last)
		}
	}
	for _, p := range r.promises {
		if p.sequence > uint64(len(records)) {
			r.t.Errorf("LOST: event %d about %s was acknowledged, the log ends at %d", p.sequence, p.what, len(records))
		} else if subject := records[p.sequence-1].Subject; !r.about(subject, p.what, records, p.sequence) {
			r.t.Errorf("LOST: event %d about %s was acknowledged; there is one about %s", p.sequence, p.what, subject)
		}
	}
	return a.header.Get("Imgsrv-Sequence")
}

// about says whether an event, or the batch that ends with it, is about what was promised: an answer has the sequence of a batch's
// last event.
func (r *run) about(subject, what string, records []jetstream.Record, sequence uint64) bool {
	at := records[sequence-1].Headers["ce-time"][0]
	for i := int(sequence) - 1; i >= 0 && records[i].Headers["ce-time"][0] == at; i-- {
		if strings.HasSuffix(records[i].Subject, what) {
			return true
		}
	}
	return strings.HasSuffix(subject, what)
}

func (r *run) checkVersions(want expectation, head string) {
	r.t.Helper()
	fresh := []string{"Imgsrv-Min-Sequence", head}
	var page struct{ Versions []struct{ Version string } }
	r.call("GET", "/api/images/"+want.image+"/versions?limit=1000", nil, []int{200}, fresh...).decode(r.t, &page)
	if len(page.Versions) != len(want.versions) {
		r.t.Errorf("versions %v, want %d", page.Versions, len(want.versions))
	}
	for name, files := range want.versions {
		base := "/api/images/" + want.image + "/versions/" + name
		var manifest struct {
			Variants []struct {
				Name    string
				Formats []struct{ Format, Digest string }
			}
		}
		r.call("GET", base, nil, []int{200}, fresh...).decode(r.t, &manifest)
		if len(manifest.Variants) != 1 || len(manifest.Variants[0].Formats) != 2 {
			r.t.Errorf("version %s is incomplete: %+v", name, manifest)
			continue
		}
		for _, f := range manifest.Variants[0].Formats {
			got := r.call("GET", base+"/variants/"+manifest.Variants[0].Name+"/formats/"+f.Format, nil, []int{200}).body
			if "sha256:"+digestOf(got) != f.Digest || f.Format == "rootfs.squashfs" && !bytes.Equal(got, files[0]) {
				r.t.Errorf("%s of version %s has other bytes", f.Format, name)
			}
		}
		if got := r.call("GET", base+"/attachments/sbom.spdx.json", nil, []int{200}).body; !bytes.Equal(got, files[1]) {
			r.t.Errorf("the attachment of version %s has other bytes", name)
		}
	}
	for _, name := range want.absent {
		r.call("GET", "/api/images/"+want.image+"/versions/"+name, nil, []int{404}, fresh...)
	}
	for _, name := range want.withdrawn {
		r.call("GET", "/api/images/"+want.image+"/versions/"+name, nil, []int{410}, fresh...)
	}
	for alias, name := range want.aliases {
		var found struct{ Version string }
		r.call("GET", "/api/images/"+want.image+"/versions/"+alias, nil, []int{200}, fresh...).decode(r.t, &found)
		if found.Version != name {
			r.t.Errorf("alias %s names %s, want %s", alias, found.Version, name)
		}
	}
	r.call("GET", "/streams/v1/images.json", nil, []int{200}, fresh...)
}

// kept are the files that a data folder has when nothing is going on.
var kept = regexp.MustCompile(`^(lock|admin\.token|signing\.key|webhook\.key|scrub\.json|nats/.*|storage/cas/trash/\.lock|storage/cas/sha256/[0-9a-f]{2}/[0-9a-f]{64})$`)

// strays are the files and folders, but those of the layout itself, that have no business in the data folder of a run that is over.
func (r *run) strays() []string {
	r.t.Helper()
	var found []string
	root := filepath.Join(r.dir, "data")
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) { // removed meanwhile
			return nil
		}
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(strings.TrimPrefix(path, root), "/")
		parent := filepath.Dir(name)
		switch {
		case !e.IsDir() && kept.MatchString(name) && !strings.HasSuffix(name, ".tmp"):
		case e.IsDir() && parent != "storage/uploads" && parent != "storage/ingress/jobs" && parent != "storage/cas/tmp":
		default:
			found = append(found, name)
		}
		return nil
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return found
}

// checkBlobs holds each blob's bytes against its name.
func (r *run) checkBlobs() {
	r.t.Helper()
	blobs, err := filepath.Glob(filepath.Join(r.dir, "data/storage/cas/sha256/*/*"))
	if err != nil {
		r.t.Fatal(err)
	}
	for _, path := range blobs {
		data, err := os.ReadFile(path)
		info, statErr := os.Stat(path)
		if err := errors.Join(err, statErr); err != nil {
			r.t.Fatal(err)
		}
		if digestOf(data) != filepath.Base(path) || info.Mode() != 0o444 {
			r.t.Errorf("blob %s has the digest %s and mode %s", filepath.Base(path), digestOf(data), strconv.FormatUint(uint64(info.Mode()), 8))
		}
	}
}
