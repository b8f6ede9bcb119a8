package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/imgsrv/imgsrv/internal/incus"
)

// handMadeTree is a tree as other generators write it: documents with the fields that their format's description has, files in folders
// of the products' own.
type handMadeTree struct {
	t        *testing.T
	dir      string
	products map[string]map[string]any
}

func newTree(t *testing.T) *handMadeTree {
	return &handMadeTree{t: t, dir: t.TempDir(), products: map[string]map[string]any{}}
}

func (h *handMadeTree) product(key, arch, release, variant, aliases string) map[string]any {
	p, ok := h.products[key]
	if !ok {
		p = map[string]any{"aliases": aliases, "arch": arch, "os": "Debian", "release": release, "release_title": strings.ToUpper(release), "variant": variant,
			"requirements": map[string]string{"secureboot": "false"}, "support_eol": "2124-06-30", "release_codename": "worm", "supported": true, "versions": map[string]any{}}
		h.products[key] = p
	}
	return p
}

// item writes a file and gives its item.
func (h *handMadeTree) item(key, serial, fileType, data string) map[string]any {
	h.t.Helper()
	name := "images/" + strings.ReplaceAll(key, ":", "/") + "/" + serial + "/" + fileType
	h.write(name, data)
	return map[string]any{"ftype": fileType, "path": name, "size": len(data), "sha256": hexSum(data)}
}

func (h *handMadeTree) write(name, data string) {
	h.t.Helper()
	file := filepath.Join(h.dir, name)
	if err := os.MkdirAll(filepath.Dir(file), 0o750); err != nil {
		h.t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(data), 0o600); err != nil {
		h.t.Fatal(err)
	}
}

// add adds roots to a version of a product, by their file types, with a metadata tarball of the given type; it gives fingerprints.
func (h *handMadeTree) add(key, serial, metadataType string, roots map[string]string) (fingerprints []string) {
	h.t.Helper()
	p := h.products[key]
	date, err := time.Parse("20060102", serial[:8])
	if err != nil {
		h.t.Fatal(err)
	}
	tarball, err := incus.Metadata{Architecture: p["arch"].(string), CreationDate: date, OS: "Debian", Release: p["release"].(string), Serial: serial}.Tarball()
	if err != nil {
		h.t.Fatal(err)
	}
	metadata := h.item(key, serial, metadataType, string(tarball))
	items := map[string]any{metadataType: metadata}
	for fileType, data := range roots {
		field := map[string]string{"squashfs": "combined_squashfs_sha256", "root.tar.xz": "combined_rootxz_sha256",
			"disk-kvm.img": "combined_disk-kvm-img_sha256", "disk1.img": "combined_disk1-img_sha256"}[fileType]
		metadata[field] = hexSum(string(tarball) + data)
		fingerprints = append(fingerprints, hexSum(string(tarball)+data))
		items[fileType] = h.item(key, serial, fileType, data)
	}
	p["versions"].(map[string]any)[serial] = map[string]any{"items": items}
	slices.Sort(fingerprints)
	return fingerprints
}

// finish writes the documents.
func (h *handMadeTree) finish() string {
	h.t.Helper()
	var keys []string
	for key := range h.products {
		keys = append(keys, key)
	}
	for name, document := range map[string]any{
		"index.json": map[string]any{"format": "index:1.0", "index": map[string]any{"images": map[string]any{
			"datatype": "image-downloads", "path": "streams/v1/images.json", "products": keys, "format": "products:1.0"}}},
		"images.json": map[string]any{"content_id": "images", "datatype": "image-downloads", "format": "products:1.0", "products": h.products},
	} {
		data, err := json.Marshal(document)
		if err != nil {
			h.t.Fatal(err)
		}
		h.write("streams/v1/"+name, string(data))
	}
	return h.dir
}

// sampleTree has two versions for two architectures, container and VM side by side, a flavour made by LXD's tools, and the things
// that clients pass over.
func sampleTree(t *testing.T) (dir string, fingerprints []string) {
	t.Helper()
	h := newTree(t)
	const amd64, arm64, cloud, odd = "debian:bookworm:amd64:default", "debian:bookworm:arm64:default", "debian:bookworm:amd64:cloud", "debian:bookworm:vax:default"
	h.product(amd64, "amd64", "bookworm", "default", "debian/bookworm/default,debian/bookworm")
	h.product(arm64, "arm64", "bookworm", "default", "debian/bookworm/default,debian/bookworm")
	h.product(cloud, "x86_64", "bookworm", "cloud", "debian/bookworm/cloud")
	h.product(odd, "vax", "bookworm", "default", "debian/bookworm")
	for _, serial := range []string{"20260101_05:24", "20260201_05:24"} {
		fingerprints = append(fingerprints, h.add(amd64, serial, "incus.tar.xz", map[string]string{
			"squashfs": squashfs + serial, "disk-kvm.img": string(qcow2Image(t, len(serial)*1000+int(serial[5])))})...)
		fingerprints = append(fingerprints, h.add(arm64, serial, "incus.tar.xz", map[string]string{"squashfs": squashfs + "arm64" + serial})...)
	}
	fingerprints = append(fingerprints, h.add(cloud, "20260131_0600", "lxd.tar.xz", map[string]string{"disk1.img": string(qcow2Image(t, 70_000))})...)
	h.products[odd]["versions"].(map[string]any)["20260131"] = map[string]any{"items": map[string]any{}}
	h.products[cloud]["versions"].(map[string]any)["newest"] = map[string]any{"items": map[string]any{}}
	slices.Sort(fingerprints)
	return h.finish(), fingerprints
}

