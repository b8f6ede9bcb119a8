package problem

import (
	"maps"
	"slices"

	"github.com/imgsrv/imgsrv/events"
)

// Codes lists every code that has a status, sorted. The documentation describes each.
func Codes() []events.Code { return slices.Sorted(maps.Keys(table)) }
