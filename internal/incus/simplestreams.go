package incus

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Names and values that the clients look for in simplestreams documents.
//
// Source: lxc/incus shared/simplestreams/products.go and simplestreams.go, LXD 5.0.2 the same files.
const (
	IndexPath  = "streams/v1/index.json"  // fixed in the clients
	ImagesPath = "streams/v1/images.json" // ours; its last element must differ from that of each other document, for clients cache by it

	IndexFormat    = "index:1.0"
	ProductsFormat = "products:1.0"
	DataType       = "image-downloads" // an entry of another type is passed over
	ContentID      = "images"
)

// File types of items (Item.FileType). By convention an item's key in Version.Items is its type; clients read only the type.
const (
	FileIncusMetadata = "incus.tar.xz"
	FileIncusCombined = "incus_combined.tar.gz"
	FileLXDMetadata   = "lxd.tar.xz"
	FileLXDCombined   = "lxd_combined.tar.gz"
	FileSquashfs      = "squashfs"     // container root
	FileRootTarXZ     = "root.tar.xz"  // container root
	FileDiskKVM       = "disk-kvm.img" // virtual machine root, qcow2
)

// The document of one image stands in a folder of its own. No index leads there: clients read each document
// that one names, and would see those images twice.
const imageFolder, imageSuffix = "streams/v1/images/", ".json"

// ImagePath is where the document of one image is.
func ImagePath(image string) string { return imageFolder + image + imageSuffix }

// ImageOfPath is the image whose document is at a path; ok is false for another path.
func ImageOfPath(path string) (image string, ok bool) {
	image, inFolder := strings.CutPrefix(path, imageFolder)
	image, ok = strings.CutSuffix(image, imageSuffix)
	return image, ok && inFolder && image != "" && !strings.Contains(image, "/")
}

// Index is streams/v1/index.json.
type Index struct {
	Index   map[string]IndexEntry `json:"index"`
	Updated string                `json:"updated,omitempty"` // for people; clients do not read it
	Format  string                `json:"format"`
}

// IndexEntry names one products document. Clients pass over an entry whose Products is empty.
type IndexEntry struct {
	DataType string   `json:"datatype"`
	Path     string   `json:"path"` // relative to the remote's address
	Updated  string   `json:"updated,omitempty"`
	Products []string `json:"products"`
	Format   string   `json:"format,omitempty"`
}

// Products is a document of products, our streams/v1/images.json.
type Products struct {
	ContentID string             `json:"content_id"`
	DataType  string             `json:"datatype"`
	Format    string             `json:"format"`
	Updated   string             `json:"updated,omitempty"`
	Products  map[string]Product `json:"products"`
}

// Product is a line of images under common aliases: with us one variant of one version of an image.
type Product struct {
	Aliases         string             `json:"aliases"` // comma-separated without blanks: JoinAliases
	Architecture    string             `json:"arch"`    // a canonical name
	OS              string             `json:"os"`
	Release         string             `json:"release"`
	ReleaseCodename string             `json:"release_codename,omitempty"`
	ReleaseTitle    string             `json:"release_title"` // in the description that clients show
	Supported       bool               `json:"supported,omitempty"`
	SupportEOL      string             `json:"support_eol,omitempty"` // YYYY-MM-DD, the image's expiry
	Version         string             `json:"version,omitempty"`     // becomes the property "version"
	Variant         string             `json:"variant,omitempty"`     // becomes the property "variant"
	Requirements    map[string]string  `json:"requirements,omitempty"`
	LXDRequirements map[string]string  `json:"lxd_requirements,omitempty"` // LXD 5.0 reads these instead
	Versions        map[string]Version `json:"versions"`                   // keys: VersionKey
}

// Version is one build of a product, named by its date.
type Version struct {
	Items map[string]Item `json:"items"`
	Label string          `json:"label,omitempty"` // in the description
}

// Item is one file of a version. The combined fields stand on the metadata item and are the image's fingerprint with that
// root: SHA-256 of the metadata file's bytes followed by the root file's. All digests are 64 lower-case hex digits.
type Item struct {
	FileType               string `json:"ftype"`
	Path                   string `json:"path"` // relative to the remote's address; its last element names an exported file
	SHA256                 string `json:"sha256,omitempty"`
	SizeBytes              int64  `json:"size"`
	CombinedDiskKVMSHA256  string `json:"combined_disk-kvm-img_sha256,omitempty"`
	CombinedRootXZSHA256   string `json:"combined_rootxz_sha256,omitempty"`
	CombinedSquashfsSHA256 string `json:"combined_squashfs_sha256,omitempty"`
	CombinedType           string `json:"combined_type,omitempty"` // incus_combined.tar.gz only: virtual-machine or container
	DeltaBase              string `json:"delta_base,omitempty"`    // a version key of the same product
}

// VersionKey names a version by its time, in UTC, as YYYYMMDD_HHMMSS. Clients read the first eight digits as the creation
// date and take the greatest key of a product as the newest.
func VersionKey(t time.Time) string {
	return t.UTC().Format("20060102_150405")
}

// JoinAliases makes a product's aliases field: sorted, each once. Clients cut it at commas and keep blanks, so an alias that
// is empty or holds a comma or a blank is an error.
func JoinAliases(aliases []string) (string, error) {
	for _, alias := range aliases {
		if alias == "" || strings.ContainsAny(alias, ", \t\r\n") {
			return "", fmt.Errorf("alias %q cannot stand in a simplestreams product: it is empty or holds a comma or a blank", alias)
		}
	}
	sorted := slices.Clone(aliases)
	slices.Sort(sorted)
	return strings.Join(slices.Compact(sorted), ","), nil
}

// NewProducts makes an empty document of products.
func NewProducts(updated time.Time) Products {
	return Products{
		ContentID: ContentID,
		DataType:  DataType,
		Format:    ProductsFormat,
		Updated:   updated.UTC().Format(time.RFC1123Z),
		Products:  map[string]Product{},
	}
}

// Index makes the index.json that leads to p, served at path (ImagesPath). With no product the entry stays, with an empty
// list, which clients take for no images.
func (p Products) Index(path string) Index {
	names := make([]string, 0, len(p.Products))
	for name := range p.Products {
		names = append(names, name)
	}
	slices.Sort(names)
	return Index{
		Format:  IndexFormat,
		Updated: p.Updated,
		Index: map[string]IndexEntry{
			p.ContentID: {DataType: p.DataType, Path: path, Updated: p.Updated, Products: names, Format: p.Format},
		},
	}
}

// Encode gives the document's bytes. Equal documents give equal bytes, since encoding/json sorts the keys of maps.
func (i Index) Encode() ([]byte, error) { return encode("index", i) }

// Encode gives the document's bytes. Equal documents give equal bytes, since encoding/json sorts the keys of maps.
func (p Products) Encode() ([]byte, error) { return encode("products", p) }

// Member gives the product's bytes as they stand in a document: `"KEY":{…}`.
func (p Product) Member(key string) ([]byte, error) {
	text, err := encode("product", map[string]Product{key: p})
	if err != nil {
		return nil, err
	}
	return text[len("{") : len(text)-len("}\n")], nil
}

func encode(what string, document any) ([]byte, error) {
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(document); err != nil {
		return nil, fmt.Errorf("encode the simplestreams %s: %w", what, err)
	}
	return out.Bytes(), nil
}
