// Package tusname says how declared files are named in tus (https://tus.io/protocols/resumable-upload): where their uploads are created,
// which ids they have, and what ties them to their session. Server and client agree on it; it must not know either.
package tusname

import (
	"encoding/base64"
	"strconv"
	"strings"
)

// BasePath is where uploads are created, and below which they are.
const BasePath = "/api/uploads/tus/"

// Keys of the Upload-Metadata that says which declared file an upload is. An attachment has the variant "attachments", and its name
// as the format.
const (
	KeySession = "session"
	KeyVariant = "variant"
	KeyFormat  = "format"
)

// Metadata is the Upload-Metadata header that creates the upload of a declared file: comma-separated pairs, values in base64.
func Metadata(session, variant, format string) string {
	encode := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	return KeySession + " " + encode(session) + "," + KeyVariant + " " + encode(variant) + "," + KeyFormat + " " + encode(format)
}

// ID names the n-th file of a session.
func ID(session string, n int) string { return session + "." + strconv.Itoa(n) }

// Path is that of the upload of a session's n-th file.
func Path(session string, n int) string { return BasePath + ID(session, n) }

// Parse takes an id apart; that the session may be one is for the caller to check.
func Parse(id string) (session string, n int, ok bool) {
	session, digits, ok := strings.Cut(id, ".")
	if !ok || len(digits) > 4 {
		return "", 0, false
	}
	n, err := strconv.Atoi(digits)
	return session, n, err == nil && n >= 0 && strconv.Itoa(n) == digits
}
