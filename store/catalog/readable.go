package catalog

import (
	"fmt"
	"strings"
)

// Readable says which private images somebody may read. The zero value is none of them.
type Readable struct {
	some         bool
	outer, inner []string // patterns of LIKE, of which a name has to match one of each; nil is any name
}

// Everything is for somebody who may read every private image.
var Everything = ReadableBy(nil)

// visible is the condition on an image i, with what Readable.args gives as the parameters $2 and $3.
var visible = `(i.visibility = 'public' OR ` + matches("i.name", 2) + `)`

// matches is the condition that a name is in a Readable, whose args are the parameters from first on.
func matches(name string, first int) string {
	return fmt.Sprintf(`(($%[2]d::text[] IS NULL OR %[1]s LIKE ANY ($%[2]d)) AND ($%[3]d::text[] IS NULL OR %[1]s LIKE ANY ($%[3]d)))`, name, first, first+1)
}

// ReadableBy is of images whose name matches a pattern, in which '*' stands for any characters, of each list.
// There are at most two lists.
func ReadableBy(lists [][]string) Readable {
	var both [2][]string
	for i, list := range lists {
		both[i] = []string{}
		for _, pattern := range list {
			both[i] = append(both[i], likePattern.Replace(pattern))
		}
	}
	return Readable{some: true, outer: both[0], inner: both[1]}
}

func (r Readable) args() (outer, inner []string) {
	if !r.some {
		return []string{}, nil
	}
	return r.outer, r.inner
}

var likePattern = strings.NewReplacer(`\`, `\\`, "%", `\%`, "_", `\_`, "*", "%")
