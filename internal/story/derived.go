package story

import (
	"fmt"

	"github.com/imgsrv/imgsrv/events"
)

func tellDerived(fact events.DerivedFact) string {
	d := fact.After()
	file := d.Format + " of " + d.Variant
	why := ""
	if d.Problem != nil {
		why = ": " + d.Problem.Detail
	}
	switch fact.(type) {
	case events.DerivedRequested:
		return file + " is to be made"
	case events.DerivedMade:
		text := fmt.Sprintf("made %s: %s, %s", file, size(d.Size), d.Digest)
		if d.BaseVersion != "" {
			text += ", to apply to " + d.BaseVersion
		}
		return text
	case events.DerivedFailed:
		if d.RetryAt.IsZero() {
			return file + " couldn't be made" + why
		}
		return file + " couldn't be made yet" + why
	case events.DerivedSkipped:
		return "did without " + file + why
	case events.DerivedRemoved:
		return "removed " + file
	}
	return ""
}
