package incus

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/ulikunitz/xz"
	"go.yaml.in/yaml/v3"
)

// maxMetadataBytes is how much of metadata.yaml an Incus daemon reads (cmd/incusd/images.go, getImageMetadata).
const maxMetadataBytes = 1 << 20

// ErrMetadata is the cause of each refusal by Metadata.Tarball that lies in the metadata itself.
var ErrMetadata = errors.New("image metadata cannot be used")

// Metadata is what an Incus metadata tarball says of an image.
//
// Whether the image is a container or a virtual machine is not said in it: clients see that by the root file.
type Metadata struct {
	Architecture string    // any name that Canonical accepts; required
	CreationDate time.Time // required, after 1970; kept in whole seconds
	ExpiryDate   time.Time // zero: never expires; kept in whole seconds
	Name         string    // the image's name, e.g. debian-bookworm
	OS           string    // e.g. debian; required
	Release      string    // e.g. bookworm; required
	Variant      string    // the flavour; empty: default
	Version      string    // e.g. 12.5.0
	Serial       string    // e.g. 20261124_200037; empty: the creation date in that form
	Description  string    // empty: made of the other fields
	// Requirements are what a host must meet, by their names without "requirements.": secureboot. They become properties.
	Requirements map[string]string
	CloudInit    bool // with templates that hand an instance's configuration to cloud-init
}

// metadataYAML is metadata.yaml as both daemons read it (lxc/incus shared/api/image.go, ImageMetadata). The order of the
// fields is the order in the file; yaml sorts the properties.
type metadataYAML struct {
	Architecture string            `yaml:"architecture"`
	CreationDate int64             `yaml:"creation_date"` // seconds since 1970
	ExpiryDate   int64             `yaml:"expiry_date"`   // seconds since 1970, 0: never
	Properties   map[string]quoted `yaml:"properties"`
	Templates    map[string]rule   `yaml:"templates,omitempty"` // by the path in the instance
}

// rule says when a daemon makes a file from a template.
type rule struct {
	When     []string `yaml:"when,flow"`
	Template string   `yaml:"template"` // a file in templates/
}

// quoted is text that yaml always writes between double quotes: as a block it would write some texts that it then cannot read
// (one that begins with a tab), and escapes keep every text on one line.
type quoted string

// MarshalYAML implements yaml.Marshaler.
func (q quoted) MarshalYAML() (any, error) {
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Style: yaml.DoubleQuotedStyle, Value: string(q)}, nil
}

// Tarball makes incus.tar.xz, which is also lxd.tar.xz: metadata.yaml, and the files of the templates. A templates folder is left out
// without any, since neither daemon asks for one when the metadata names no template.
//
// The same metadata gives the same bytes with the same xz and YAML packages. Another version of these may give others, so
// who needs the bytes again keeps them. Errors that lie in the metadata wrap ErrMetadata.
func (m Metadata) Tarball() ([]byte, error) {
	document, err := m.document()
	if err != nil {
		return nil, err
	}
	body, err := yaml.Marshal(document)
	if err != nil {
		return nil, fmt.Errorf("encode metadata.yaml: %w", err)
	}
	if len(body) > maxMetadataBytes {
		return nil, fmt.Errorf("%w: metadata.yaml has %d bytes, clients read at most %d", ErrMetadata, len(body), maxMetadataBytes)
	}

	var out bytes.Buffer
	// Fixed, so that a change of the package's defaults does not change fingerprints. The dictionary bounds what a reader
	// must allocate; the text is far smaller.
	compressor, err := xz.WriterConfig{DictCap: 1 << 20, CheckSum: xz.CRC64}.NewWriter(&out)
	if err != nil {
		return nil, fmt.Errorf("start the xz stream: %w", err)
	}
	archive := tar.NewWriter(compressor)
	created := time.Unix(document.CreationDate, 0).UTC()
	if err := addFile(archive, "metadata.yaml", body, created); err != nil {
		return nil, err
	}
	for _, t := range m.templates() {
		if err := addFile(archive, "templates/"+t.file, []byte(t.text), created); err != nil {
			return nil, err
		}
	}
	if err := archive.Close(); err != nil {
		return nil, fmt.Errorf("finish the tar archive: %w", err)
	}
	if err := compressor.Close(); err != nil {
		return nil, fmt.Errorf("finish the xz stream: %w", err)
	}
	return out.Bytes(), nil
}

