package streams_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/access"
	"github.com/imgsrv/imgsrv/internal/incus"
	"github.com/imgsrv/imgsrv/internal/incus/clientrules"
)

const debURL = "/streams/v1/images/deb.json"

// versionsOf are those of a document's products, by the names that clients would see.
func versionsOf(t *testing.T, r *http.Response) map[string]string {
	t.Helper()
	text := body(t, r)
	var document incus.Products
	if err := json.Unmarshal([]byte(text), &document); err != nil || r.StatusCode != 200 || document.Format != incus.ProductsFormat {
		t.Fatalf("%d, %v: %s", r.StatusCode, err, text)
	}
	index, err := document.Index("one.json").Encode()
	if err != nil {
		t.Fatal(err)
	}
	images, err := clientrules.Read(index, func(string) ([]byte, error) { return []byte(text), nil }, clientrules.Incus)
	if err != nil {
		t.Fatalf("clients have problems with the document: %v\n%s", err, text)
	}
	found := map[string]string{}
	for _, image := range images {
		found[image.Properties["version"]] = image.Fingerprint
	}
	if len(found) != len(images) {
		t.Errorf("%d images of %d versions", len(images), len(found))
	}
	return found
}

// next follows the link to the next page; "" on the last one.
func next(t *testing.T, at string, r *http.Response) string {
	t.Helper()
	link := r.Header.Get("Link")
	if link == "" {
		return ""
	}
	reference, ok := strings.CutSuffix(strings.TrimPrefix(link, "<"), `>; rel="next"`)
	base, err := url.Parse(at)
	if err != nil || !ok {
		t.Fatalf("Link %q, %v", link, err)
	}
	to, err := base.Parse(reference)
	if err != nil {
		t.Fatal(err)
	}
	return to.String()
}

func TestAnImageHasADocumentOfItsOwn(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.publish(t, "deb", "1", "2")
	s.publish(t, "other", "1")
	s.project(t, events.AliasMoved{Alias: events.Alias{Image: "deb", Alias: "latest", Version: "2"}})
	first := s.do("GET", debURL)
	etag := first.Header.Get("ETag")
	if got := slices.Sorted(maps.Keys(versionsOf(t, first))); !slices.Equal(got, []string{"1", "2"}) || first.Header.Get("Link") != "" {
		t.Errorf("versions %v, Link %q", got, first.Header.Get("Link"))
	}
	if text := body(t, s.do("GET", debURL)); strings.Contains(text, "other:") || !strings.Contains(text, `"aliases":"deb,deb/2,deb/latest"`) {
		t.Errorf("the document is\n%s", text)
	}
	// What is published of another image leaves it as it is.
	s.publish(t, "other", "2")
	if r := s.do("GET", debURL, "If-None-Match", etag); r.StatusCode != 304 || r.Header.Get("ETag") != etag {
		t.Errorf("not changed: %d as %s", r.StatusCode, r.Header.Get("ETag"))
	}
	s.publish(t, "deb", "3")
	if r := s.do("GET", debURL, "If-None-Match", etag); r.StatusCode != 200 || len(versionsOf(t, r)) != 3 || r.Header.Get("ETag") == etag {
		t.Errorf("changed: %d as %s", r.StatusCode, r.Header.Get("ETag"))
	}
	for _, coding := range []string{"gzip", "zstd"} {
		r := s.do("GET", debURL, "Accept-Encoding", coding)
		if got := unpack(t, r.Header.Get("Content-Encoding"), body(t, r)); got != body(t, s.do("GET", debURL)) {
			t.Errorf("%s: other bytes", coding)
		}
	}
	// No index leads there: clients read all that one leads to, and would see each image twice.
	if text := body(t, s.do("GET", indexURL)); strings.Contains(text, "streams/v1/images/") {
		t.Errorf("the index leads to documents of one image: %s", text)
	}
}

