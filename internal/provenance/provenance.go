// Package provenance says where a version's files come from: checksums that sha256sum reads, signed in minisign's form. The
// server makes both, the client checks both, and so both stand here. It must not know events, HTTP or where files are kept.
package provenance

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
)

// ChecksumsName is the name of the file of checksums, and SignatureName that of the signature over its bytes.
const (
	ChecksumsName = "SHA256SUMS"
	SignatureName = ChecksumsName + ".minisig"
)

// File is a file of a version: the name that it is downloaded under, and its SHA-256 in 64 lower-case hex digits.
type File struct{ Name, SHA256 string }

// FileName is what a download is saved under by browsers and curl -OJ, and its name in the checksums. In one version no two files
// have the same: a variant's name (amd64.virtual-machine.default) has two dots and ends at the third, whatever the format is called.
func FileName(image, version, variant, format string) string {
	return image + "-" + version + "-" + variant + "." + format
}

// AttachmentName is FileName for an attachment, a file of the version as a whole. The dot after the version is what no variant's file
// has there.
func AttachmentName(image, version, name string) string {
	return image + "-" + version + "." + name
}

// Checksums makes the lines that coreutils' sha256sum -c reads, sorted by name. The names need no escaping there: they are
// imgsrv's clean names.
func Checksums(files []File) []byte {
	sorted := slices.SortedFunc(slices.Values(files), func(a, b File) int { return strings.Compare(a.Name, b.Name) })
	var out bytes.Buffer
	for _, f := range sorted {
		out.WriteString(f.SHA256 + "  " + f.Name + "\n")
	}
	return out.Bytes()
}

// ParseChecksums reads what Checksums made: SHA-256 by name. Whatever else is an error, also a name that stands there twice.
func ParseChecksums(sums []byte) (map[string]string, error) {
	out := map[string]string{}
	for line := range strings.Lines(string(sums)) {
		sum, name, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "  ")
		raw, err := hex.DecodeString(sum)
		if !ok || err != nil || len(raw) != 32 || sum != strings.ToLower(sum) || name == "" || strings.ContainsAny(name, "/\\ \r") {
			return nil, fmt.Errorf("read %s: %q is no line of SHA-256 and name", ChecksumsName, line)
		}
		if _, twice := out[name]; twice {
			return nil, fmt.Errorf("read %s: %s stands there twice", ChecksumsName, name)
		}
		out[name] = sum
	}
	return out, nil
}