func addFile(archive *tar.Writer, name string, body []byte, modified time.Time) error {
	header := &tar.Header{
		Typeflag: tar.TypeReg,
		Name:     name,
		Size:     int64(len(body)),
		Mode:     0o644,
		Uname:    "root",
		Gname:    "root",
		ModTime:  modified,
		Format:   tar.FormatUSTAR,
	}
	if err := archive.WriteHeader(header); err != nil {
		return fmt.Errorf("write the header of %s: %w", name, err)
	}
	if _, err := archive.Write(body); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

func (m Metadata) templates() []template {
	if !m.CloudInit {
		return nil
	}
	return cloudInitTemplates()
}

func (m Metadata) document() (metadataYAML, error) {
	canonical, known := Canonical(m.Architecture)
	if !known {
		return metadataYAML{}, fmt.Errorf("%w: unknown architecture %q, known are %s",
			ErrMetadata, m.Architecture, strings.Join(Architectures(), ", "))
	}
	kernel, _ := Kernel(canonical)
	// Daemons refuse a creation date of 0 ("Missing creation date"). ustar holds eleven octal digits of seconds.
	created := m.CreationDate.Unix()
	if created <= 0 || created >= 1<<33 {
		return metadataYAML{}, fmt.Errorf("%w: creation date %s is outside 1970 to 2242", ErrMetadata, m.CreationDate.UTC().Format(time.RFC3339))
	}
	var expiry int64
	if !m.ExpiryDate.IsZero() {
		if expiry = m.ExpiryDate.Unix(); expiry <= created {
			return metadataYAML{}, fmt.Errorf("%w: expiry date %s is not after the creation date", ErrMetadata, m.ExpiryDate.UTC().Format(time.RFC3339))
		}
	}
	if m.OS == "" {
		return metadataYAML{}, fmt.Errorf("%w: the operating system (os) is missing", ErrMetadata)
	}
	if m.Release == "" {
		return metadataYAML{}, fmt.Errorf("%w: the release is missing", ErrMetadata)
	}

	if m.Variant == "" {
		m.Variant = "default"
	}
	if m.Serial == "" {
		m.Serial = VersionKey(m.CreationDate)
	}
	if m.Description == "" {
		m.Description = fmt.Sprintf("%s %s %s (%s)", m.OS, m.Release, canonical, m.Serial)
	}
	// os, release, variant, architecture and description are what incus-simplestreams asks for
	// (lxc/incus cmd/incus-simplestreams/main_add.go); the others help people who look at an imported image.
	properties := map[string]quoted{
		"architecture": quoted(canonical),
		"description":  quoted(m.Description),
		"name":         quoted(m.Name),
		"os":           quoted(m.OS),
		"release":      quoted(m.Release),
		"serial":       quoted(m.Serial),
		"variant":      quoted(m.Variant),
		"version":      quoted(m.Version),
	}
	for key, value := range m.Requirements {
		properties["requirements."+key] = quoted(value)
	}
	for key, value := range properties {
		if value == "" {
			delete(properties, key)
		}
		if !utf8.ValidString(string(value)) {
			return metadataYAML{}, fmt.Errorf("%w: %s is not valid UTF-8", ErrMetadata, key)
		}
	}
	var rules map[string]rule
	for _, t := range m.templates() {
		if rules == nil {
			rules = map[string]rule{}
		}
		rules[t.target] = rule{When: []string{"create", "copy"}, Template: t.file}
	}
	return metadataYAML{Architecture: kernel, CreationDate: created, ExpiryDate: expiry, Properties: properties, Templates: rules}, nil
}
