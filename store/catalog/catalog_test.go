package catalog_test

import (
	"errors"
	"fmt"
	"net"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/internal/eventstest"
	"github.com/imgsrv/imgsrv/store/catalog"
)

const variant = "amd64.virtual-machine.default"

func private(image, version string, aliases ...string) events.Upload {
	session := eventstest.Session(image, version, aliases...)
	session.Visibility = events.Private
	return session
}

func TestImagesAreListedByNameInPages(t *testing.T) {
	t.Parallel()
	h := eventstest.New()
	for _, name := range []string{"c", "a", "b-2", "b.1", "d"} {
		h.Publish(t, eventstest.Session(name, "1"))
	}
	h.Publish(t, private("secret", "1"))
	c := fromHistory(t, h)
	for name, test := range map[string]struct {
		filter catalog.ImageFilter
		want   [][]string
	}{
		"public":     {catalog.ImageFilter{Limit: 2}, [][]string{{"a", "b-2"}, {"b.1", "c"}, {"d"}}},
		"all":        {catalog.ImageFilter{Limit: 3, Readable: catalog.Everything}, [][]string{{"a", "b-2", "b.1"}, {"c", "d", "secret"}}},
		"some":       {catalog.ImageFilter{Limit: 9, Readable: catalog.ReadableBy([][]string{{"x*", "s*t"}})}, [][]string{{"a", "b-2", "b.1", "c", "d", "secret"}}},
		"others":     {catalog.ImageFilter{Limit: 9, Readable: catalog.ReadableBy([][]string{{"x*", "secre_", "%", "s*r"}})}, [][]string{{"a", "b-2", "b.1", "c", "d"}}},
		"both":       {catalog.ImageFilter{Limit: 9, Readable: catalog.ReadableBy([][]string{{"s*"}, {"*t"}})}, [][]string{{"a", "b-2", "b.1", "c", "d", "secret"}}},
		"one of two": {catalog.ImageFilter{Limit: 9, Readable: catalog.ReadableBy([][]string{{"s*"}, {"t*"}})}, [][]string{{"a", "b-2", "b.1", "c", "d"}}},
		"no list":    {catalog.ImageFilter{Limit: 9, Readable: catalog.ReadableBy([][]string{{}})}, [][]string{{"a", "b-2", "b.1", "c", "d"}}},
		"no page":    {catalog.ImageFilter{After: "zzz"}, [][]string{nil}},
		"default":    {catalog.ImageFilter{}, [][]string{{"a", "b-2", "b.1", "c", "d"}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var got [][]string
			for filter := test.filter; ; {
				page, next, err := c.Images(t.Context(), filter)
				if err != nil {
					t.Fatal(err)
				}
				var names []string
				for _, image := range page {
					names = append(names, image.Name)
				}
				got = append(got, names)
				if next == "" {
					break
				}
				filter.After = next
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("pages (-want +got):\n%s", diff)
			}
		})
	}
}

func TestAnImageKnowsItsLatestVersionAndItsAliases(t *testing.T) {
	t.Parallel()
	h := eventstest.New()
	h.Publish(t, eventstest.Session("debian", "9", "latest", "old"))
	created := h.Image("debian").Event.Time
	second := eventstest.Session("debian", "10", "latest")
	second.Description = "another text"
	h.Publish(t, second)
	if err := h.MoveAlias(t, "debian", "stable", "9"); err != nil {
		t.Fatal(err)
	}
	h.Publish(t, eventstest.Session("other", "1", "latest"))
	moved := func(alias string) catalog.Alias {
		a := h.Alias("debian", alias)
		return catalog.Alias{Name: alias, Version: a.State.Version, MovedAt: a.Event.Time}
	}
	want := catalog.Image{
		Name: "debian", OS: "debian", Release: "bookworm", Description: "another text", Visibility: events.Public, Flavours: []string{"default"},
		CreatedAt: created, UpdatedAt: h.Image("debian").Event.Time, Versions: 2,
		Latest: "10", LatestAt: h.Version("debian", "10").State.Manifest.PublishedAt,
		Aliases: []catalog.Alias{moved("latest"), moved("old"), moved("stable")},
	}
	got, err := fromHistory(t, h).Image(t.Context(), "debian")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("image (-want +got):\n%s", diff)
	}
}

