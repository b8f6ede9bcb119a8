package eventcontract

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// Breaks lists in what a schema refuses, or no longer describes, payloads that an earlier one allowed: each
// as one line that begins with the place. Both are schemas as this package makes them; a keyword it gives no
// rule for may not change at all. None means that every old event still satisfies the new schema.
func Breaks(earlier, later []byte) ([]string, error) {
	var before, after map[string]any
	if err := json.Unmarshal(earlier, &before); err != nil {
		return nil, fmt.Errorf("read the earlier schema: %w", err)
	}
	if err := json.Unmarshal(later, &after); err != nil {
		return nil, fmt.Errorf("read the later schema: %w", err)
	}
	return breaks("payload", before, after), nil
}

// annotations say nothing about which payloads are valid.
var annotations = []string{"$schema", "$id", "title", "description", "deprecated"}

func breaks(place string, before, after map[string]any) []string {
	var out []string
	say := func(format string, args ...any) { out = append(out, place+": "+fmt.Sprintf(format, args...)) }
	keywords := maps.Clone(before)
	maps.Copy(keywords, after)
	for _, keyword := range slices.Sorted(maps.Keys(keywords)) {
		old, now := before[keyword], after[keyword]
		switch {
		case slices.Contains(annotations, keyword):
		case keyword == "properties":
			out = append(out, breaksOfProperties(place, asObject(old), asObject(now))...)
		case keyword == "items" && old != nil && now != nil:
			out = append(out, breaks(place+"[]", asObject(old), asObject(now))...)
		case keyword == "additionalProperties" && old != nil && now != nil:
			out = append(out, breaks(place+".*", asObject(old), asObject(now))...)
		case keyword == "required":
			if added := without(asStrings(now), asStrings(old)); len(added) > 0 {
				say("%s became required, which old events lack", strings.Join(added, ", "))
			}
		case keyword == "type":
			if lost := without(asStrings(old), asStrings(now)); len(lost) > 0 && now != nil || old == nil {
				say("type was %v and is now %v: narrower, or another", shown(old), shown(now))
			}
		case keyword == "enum":
			if lost := without(asStrings(old), asStrings(now)); now != nil && (old == nil || len(lost) > 0) {
				say("enum was %v and is now %v: narrower", shown(old), shown(now))
			}
		case now == nil: // a rule less
		case !reflect.DeepEqual(old, now):
			say("%s was %v and is now %v", keyword, shown(old), shown(now))
		}
	}
	return out
}

func breaksOfProperties(place string, before, after map[string]any) []string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(before)) {
		if now, ok := after[name]; ok {
			out = append(out, breaks(place+"."+name, asObject(before[name]), asObject(now))...)
		} else {
			out = append(out, fmt.Sprintf("%s: property %s was removed or renamed", place, name))
		}
	}
	return out
}

func asObject(v any) map[string]any {
	object, _ := v.(map[string]any)
	return object
}

// asStrings reads a keyword that is a string or an array of strings.
func asStrings(v any) []string {
	switch v := v.(type) {
	case string:
		return []string{v}
	case []any:
		var out []string
		for _, element := range v {
			out = append(out, fmt.Sprint(element))
		}
		return out
	}
	return nil
}

func without(list, other []string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(s string) bool { return slices.Contains(other, s) })
}

func shown(v any) string {
	if v == nil {
		return "open"
	}
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprint(v)
	}
	return string(data)
}