func fingerprintsOf(r imported) (all []string) {
	for _, v := range r.Versions {
		for _, variant := range v.Variants {
			all = append(all, variant.Fingerprint)
		}
	}
	slices.Sort(all)
	return all
}

func TestATreeIsTakenOverWithItsFingerprints(t *testing.T) {
	t.Parallel()
	dir, fingerprints := sampleTree(t)
	flags, node := server(t)
	take := func(args ...string) imported {
		t.Helper()
		code, out, errs := command(t.Context(), with(flags, append([]string{"import", "incus-simplestreams", dir, "--json"}, args...)...)...)
		if code != 0 {
			t.Fatalf("import %v: exit code %d: %s", args, code, errs)
		}
		return decode[imported](t, out)
	}
	states := func(r imported) (lines []string) {
		for _, v := range r.Versions {
			line := v.Image + " " + v.Version + " " + v.State + " " + strings.Join(v.Aliases, ",")
			for _, variant := range v.Variants {
				line += " " + variant.Variant
			}
			lines = append(lines, line)
		}
		return lines
	}
	const both = " amd64.container.default amd64.virtual-machine.default arm64.container.default"
	planned := take("--dry-run")
	want := []string{
		"debian-bookworm 20260101_0524 to be published " + both,
		"debian-bookworm 20260201_0524 to be published latest" + both,
		"debian-bookworm-cloud 20260131_0600 to be published latest amd64.virtual-machine.default",
	}
	if diff := cmp.Diff(want, states(planned)); diff != "" {
		t.Errorf("--dry-run (-want +got):\n%s", diff)
	}
	if len(planned.PassedOver) != 2 || len(planned.Bad) != 0 {
		t.Errorf("passed over %q, bad %q", planned.PassedOver, planned.Bad)
	}
	consumer := node.stranger(t)
	if resp := consumer.call("GET", "/api/images/debian-bookworm", nil, nil); resp.StatusCode != 404 {
		t.Fatalf("a dry run published something: %d", resp.StatusCode)
	}

	// Resumed: a part first.
	take("--only=debian-bookworm-c*")
	result := take()
	for i := range want {
		want[i] = strings.Replace(want[i], "to be published", "published", 1)
	}
	want[2] = "debian-bookworm-cloud 20260131_0600 was published before  amd64.virtual-machine.default"
	if diff := cmp.Diff(want, states(result)); diff != "" {
		t.Errorf("import (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(fingerprints, fingerprintsOf(result)); diff != "" {
		t.Errorf("fingerprints (-tree +imported):\n%s", diff)
	}
	if diff := cmp.Diff(fingerprints, servedFingerprints(t, consumer)); diff != "" {
		t.Errorf("fingerprints (-tree +served):\n%s", diff)
	}
	var image struct {
		Aliases map[string]string `json:"aliases"`
		OS      string            `json:"os"`
	}
	consumer.call("GET", "/api/images/debian-bookworm", nil, &image)
	if image.Aliases["latest"] != "20260201_0524" || image.OS != "debian" {
		t.Errorf("image: %+v", image)
	}
	for _, v := range take().Versions {
		if v.State != importExisted {
			t.Errorf("imported again: %+v", v)
		}
	}
}

// servedFingerprints are those that the server's simplestreams documents list.
func servedFingerprints(t *testing.T, p *publisher) (all []string) {
	t.Helper()
	var products incus.Products
	p.call("GET", "/streams/v1/images.json", nil, &products)
	for _, product := range products.Products {
		for _, version := range product.Versions {
			for _, item := range version.Items {
				for _, fingerprint := range []string{item.CombinedDiskKVMSHA256, item.CombinedRootXZSHA256, item.CombinedSquashfsSHA256} {
					if item.FileType == incus.FileIncusMetadata && fingerprint != "" {
						all = append(all, fingerprint)
					}
				}
			}
		}
	}
	slices.Sort(all)
	return all
}

func TestAnUnsoundTreeIsReportedLineByLine(t *testing.T) {
	t.Parallel()
	h := newTree(t)
	const good, short, changed, absent, lying, outside = "debian:a:amd64:default", "debian:b:amd64:default", "debian:c:amd64:default", "debian:d:amd64:default", "debian:e:amd64:default", "debian:f:amd64:default"
	for i, key := range []string{good, short, changed, absent, lying, outside} {
		h.product(key, "amd64", key[7:8], "default", "")
		h.add(key, "20260101", "incus.tar.xz", map[string]string{"squashfs": squashfs + strings.Repeat("x", 100+i)})
	}
	file := func(key, name string) string {
		return "images/" + strings.ReplaceAll(key, ":", "/") + "/20260101/" + name
	}
	item := func(key, name string) map[string]any {
		return h.products[key]["versions"].(map[string]any)["20260101"].(map[string]any)["items"].(map[string]any)[name].(map[string]any)
	}
	h.write(file(short, "squashfs"), squashfs)
	h.write(file(changed, "squashfs"), squashfs+strings.Repeat("y", 102))
	if err := os.Remove(filepath.Join(h.dir, file(absent, "incus.tar.xz"))); err != nil {
		t.Fatal(err)
	}
	item(lying, "incus.tar.xz")["combined_squashfs_sha256"] = hexSum("something else")
	// A link that leads out of the tree is not followed, whatever is there.
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(secret, filepath.Join(h.dir, "link")); err != nil {
		t.Fatal(err)
	}
	item(outside, "squashfs")["path"] = "link"
	dir := h.finish()

	flags, node := server(t)
	for _, keepGoing := range []bool{false, true} {
		args := []string{"import", "incus-simplestreams", dir, "--json"}
		if keepGoing {
			args = append(args, "--keep-going")
		}
		code, out, errs := command(t.Context(), with(flags, args...)...)
		result := decode[imported](t, out)
		if code != 1 || len(result.Bad) != 5 || strings.Count(errs, "bad: ") != 5 {
			t.Errorf("exit code %d, bad %q, standard error:\n%s", code, result.Bad, errs)
		}
		for key, why := range map[string]string{short: "bytes, not", changed: "SHA-256", absent: "can't be opened", lying: "fingerprint", outside: "can't be opened"} {
			if !slices.ContainsFunc(result.Bad, func(line string) bool {
				return strings.HasPrefix(line, key+" 20260101: ") && strings.Contains(line, why)
			}) {
				t.Errorf("%s isn't reported as %q: %q", key, why, result.Bad)
			}
		}
		served := servedFingerprints(t, node.stranger(t))
		if keepGoing != (len(served) == 1) {
			t.Errorf("--keep-going %v published %q", keepGoing, served)
		}
	}
	code, _, errs := command(t.Context(), with(flags, "import", "incus-simplestreams", t.TempDir())...)
	if code != 1 || !strings.Contains(errs, "index.json") {
		t.Errorf("an empty folder: exit code %d: %s", code, errs)
	}
}

func TestNamesOfATreesImages(t *testing.T) {
	t.Parallel()
	h := newTree(t)
	h.product("k:amd64:default", "amd64", "Trixie/Sid", "default", "debian/sid/default,debian/sid")
	h.product("k:amd64:cloud", "amd64", "Trixie/Sid", "cloud", "debian/sid/cloud")
	h.add("k:amd64:default", "20260101", "incus.tar.xz", map[string]string{"squashfs": squashfs})
	h.add("k:amd64:cloud", "20260101", "incus.tar.xz", map[string]string{"squashfs": squashfs})
	dir := h.finish()
	flags, _ := server(t)
	for template, want := range map[string]string{
		"{os}-{release}{-variant}": "debian-trixie-sid/amd64.container.default debian-trixie-sid-cloud/amd64.container.default",
		"{os}-{release}":           "debian-trixie-sid/amd64.container.cloud debian-trixie-sid/amd64.container.default",
		"{alias}":                  "debian-sid/amd64.container.default debian-sid-cloud/amd64.container.default",
		"x-{variant}":              "x-cloud/amd64.container.default x-default/amd64.container.default",
	} {
		code, out, errs := command(t.Context(), with(flags, "import", "incus-simplestreams", dir, "--dry-run", "--json", "--name-template="+template)...)
		if code != 0 {
			t.Fatalf("%s: exit code %d: %s", template, code, errs)
		}
		var got []string
		for _, v := range decode[imported](t, out).Versions {
			for _, variant := range v.Variants {
				got = append(got, v.Image+"/"+variant.Variant)
			}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %q, want %q", template, got, want)
		}
	}
	for template, want := range map[string]string{"{os}-{arch}": "{arch}", "---": "no name for an image"} {
		if code, _, errs := command(t.Context(), with(flags, "import", "incus-simplestreams", dir, "--dry-run", "--name-template="+template)...); code == 0 || !strings.Contains(errs, want) {
			t.Errorf("%s: exit code %d: %s", template, code, errs)
		}
	}
}