func TestVersionsAreListedNewestFirstInPages(t *testing.T) {
	t.Parallel()
	h := eventstest.New()
	// Published in this order; three of them at one moment, as their manifests say.
	for i, name := range []string{"3", "1", "2", "10", "4"} {
		h.Publish(t, eventstest.Session("debian", name))
		published := h.Events[h.Version("debian", name).Sequence-1].Fact.(events.VersionPublished)
		published.Manifest.PublishedAt = eventstest.New().Now()
		if i == 4 {
			published.Manifest.PublishedAt = h.Now()
		}
	}
	h.Publish(t, eventstest.Session("debian-other", "99"))
	c := fromHistory(t, h)
	for limit := 1; limit <= 6; limit++ {
		var got []string
		for after := ""; ; {
			page, next, err := c.Versions(t.Context(), "debian", after, limit)
			if err != nil {
				t.Fatal(err)
			}
			if len(page) > limit {
				t.Errorf("a page of %d has %d versions", limit, len(page))
			}
			for _, version := range page {
				got = append(got, version.Version)
			}
			if next == "" {
				break
			}
			after = next
		}
		if diff := cmp.Diff([]string{"4", "10", "2", "1", "3"}, got); diff != "" {
			t.Errorf("pages of %d (-want +got):\n%s", limit, diff)
		}
	}
}

func TestAVersionIsFoundByItsNameOrAnAlias(t *testing.T) {
	t.Parallel()
	h := eventstest.New()
	h.Publish(t, eventstest.Session("debian", "1", "latest", "stable"))
	h.Publish(t, eventstest.Session("debian", "2", "latest"))
	// The rules refuse such an alias; whatever put it there, it must not shadow a version.
	h.Append(t, events.Change{Fact: events.AliasMoved{Alias: events.Alias{Image: "debian", Alias: "1", Version: "2"}}})
	if err := h.MoveAlias(t, "debian", "gone", "1"); err != nil {
		t.Fatal(err)
	}
	if err := h.RemoveAlias(t, "debian", "gone"); err != nil {
		t.Fatal(err)
	}
	c := fromHistory(t, h)
	row := func(version string, by catalog.ResolvedBy, aliases ...string) catalog.VersionRow {
		v := h.Version("debian", version)
		return catalog.VersionRow{Image: "debian", Version: version, Visibility: events.Public, PublishedAt: v.State.Manifest.PublishedAt,
			Sequence: publishedAt(t, h, "debian", version), Aliases: aliases, Manifest: *v.State.Manifest, ResolvedBy: by}
	}
	for name, want := range map[string]catalog.VersionRow{
		"1":      row("1", catalog.ByVersion, "stable"),
		"2":      row("2", catalog.ByVersion, "1", "latest"),
		"stable": row("1", catalog.ByAlias, "stable"),
		"latest": row("2", catalog.ByAlias, "1", "latest"),
	} {
		got, err := c.Version(t.Context(), "debian", name)
		if err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("version %s (-want +got):\n%s", name, diff)
		}
		file, err := c.Format(t.Context(), "debian", name, variant, "disk.qcow2")
		if err != nil {
			t.Error(err)
		}
		f, _ := want.Manifest.Format(variant, "disk.qcow2")
		wantFile := catalog.FormatRow{Image: "debian", Version: want.Version, Variant: variant, Format: "disk.qcow2", Digest: f.Digest, Size: f.Size,
			MediaType: f.MediaType, ByAlias: want.ResolvedBy == catalog.ByAlias, Visibility: events.Public, PublishedAt: want.PublishedAt}
		if diff := cmp.Diff(wantFile, file); diff != "" {
			t.Errorf("format of %s (-want +got):\n%s", name, diff)
		}
	}
	for _, name := range []string{"gone", "3", "", "\x00", "\xff"} {
		if got, err := c.Version(t.Context(), "debian", name); !errors.Is(err, catalog.ErrNotFound) {
			t.Errorf("version %q is %+v, %v, want ErrNotFound", name, got, err)
		}
	}
}

