package clientrules

import (
	"bytes"
	"encoding/json"
	"maps"
	"net/url"
	"path"
	"slices"
	"strings"
)

// The documents as the clients decode them; fields that only one dialect reads are marked.

type indexDocument struct {
	Index   map[string]indexEntry `json:"index"`
	Updated string                `json:"updated"`
	Format  string                `json:"format"`
}

type indexEntry struct {
	DataType string   `json:"datatype"`
	Path     string   `json:"path"`
	Updated  string   `json:"updated"`
	Products []string `json:"products"`
	Format   string   `json:"format"`
}

type productsDocument struct {
	ContentID string             `json:"content_id"`
	DataType  string             `json:"datatype"`
	Format    string             `json:"format"`
	License   string             `json:"license"`
	Products  map[string]product `json:"products"`
	Updated   string             `json:"updated"`
}

type product struct {
	Aliases         string             `json:"aliases"`
	Architecture    string             `json:"arch"`
	OS              string             `json:"os"`
	Requirements    map[string]string  `json:"requirements"`     // Incus
	LXDRequirements map[string]string  `json:"lxd_requirements"` // LXD
	Release         string             `json:"release"`
	ReleaseCodename string             `json:"release_codename"`
	ReleaseTitle    string             `json:"release_title"`
	Supported       bool               `json:"supported"`
	SupportEOL      string             `json:"support_eol"`
	Version         string             `json:"version"`
	Versions        map[string]version `json:"versions"`
	Variant         string             `json:"variant"`
}

type version struct {
	Items  map[string]item `json:"items"`
	Label  string          `json:"label"`
	Public string          `json:"pubname"`
}

type item struct {
	CombinedDisk1    string `json:"combined_disk1-img_sha256"`
	CombinedDiskKVM  string `json:"combined_disk-kvm-img_sha256"`
	CombinedUEFI1    string `json:"combined_uefi1-img_sha256"`
	CombinedRootXZ   string `json:"combined_rootxz_sha256"`
	Combined         string `json:"combined_sha256"`
	CombinedSquashfs string `json:"combined_squashfs_sha256"`
	CombinedType     string `json:"combined_type"` // Incus
	FileType         string `json:"ftype"`
	MD5              string `json:"md5"`
	Path             string `json:"path"`
	SHA256           string `json:"sha256"`
	Size             int64  `json:"size"`
	DeltaBase        string `json:"delta_base"`
}

// decode fills target as the client would, and reports fields that it would pass over.
func (r *reader) decode(body []byte, where string, target any) bool {
	if err := json.Unmarshal(body, target); err != nil {
		r.report(BadJSON, where, "the client cannot decode it: %v", err)
		return false
	}
	// What decodes leniently and not strictly has a field too many; which one, the decoder's text says.
	strict := json.NewDecoder(bytes.NewReader(body))
	strict.DisallowUnknownFields()
	if err := strict.Decode(target); err != nil {
		r.report(UnknownField, where, "%v", err)
	}
	return true
}

func (r *reader) index(body []byte, fetch func(path string) ([]byte, error)) []Image {
	var document indexDocument
	if !r.decode(body, "index", &document) {
		return nil
	}
	if document.Format != "index:1.0" {
		r.report(BadFormat, "index", "format is %q, not index:1.0", document.Format)
	}
	var images []Image
	cached := map[string]string{"index.json": "the index"}
	for _, name := range slices.Sorted(maps.Keys(document.Index)) {
		entry, where := document.Index[name], "index entry "+name
		if entry.DataType != "image-downloads" {
			r.report(EntrySkipped, where, "datatype is %q, not image-downloads", entry.DataType)
			continue
		}
		r.checkPath(entry.Path, where)
		base := path.Base(entry.Path)
		if other, taken := cached[base]; taken {
			r.report(CacheCollision, where, "clients keep it as %s, like %s", base, other)
		}
		cached[base] = where
		content, err := fetch(entry.Path)
		if err != nil || len(content) == 0 {
			r.report(BadPath, where, "%s cannot be fetched (%d bytes, error %v)", entry.Path, len(content), err)
			continue
		}
		var products productsDocument
		if !r.decode(content, entry.Path, &products) {
			continue
		}
		r.checkAgreement(entry, products, where)
		if len(entry.Products) == 0 {
			if len(products.Products) > 0 {
				r.report(EntrySkipped, where, "it lists no product, but %s has %d", entry.Path, len(products.Products))
			}
			continue
		}
		for _, key := range slices.Sorted(maps.Keys(products.Products)) {
			images = append(images, r.product(key, products.Products[key])...)
		}
	}
	return images
}

func (r *reader) checkAgreement(entry indexEntry, products productsDocument, where string) {
	if entry.Format != "products:1.0" || products.Format != "products:1.0" {
		r.report(BadFormat, where, "format is %q in the index and %q in the document, not products:1.0", entry.Format, products.Format)
	}
	if products.DataType != entry.DataType {
		r.report(BadFormat, where, "datatype is %q in the index and %q in the document", entry.DataType, products.DataType)
	}
	if products.ContentID == "" {
		r.report(MissingField, where, "%s has no content_id", entry.Path)
	}
	listed := slices.Sorted(slices.Values(entry.Products))
	if there := slices.Sorted(maps.Keys(products.Products)); !slices.Equal(listed, there) {
		r.report(ProductsMismatch, where, "the index lists the products %v, %s has %v", listed, entry.Path, there)
	}
}

// checkPath wants a clean relative path: clients join it to the remote's address, so that an absolute address or a step
// upwards leads elsewhere than it says.
func (r *reader) checkPath(p, where string) {
	parsed, err := url.Parse(p)
	switch {
	case p == "":
		r.report(MissingField, where, "path is empty")
	case err != nil || parsed.Scheme != "" || parsed.Host != "" || strings.HasPrefix(p, "/") || path.Clean(p) != p || strings.HasPrefix(p, ".."):
		r.report(BadPath, where, "path %q is not a clean relative path", p)
	case strings.ContainsAny(p, "?#% "):
		r.report(BadPath, where, "path %q holds a character that the clients escape in different ways", p)
	}
}
