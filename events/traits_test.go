package events

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

func sessionWithTraits(t Traits) Upload {
	return Upload{Image: "a", Version: "1", Visibility: Public, Traits: t, InitiatedAt: time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC),
		Variants: []UploadVariant{{Variant: Variant{Architecture: "amd64", Type: VirtualMachine, Flavour: "default"}, Files: []UploadFile{{Format: "disk.qcow2", Size: 1}}}}}
}

func TestTraitsHaveRules(t *testing.T) {
	t.Parallel()
	no := false
	fine := Traits{ReleaseTitle: "12 (bookworm)", Codename: "bookworm", SupportEOL: "2026-11-25", Supported: &no, Labels: map[string]string{"example.org/build": "47 11"},
		Requirements: map[string]string{"secureboot": "false", "cgroup": "v1", "later.thing": "x"}}
	if err := CheckUpload(sessionWithTraits(fine)); err != nil {
		t.Error(err)
	}
	many := map[string]string{}
	for i := range MaxLabels + 1 {
		many[fmt.Sprint(i)] = "x"
	}
	for field, broken := range map[string]Traits{
		"release_title":           {ReleaseTitle: strings.Repeat("x", 256)},
		"codename":                {Codename: "a\x00"},
		"support_eol":             {SupportEOL: "2028"},
		"labels":                  {Labels: many},
		"labels.a b":              {Labels: map[string]string{"a b": "x"}},
		"labels.a":                {Labels: map[string]string{"a": strings.Repeat("x", 256)}},
		"requirements":            {Requirements: many},
		"requirements.Secureboot": {Requirements: map[string]string{"Secureboot": "false"}},
		"requirements.secureboot": {Requirements: map[string]string{"secureboot": "no"}},
		"requirements.cgroup":     {Requirements: map[string]string{"cgroup": ""}},
	} {
		var refusal *Error
		if err := CheckUpload(sessionWithTraits(broken)); !errors.As(err, &refusal) || len(refusal.Fields) != 1 || refusal.Fields[0].Field != field {
			t.Errorf("%s: error %v", field, err)
		}
	}
	if err := CheckUpload(sessionWithTraits(Traits{SupportEOL: "2026-11-24"})); err == nil {
		t.Error("support that has ended is accepted")
	}
}

func TestAUnifiedImageIsItsOwnFingerprint(t *testing.T) {
	t.Parallel()
	digest := func(b string) Digest { return Digest("sha256:" + strings.Repeat(b, 64)) }
	for name, c := range map[string]struct {
		files                       []JobFile
		fingerprint, metadata, root string
	}{
		"alone":                     {[]JobFile{{Format: "incus_combined.tar.xz", Digest: digest("a")}}, digest("a").Hex(), "incus_combined.tar.xz", ""},
		"beside a pair":             {[]JobFile{{Format: "incus_combined.tar.gz", Digest: digest("a")}, {Format: "incus.tar.gz"}, {Format: "disk.qcow2", Combined: digest("c")}}, digest("c").Hex(), "incus.tar.gz", "disk.qcow2"},
		"beside metadata":           {[]JobFile{{Format: "lxd_combined.tar.gz", Digest: digest("a")}, {Format: "lxd.tar.xz"}}, digest("a").Hex(), "lxd_combined.tar.gz", ""},
		"metadata without any root": {[]JobFile{{Format: "incus.tar.xz"}}, "", "", ""},
	} {
		u := sessionWithTraits(Traits{Codename: "x"})
		for i := range c.files {
			c.files[i].Variant = u.Variants[0].Name()
		}
		m := newManifest(Job{Files: c.files}, u, Public, time.Time{})
		v := m.Variants[0]
		if v.Fingerprint != c.fingerprint || v.Metadata != c.metadata || v.Root != c.root || m.Codename != "x" {
			t.Errorf("%s: %+v", name, v)
		}
	}
}
