package catalog

import (
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// A cursor of a list that is ordered by time is opaque: the place of the page's last row, which is a moment
// (microseconds since 1970, which is all that PostgreSQL keeps) and a tie-breaker, in base64url.
type cursor struct {
	at  time.Time
	tie string
}

func (c cursor) String() string {
	return base64.RawURLEncoding.EncodeToString([]byte(strconv.FormatInt(c.at.UnixMicro(), 10) + " " + c.tie))
}

func parseCursor(s string) (cursor, error) {
	text, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil {
		return cursor{}, fmt.Errorf("%w: %w", ErrBadCursor, err)
	}
	moment, tie, ok := strings.Cut(string(text), " ")
	micros, err := strconv.ParseInt(moment, 10, 64)
	at := time.UnixMicro(micros).UTC()
	// PostgreSQL's times end before those of int64 do, and its texts hold less than Go's strings. A time in an
	// event has four digits for the year (RFC 3339), a tie-breaker is an id or a number.
	if !ok || err != nil || at.Year() < 1 || at.Year() > 9999 || strings.ContainsFunc(tie, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return cursor{}, ErrBadCursor
	}
	return cursor{at: at, tie: tie}, nil
}
