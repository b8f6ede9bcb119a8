package events

import (
	"encoding/hex"
	"fmt"
	"strings"
)

// Digest names bytes: "sha256:" and 64 lower-case hex digits.
type Digest string

const digestPrefix = "sha256:"

// ParseDigest reads a digest with or without its "sha256:" prefix.
func ParseDigest(s string) (Digest, error) {
	hexed := strings.TrimPrefix(s, digestPrefix)
	if len(hexed) != 64 || strings.ToLower(hexed) != hexed {
		return "", fmt.Errorf("%q is no SHA-256 digest: it has 64 lower-case hex digits", s)
	}
	if _, err := hex.DecodeString(hexed); err != nil {
		return "", fmt.Errorf("%q is no SHA-256 digest: it has 64 lower-case hex digits", s)
	}
	return Digest(digestPrefix + hexed), nil
}

// Hex is the digest's 64 hex digits.
func (d Digest) Hex() string { return strings.TrimPrefix(string(d), digestPrefix) }
