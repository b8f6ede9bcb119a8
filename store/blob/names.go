package blob

import (
	"encoding/hex"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxNameBytes leaves room for the store's own prefixes within the 255 bytes that file systems allow a name.
const maxNameBytes = 200

// checkName accepts one clean path segment. The leading dot is kept for the store itself, which also rules out "."
// and "..".
func checkName(kind, name string) error {
	rule := ""
	switch {
	case name == "":
		rule = "is empty"
	case len(name) > maxNameBytes:
		rule = fmt.Sprintf("is longer than %d bytes", maxNameBytes)
	case name[0] == '.':
		rule = "begins with a dot"
	case strings.ContainsAny(name, `/\`):
		rule = "has a path separator"
	case !utf8.ValidString(name):
		rule = "is not UTF-8"
	case strings.ContainsFunc(name, unicode.IsControl):
		rule = "has a control character"
	default:
		return nil
	}
	if len(name) > maxNameBytes {
		name = name[:maxNameBytes]
	}
	return fmt.Errorf("%w: %s %q %s", ErrName, kind, name, rule)
}

func checkFileNumber(n int) error {
	if n < 0 {
		return fmt.Errorf("%w: file number %d is negative", ErrName, n)
	}
	return nil
}

func checkDigest(sha256hex string) error {
	// DecodeString alone would take upper case too: one blob, two paths.
	if len(sha256hex) == 64 && strings.ToLower(sha256hex) == sha256hex {
		if _, err := hex.DecodeString(sha256hex); err == nil {
			return nil
		}
	}
	if len(sha256hex) > 80 {
		sha256hex = sha256hex[:80]
	}
	return fmt.Errorf("%w: %q", ErrDigest, sha256hex)
}

func (s *Store) uploads() string      { return filepath.Join(s.root, "uploads") }
func (s *Store) jobs() string         { return filepath.Join(s.root, "ingress", "jobs") }
func (s *Store) sha256Folder() string { return filepath.Join(s.root, "cas", "sha256") }
func (s *Store) casTemp() string      { return filepath.Join(s.root, "cas", "tmp") }

// The paths below take names that were checked.

func (s *Store) sessionFolder(session string) string { return filepath.Join(s.uploads(), session) }

func (s *Store) dataPath(session string, n int) string {
	return filepath.Join(s.uploads(), session, strconv.Itoa(n))
}

func (s *Store) statePath(session string, n int) string { return s.dataPath(session, n) + ".state" }

func (s *Store) jobFolder(job string) string { return filepath.Join(s.jobs(), job) }

func (s *Store) blobPath(sha256hex string) string {
	return filepath.Join(s.sha256Folder(), sha256hex[:2], sha256hex)
}
