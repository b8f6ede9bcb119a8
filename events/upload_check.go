package events

import "fmt"

// Bounds of a session. A session's publication is one atomic batch of the stream, which takes at most
// 1,000 messages; the facts of a session carry all its files, and a message has at most 1 MiB.
const (
	MaxFiles       = 200
	MaxAliases     = 50
	MaxTextBytes   = 2048
	MaxFileBytes   = 1 << 56 // no disk holds more; keeps sums of sizes from overflowing
	maxKeyBytes    = 255
	maxLineageText = 255
)

// CheckUpload says which rules of form a new session breaks, all of them at once.
func CheckUpload(u Upload) error {
	var c checker
	c.name("image", u.Image, CheckImageName)
	c.name("version", u.Version, CheckVersionName)
	c.text("os", u.OS, maxLineageText)
	c.text("release", u.Release, maxLineageText)
	c.text("description", u.Description, MaxTextBytes)
	c.traits(&u)
	c.text("Idempotency-Key", u.IdempotencyKey, maxKeyBytes)
	if u.Visibility != Public && u.Visibility != Private {
		c.fail("visibility", string(u.Visibility), "visibility is public or private")
	}
	if len(u.Aliases) > MaxAliases {
		c.fail("aliases", "", fmt.Sprintf("a session names at most %d aliases", MaxAliases))
	}
	seen := map[string]bool{}
	for i, alias := range u.Aliases {
		field := fmt.Sprintf("aliases[%d]", i)
		c.name(field, alias, CheckAliasName)
		switch {
		case seen[alias]:
			c.fail(field, alias, "an alias is named once")
		case alias == u.Version:
			c.fail(field, alias, "an alias differs from the version's name")
		}
		seen[alias] = true
	}
	c.derive(u.Derive)
	c.variants(&u)
	return c.refusal()
}

func (c *checker) variants(u *Upload) {
	if len(u.Variants) == 0 {
		c.fail("variants", "", "a version has at least one variant")
	}
	files := 0
	variants := map[string]bool{}
	for i, v := range u.Variants {
		at := fmt.Sprintf("variants[%d]", i)
		c.name(at+".flavour", v.Flavour, CheckFlavour)
		if v.Architecture == "" {
			c.fail(at+".architecture", "", "an architecture is one of Incus's names, such as amd64 or arm64")
		}
		if v.Type != VirtualMachine && v.Type != Container {
			c.fail(at+".type", string(v.Type), "a type is virtual-machine or container")
		}
		if variants[v.Name()] {
			c.fail(at, v.Name(), "a variant (architecture, type, flavour) is named once")
		}
		variants[v.Name()] = true
		for _, alias := range u.Aliases {
			if alias == v.Flavour {
				c.fail(at+".flavour", v.Flavour, "a flavour and an alias of one image have different names")
			}
		}
		if len(v.Files) == 0 {
			c.fail(at+".files", "", "a variant has at least one file")
		}
		formats := map[string]bool{}
		for k, f := range v.Files {
			field := fmt.Sprintf("%s.files[%d]", at, k)
			c.name(field+".format", f.Format, CheckFormatName)
			if formats[f.Format] {
				c.fail(field+".format", f.Format, "a format is named once in a variant")
			}
			formats[f.Format] = true
			c.size(field+".size", f.Size)
			files++
		}
	}
	files += c.attachments(u)
	if files > MaxFiles {
		c.fail("variants", fmt.Sprint(files), fmt.Sprintf("a session declares at most %d files, attachments among them", MaxFiles))
	}
}
