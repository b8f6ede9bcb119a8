package events

import (
	"fmt"
	"net/url"
	"unicode"
	"unicode/utf8"
)

// MaxFieldErrors bounds the rules that a refusal names one by one: a body of a million small mistakes must not make an
// answer of a hundred million bytes.
const MaxFieldErrors = 50

// checker collects the rules of form that a command breaks.
type checker struct {
	fields []FieldError
	broken int // also those that fields has no room for
}

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

// refusal is the one error of all broken rules; nil where none is.
func (c *checker) refusal() error {
	switch len(c.fields) {
	case 0:
		return nil
	case 1:
		return brokenRule(c.fields[0].Field, c.fields[0].Text, c.fields[0].Value)
	}
	return &Error{Code: CodeInvalid, Text: fmt.Sprintf("the request breaks %d rules", c.broken), Fields: c.fields}
}

// url checks the form of an address that imgsrv connects to; the parts, where it has that form. rule is the form, for people.
func (c *checker) url(field, raw string, maxBytes int, rule string) (u *url.URL, ok bool) {
	u, err := url.Parse(raw)
	switch {
	case len(raw) > maxBytes:
		c.fail(field, "", fmt.Sprintf("at most %d bytes", maxBytes))
	case err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Hostname() == "" || u.Opaque != "":
		c.fail(field, "", rule)
	default:
		return u, true
	}
	return nil, false
}
