package events

import (
	"bytes"
	"encoding/json"
	"mime"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// isControl is what may stand in no line of a protocol.
func isControl(r rune) bool { return r < ' ' || r == 0x7f }

// FuzzNames: what a rule of names lets through is one clean segment of a path, a URL, a header and a subject.
func FuzzNames(f *testing.F) {
	for _, name := range []string{"debian-bookworm", "12.5.0", "latest", "disk.qcow2", "a..b", "..", "a.", ".hidden", "a/b", `a\b`, "a\x00b", "%2e%2e", "a\r\nb", `a"b`, "ä", ""} {
		f.Add(name)
	}
	checks := map[string]func(string) error{"image": CheckImageName, "version": CheckVersionName, "alias": CheckAliasName,
		"format": CheckFormatName, "flavour": CheckFlavour}
	f.Fuzz(func(t *testing.T, name string) {
		for kind, check := range checks {
			if check(name) != nil {
				continue
			}
			if len(name) == 0 || len(name) > 127 || path.Join("/x", name) != "/x/"+name || !filepath.IsLocal(name) || strings.Contains(name, "..") {
				t.Errorf("%s %q is no clean segment", kind, name)
			}
			if strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune(`/\"%?#<>&'`+"`", r) }) {
				t.Errorf("%s %q has a character with a meaning elsewhere", kind, name)
			}
			if _, params, err := mime.ParseMediaType(`attachment; filename="` + name + `"`); err != nil || params["filename"] != name {
				t.Errorf("%s %q in Content-Disposition is %q, %v", kind, name, params, err)
			}
			if CheckImagePattern(name) == nil && !MatchStars(name, name) {
				t.Errorf("%q doesn't match itself", name)
			}
		}
	})
}

// starsByHand is MatchStars the slow way, for texts that are compared byte by byte.
func starsByHand(pattern, s string) bool {
	matched := make([]bool, len(s)+1) // matched[i]: what was read of the pattern matches s[:i]
	matched[0] = true
	for k := range len(pattern) {
		next := make([]bool, len(s)+1)
		for i := range next {
			if pattern[k] == '*' {
				next[i] = matched[i] || i > 0 && next[i-1]
			} else {
				next[i] = i > 0 && matched[i-1] && s[i-1] == pattern[k]
			}
		}
		matched = next
	}
	return matched[len(s)]
}

func FuzzMatchStars(f *testing.F) {
	for _, pair := range [][2]string{{"team-a-*", "team-a-debian"}, {"*", ""}, {"a*a", "a"}, {"a*b*c", "abbc"}, {"*ab*ab", "abab"}, {"**", "x"}, {"", ""}} {
		f.Add(pair[0], pair[1])
	}
	f.Fuzz(func(t *testing.T, pattern, s string) {
		if len(pattern)*len(s) > 1<<16 {
			t.Skip()
		}
		if got, want := MatchStars(pattern, s), starsByHand(pattern, s); got != want {
			t.Errorf("MatchStars(%q, %q) = %v", pattern, s, got)
		}
		// A pattern that was let through covers no name that isn't a name.
		if CheckImagePattern(pattern) == nil && (Grant{Role: RolePublisher, Images: pattern}).Covers(RoleAdmin, s) {
			t.Errorf("a publisher of %q is an admin", pattern)
		}
	})
}

// FuzzSubject: whatever an id is, its subject has as many tokens as the id has parts, none of them means anything to NATS, and
// no two ids share one.
func FuzzSubject(f *testing.F) {
	for _, id := range []string{"debian/12.5.0", "a b", "*", ">", "a\r\nPUB x 1\r\n", "\t", "%2E", "sha256:00", "", "/", "\x00", "ä"} {
		f.Add(id)
	}
	f.Fuzz(func(t *testing.T, id string) {
		entity := Entity{Kind: KindVersion, ID: id}
		rest, ok := strings.CutPrefix(entity.Subject(), SubjectPrefix+KindVersion+".")
		if !ok {
			t.Fatalf("subject %q", entity.Subject())
		}
		tokens, parts := strings.Split(rest, "."), strings.Split(id, "/")
		if len(tokens) != len(parts) {
			t.Fatalf("id %q has subject %q", id, entity.Subject())
		}
		for i, token := range tokens {
			if token == "" || strings.ContainsAny(token, "*> ") || strings.ContainsFunc(token, isControl) {
				t.Errorf("id %q has the token %q", id, token)
			}
			if back, err := url.PathUnescape(token); parts[i] != "" && (err != nil || back != parts[i]) {
				t.Errorf("part %q is the token %q, which is %q, %v", parts[i], token, back, err)
			}
		}
	})
}

// FuzzDecode: what can be read is written as something that is read as the same; old types become new ones once and for all.
func FuzzDecode(f *testing.F) {
	types := Types()
	for i, typ := range types {
		data, err := os.ReadFile(golden(typ))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(i), data)
	}
	f.Add(uint8(255), []byte(`{}`))
	f.Add(uint8(0), []byte(`{"image":"a","image":"b","IMAGE":"c"}`))
	f.Fuzz(func(t *testing.T, which uint8, data []byte) {
		typ := types[int(which)%len(types)]
		fact, err := Decode(typ, data)
		if err != nil {
			return
		}
		once, err := json.Marshal(fact)
		if err != nil {
			t.Fatalf("%s can be read and not written: %v", typ, err)
		}
		again, err := Decode(fact.Type(), once)
		if err != nil {
			t.Fatalf("%s can't be read again: %v", fact.Type(), err)
		}
		twice, err := json.Marshal(again)
		if err != nil || !bytes.Equal(once, twice) {
			t.Fatalf("%s changes when it is read again, %v:\n%s\n%s", typ, err, once, twice)
		}
		// A list that is there and empty is written as none.
		if diff := cmp.Diff(fact, again, cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("%s changes by encoding:\n%s", fact.Type(), diff)
		}
		if again.Entity() != fact.Entity() || ImageOf(again) != ImageOf(fact) || KindOf(fact.Type()) != fact.Entity().Kind {
			t.Fatalf("%s is about %+v, then about %+v", typ, fact.Entity(), again.Entity())
		}
		if subject := fact.Entity().Subject(); strings.Contains(subject, "..") || strings.HasSuffix(subject, ".") || strings.ContainsFunc(subject, isControl) {
			t.Fatalf("%s stands under %q", typ, subject)
		}
	})
}