func TestABlobIsPublicIfSomePublicImageHasIt(t *testing.T) {
	t.Parallel()
	h := eventstest.New()
	h.Publish(t, private("secret", "1"))
	h.Publish(t, eventstest.Session("open", "1"))
	c := fromHistory(t, h)
	disk := func(image string) events.Digest {
		f, _ := h.Version(image, "1").State.Manifest.Format(variant, "disk.qcow2")
		return f.Digest
	}
	shared, _ := h.Version("open", "1").State.Manifest.Format(variant, events.FormatMetadata) // both images have it
	for digest, want := range map[events.Digest]catalog.BlobRow{
		disk("secret"): {Digest: disk("secret"), Size: 196608, MediaType: "application/x-qemu-disk"},
		disk("open"):   {Digest: disk("open"), Size: 196608, MediaType: "application/x-qemu-disk", Public: true},
		shared.Digest:  {Digest: shared.Digest, Size: shared.Size, MediaType: shared.MediaType, Public: true},
	} {
		got, err := c.Blob(t.Context(), digest, catalog.Everything)
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("blob, %v (-want +got):\n%s", err, diff)
		}
	}
	if _, err := c.Blob(t.Context(), disk("secret"), catalog.Readable{}); !errors.Is(err, catalog.ErrNotFound) {
		t.Errorf("a private blob gives %v, want ErrNotFound", err)
	}
	if _, err := c.Blob(t.Context(), eventstest.Digest("nothing"), catalog.Everything); !errors.Is(err, catalog.ErrNotFound) {
		t.Errorf("an unknown blob gives %v, want ErrNotFound", err)
	}
}

func TestAnAttachmentIsFoundByItsNameOrItsDigest(t *testing.T) {
	t.Parallel()
	h := eventstest.New()
	attached := func(session events.Upload, names ...string) events.Upload {
		for _, name := range names {
			session.Attachments = append(session.Attachments, events.UploadFile{Format: name, Size: 7, State: events.FilePending})
		}
		session.Attachments = append(session.Attachments, events.UploadFile{Format: "licence.txt", Size: 5, State: events.FilePresent, Digest: eventstest.Digest("licence")})
		return session
	}
	h.Publish(t, attached(private("secret", "1"), "sbom.json"))
	h.Publish(t, attached(eventstest.Session("open", "1", "latest"), "sbom.json"))
	c := fromHistory(t, h)
	of := func(image string) catalog.AttachmentRow {
		m := h.Version(image, "1").State.Manifest
		return catalog.AttachmentRow{Image: image, Version: "1", Name: "sbom.json", Digest: m.Attachments[0].Digest, Size: 7, MediaType: m.Attachments[0].MediaType,
			Visibility: m.Visibility, PublishedAt: m.PublishedAt}
	}
	aliased := of("open")
	aliased.ByAlias = true
	for _, test := range []struct {
		image, version string
		want           catalog.AttachmentRow
	}{{"open", "1", of("open")}, {"open", "latest", aliased}, {"secret", "1", of("secret")}} {
		got, err := c.Attachment(t.Context(), test.image, test.version, "sbom.json")
		if diff := cmp.Diff(test.want, got); diff != "" || err != nil {
			t.Errorf("attachment, %v (-want +got):\n%s", err, diff)
		}
	}
	for _, names := range [][3]string{{"open", "1", "other"}, {"open", "2", "sbom.json"}, {"secret", "latest", "sbom.json"}, {"open", "1", "disk.qcow2"}} {
		if _, err := c.Attachment(t.Context(), names[0], names[1], names[2]); !errors.Is(err, catalog.ErrNotFound) {
			t.Errorf("%v: %v, want ErrNotFound", names, err)
		}
	}
	for digest, public := range map[events.Digest]bool{of("open").Digest: true, of("secret").Digest: false, eventstest.Digest("licence"): true} {
		if got, err := c.Blob(t.Context(), digest, catalog.Everything); err != nil || got.Public != public || got.Digest != digest {
			t.Errorf("blob %s: %+v, %v, want public %v", digest, got, err, public)
		}
		if _, err := c.Blob(t.Context(), digest, catalog.Readable{}); public != (err == nil) || !public && !errors.Is(err, catalog.ErrNotFound) {
			t.Errorf("blob %s for those who may read nothing private: %v", digest, err)
		}
	}
}

func TestWhatIsNotPublishedIsNotFound(t *testing.T) {
	t.Parallel()
	h := eventstest.New()
	if _, err := h.Initiate(t, eventstest.Session("soon", "1")); err != nil {
		t.Fatal(err)
	}
	h.Publish(t, eventstest.Session("debian", "1", "latest"))
	c := fromHistory(t, h)
	ctx := t.Context()
	_, image := c.Image(ctx, "soon")
	_, _, versions := c.Versions(ctx, "soon", "", 0)
	_, version := c.Version(ctx, "soon", "1")
	_, format := c.Format(ctx, "soon", "1", variant, "disk.qcow2")
	_, otherFormat := c.Format(ctx, "debian", "latest", variant, "disk.raw.zst")
	_, otherVariant := c.Format(ctx, "debian", "1", "arm64.virtual-machine.default", "disk.qcow2")
	_, job := c.Job(ctx, "none")
	_, upload := c.Upload(ctx, "none")
	for what, err := range map[string]error{"image": image, "versions": versions, "version": version, "format": format,
		"another format": otherFormat, "another variant": otherVariant, "job": job, "upload": upload} {
		if !errors.Is(err, catalog.ErrNotFound) {
			t.Errorf("%s: %v, want ErrNotFound", what, err)
		}
	}
}

