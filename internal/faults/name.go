package faults

import (
	"regexp"
	"strings"
)

var (
	ids     = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`)
	digests = regexp.MustCompile(`[0-9a-f]{64}`)
	shards  = regexp.MustCompile(`(sha256/)[0-9a-f]{2}(/|$)`)
	random  = regexp.MustCompile(`(\.[a-z]+-(?:probe-)?)[0-9]+`)
)

// Name is a place's name: the same in every run.
func Name(what, about string) string {
	if _, below, found := cutLast(about, "/storage/"); found {
		about = below
	} else if strings.Contains(about, "/") {
		about = about[strings.LastIndexByte(strings.TrimRight(about, "/"), '/')+1:]
	}
	about = ids.ReplaceAllString(about, "ID")
	about = digests.ReplaceAllString(about, "DIGEST")
	about = shards.ReplaceAllString(about, "${1}XX${2}")
	about = random.ReplaceAllString(about, "${1}N")
	return strings.TrimSpace(what + " " + about)
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}
