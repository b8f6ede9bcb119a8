package provenance

import (
	"fmt"
	"strings"
	"time"
)

// Statement is what a signature says beside the checksums, in its trusted comment: of which version they are.
type Statement struct {
	Image   string
	Version string
	// Alias is the name that was asked for, where that was an alias of the version at the time; else "".
	Alias       string
	PublishedAt time.Time // to the second
}

// String is the trusted comment: image:NAME version:NAME [alias:NAME] published:TIME, with the time as in RFC 3339, UTC.
func (s Statement) String() string {
	fields := []string{"image:" + s.Image, "version:" + s.Version}
	if s.Alias != "" {
		fields = append(fields, "alias:"+s.Alias)
	}
	return strings.Join(append(fields, "published:"+s.PublishedAt.UTC().Format(time.RFC3339)), " ")
}

// ParseStatement reads a trusted comment. Fields that it doesn't know may be added some day and are passed over.
func ParseStatement(comment string) (Statement, error) {
	var s Statement
	seen := map[string]bool{}
	for _, field := range strings.Fields(comment) {
		key, value, _ := strings.Cut(field, ":")
		if seen[key] {
			return Statement{}, fmt.Errorf("the trusted comment has %q twice", key)
		}
		seen[key] = true
		switch key {
		case "image":
			s.Image = value
		case "version":
			s.Version = value
		case "alias":
			s.Alias = value
		case "published":
			at, err := time.Parse(time.RFC3339, value)
			if err != nil {
				return Statement{}, fmt.Errorf("the trusted comment's time of publication: %w", err)
			}
			s.PublishedAt = at
		}
	}
	if s.Image == "" || s.Version == "" || s.PublishedAt.IsZero() {
		return Statement{}, fmt.Errorf("the trusted comment %q doesn't name image, version and time of publication", comment)
	}
	return s, nil
}

// Answers says whether the statement is about the version that was asked for by its name or an alias. A version can't pass for
// an alias of another name: only who holds the key says what an alias is.
func (s Statement) Answers(image, versionOrAlias string) bool {
	return s.Image == image && (s.Version == versionOrAlias || s.Alias != "" && s.Alias == versionOrAlias)
}