func TestADatabaseThatIsAwayIsUnavailable(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := listener.Addr()
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	pool, err := pgxpool.New(t.Context(), fmt.Sprintf("postgres://nobody@%s/none?sslmode=disable", addr))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	c := catalog.New(pool, nil)
	_, one := c.Image(t.Context(), "debian")
	_, _, many := c.Jobs(t.Context(), catalog.JobFilter{})
	for what, err := range map[string]error{"one": one, "many": many} {
		if !errors.Is(err, catalog.ErrUnavailable) || errors.Is(err, catalog.ErrNotFound) {
			t.Errorf("%s: %v, want ErrUnavailable", what, err)
		}
	}
}

// publishedAt is the sequence of the event that published a version.
func publishedAt(t *testing.T, h *eventstest.History, image, version string) events.Sequence {
	t.Helper()
	for _, event := range h.Events {
		if fact, ok := event.Fact.(events.VersionPublished); ok && fact.Image == image && fact.Version.Version == version {
			return event.Sequence
		}
	}
	t.Fatalf("version %s of %s was never published", version, image)
	return 0
}

func TestAWithdrawnVersionIsInNoListAndSaysWhy(t *testing.T) {
	t.Parallel()
	h := eventstest.New()
	h.Publish(t, eventstest.Session("debian", "1", "latest"))
	two := eventstest.Session("debian", "2", "latest")
	two.Attachments = []events.UploadFile{{Format: "notes.md", Size: 7, State: events.FilePending}}
	h.Publish(t, two)
	h.Publish(t, eventstest.Session("alone", "1"))
	for _, err := range []error{h.Withdraw(t, "debian", "2", "1", false), h.Withdraw(t, "alone", "1", "", false)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	disk := func(version string) events.Digest {
		f, _ := h.Version("debian", version).State.Manifest.Format(variant, "disk.qcow2")
		return f.Digest
	}
	c := fromHistory(t, h)
	images, _, err := c.Images(t.Context(), catalog.ImageFilter{})
	if err != nil || len(images) != 1 || images[0].Versions != 1 || images[0].Latest != "1" {
		t.Errorf("images are %+v, %v", images, err)
	}
	if _, err := c.Image(t.Context(), "alone"); !errors.Is(err, catalog.ErrNotFound) {
		t.Errorf("an image with nothing but withdrawn versions: %v", err)
	}
	if _, _, err := c.Versions(t.Context(), "alone", "", 0); !errors.Is(err, catalog.ErrNotFound) {
		t.Errorf("its versions: %v", err)
	}
	versions, _, err := c.Versions(t.Context(), "debian", "", 0)
	if err != nil || len(versions) != 1 || versions[0].Version != "1" || versions[0].Withdrawn != nil {
		t.Errorf("versions are %+v, %v", versions, err)
	}
	want := h.Version("debian", "2").State.Withdrawal
	v, errVersion := c.Version(t.Context(), "debian", "2")
	f, errFormat := c.Format(t.Context(), "debian", "2", variant, "disk.qcow2")
	a, errAttachment := c.Attachment(t.Context(), "debian", "2", "notes.md")
	if diff := cmp.Diff([]*events.Withdrawal{want, want, want}, []*events.Withdrawal{v.Withdrawn, f.Withdrawn, a.Withdrawn}); diff != "" {
		t.Errorf("%v, %v, %v, withdrawals (-want +got):\n%s", errVersion, errFormat, errAttachment, diff)
	}
	if _, err := c.Blob(t.Context(), disk("2"), catalog.Everything); !errors.Is(err, catalog.ErrNotFound) {
		t.Errorf("a blob of the withdrawn version: %v", err)
	}
	if _, err := c.Blob(t.Context(), disk("1"), catalog.Everything); err != nil {
		t.Errorf("a blob of the other: %v", err)
	}
	if err := h.Restore(t, "debian", "2"); err != nil {
		t.Fatal(err)
	}
	c = fromHistory(t, h)
	if versions, _, err = c.Versions(t.Context(), "debian", "", 0); err != nil || len(versions) != 2 || versions[0].Version != "2" || versions[0].Sequence != publishedAt(t, h, "debian", "2") {
		t.Errorf("restored: %+v, %v", versions, err)
	}
}
