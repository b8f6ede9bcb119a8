package events

import (
	"fmt"
	"unicode"
	"unicode/utf8"
)

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
	if len(c.fields) == 0 {
		return nil
	}
	text := c.count()
	if len(c.fields) == 1 {
		text = c.fields[0].Field + ": " + c.fields[0].Text
	}
	return &Error{Code: CodeInvalid, Text: text, Fields: c.fields}
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

// MaxFieldErrors bounds the rules that a refusal names one by one: a body of a million small mistakes must not make an
// answer of a hundred million bytes.
const MaxFieldErrors = 50

type checker struct {
	fields []FieldError
	broken int // also those that fields has no room for
}

func (c *checker) count() string { return fmt.Sprintf("the request breaks %d rules", c.broken) }

func (c *checker) fail(field, value, rule string) {
	if c.broken++; c.broken > MaxFieldErrors {
		return
	}
	if len(value) > 200 {
		value = value[:200]
	}
	c.fields = append(c.fields, FieldError{Field: field, Text: rule, Value: value})
}

func (c *checker) name(field, value string, check func(string) error) {
	if err := check(value); err != nil {
		c.fail(field, value, err.Error())
	}
}

func (c *checker) text(field, value string, maxBytes int) {
	switch {
	case len(value) > maxBytes:
		c.fail(field, value, fmt.Sprintf("at most %d bytes", maxBytes))
	case !utf8.ValidString(value):
		c.fail(field, "", "text is UTF-8")
	default:
		for _, r := range value {
			// A newline in a description is fine; other control characters end up in terminals.
			if unicode.IsControl(r) && r != '\n' && r != '\t' {
				c.fail(field, "", "text has no control characters")
				return
			}
		}
	}
}