func TestPagesHoldEachVersionOnceTheNewestFirst(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	var versions []string
	for i := range 25 {
		versions = append(versions, fmt.Sprintf("%d.0", i))
	}
	s.publish(t, "deb", versions...)
	withdrawn := func(version string) events.Fact {
		return events.VersionWithdrawn{Version: events.Version{Image: "deb", Version: version, State: events.StateWithdrawn}}
	}
	s.project(t, withdrawn("3.0"), withdrawn("24.0"))
	for _, limit := range []int{1, 7, 23, 1000} {
		var seen []string
		at := fmt.Sprintf("%s?limit=%d", debURL, limit)
		for at != "" {
			r := s.do("GET", at)
			page := slices.Collect(maps.Keys(versionsOf(t, r)))
			slices.SortFunc(page, func(a, b string) int { return slices.Index(versions, b) - slices.Index(versions, a) })
			if len(page) > limit {
				t.Errorf("%d versions on a page of %d", len(page), limit)
			}
			seen = append(seen, page...)
			if at = next(t, at, r); len(seen) == 7 && limit == 7 {
				// Meanwhile the version that the page ended with goes, and a newer one comes: what follows stays.
				s.project(t, withdrawn(seen[6]))
				versions = append(versions, "new")
				s.publish(t, "deb", "new")
			}
		}
		gone := map[string]bool{"3.0": true, "24.0": true, "17.0": limit > 7, "new": limit == 7}
		want := slices.DeleteFunc(slices.Clone(versions), func(v string) bool { return gone[v] })
		slices.Reverse(want)
		if diff := cmp.Diff(want, seen); diff != "" {
			t.Errorf("limit %d: versions (-want +got):\n%s", limit, diff)
		}
	}
	for _, query := range []string{"?after=absent", "?limit=0", "?limit=-1", "?limit=1001", "?limit=x"} {
		if r := s.do("GET", debURL+query); r.StatusCode != 400 || !strings.Contains(body(t, r), `"bad-request"`) {
			t.Errorf("%s: %d", query, r.StatusCode)
		}
	}
}

// Bytes that two images have are listed in the documents of both, under the names of each.
func TestSharedBytesAreInTheDocumentOfEachOfTheirImages(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	r := &remote{site: s, files: map[string][]byte{}}
	v := map[events.Variant]string{{Architecture: "amd64", Type: events.VirtualMachine, Flavour: "default"}: "root"}
	first := r.publication(t, "deb", "1", v)
	again, other := first, first
	again.Version.Version, other.Version.Image = "2", "other"
	s.project(t, first, again, other)
	fingerprint := first.Manifest.Variants[0].Fingerprint
	for image, names := range map[string]string{"deb": "deb/1,deb/2", "other": "other/1"} {
		answer := s.do("GET", "/streams/v1/images/"+image+".json")
		text := body(t, answer)
		if strings.Count(text, "combined_disk-kvm-img_sha256\":\""+fingerprint) != 2 || !strings.Contains(text, `"aliases":"`+names+`"`) { // for Incus and for LXD
			t.Errorf("%s: %s", image, text)
		}
	}
}

func TestTheDocumentOfAPrivateImageIsForItsReaders(t *testing.T) {
	t.Parallel()
	s := newPrivateSite(t)
	const url = "/streams/v1/images/team-a.json"
	absent := body(t, s.as(access.Principal{}, "/streams/v1/images/absent.json"))
	for _, who := range []access.Principal{{}, reader("team-b"), reader("team-b*"), access.NewPrincipal("nothing")} {
		for _, query := range []string{"", "?limit=0", "?after=1"} {
			r := s.as(who, url+query)
			if got := strings.ReplaceAll(body(t, r), "team-a", "absent"); r.StatusCode != 404 || got != absent {
				t.Errorf("%q asks for %s: %d %s, one that isn't there: %s", who.Name, url+query, r.StatusCode, got, absent)
			}
		}
	}
	r := s.as(reader("team-*"), url)
	if r.StatusCode != 200 || r.Header.Get("Cache-Control") != "private, no-cache" || len(versionsOf(t, r)) != 1 {
		t.Errorf("a reader: %d, %v", r.StatusCode, r.Header)
	}
	// What is said of a private image has no time in the tables: who asks by time is told anew, and not that nothing has changed.
	silent := s.publication(t, "team-a", "2", map[events.Variant]string{{Architecture: "amd64", Type: events.VirtualMachine, Flavour: "default"}: "team-a2"})
	silent.Version.Manifest.Visibility, silent.Version.Manifest.OS = events.Private, ""
	s.project(t, silent)
	r = s.as(reader("team-*"), url)
	s.project(t, events.ImageDescribed{Image: events.Image{Name: "team-a", Visibility: events.Private, OS: "other"}})
	since := published.Add(time.Hour).Format(http.TimeFormat)
	if again := s.as(reader("team-*"), url, "If-Modified-Since", since); again.StatusCode != 200 || again.Header.Get("ETag") == r.Header.Get("ETag") {
		t.Errorf("described anew: %d as %s", again.StatusCode, again.Header.Get("ETag"))
	}
	s.project(t, events.ImageVisibilityChanged{Image: events.Image{Name: "team-a", Visibility: events.Public}})
	if r := s.as(access.Principal{}, url); r.StatusCode != 200 {
		t.Errorf("once it is public: %d", r.StatusCode)
	}
	s.project(t, events.ImageVisibilityChanged{Image: events.Image{Name: "team-a", Visibility: events.Private}})
	if r := s.as(access.Principal{}, url); r.StatusCode != 404 {
		t.Errorf("once it is private again: %d", r.StatusCode)
	}
}
