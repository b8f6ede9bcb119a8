// Package web makes the HTML pages of the plain directory view: lists of names with links, sizes and times, as web servers make them of
// folders. It gets values and gives bytes; what is listed, who may see it and how it is sent, it doesn't know.
package web

import (
	"bytes"
	_ "embed" // the template
	"fmt"
	"html/template"
	"time"

	"github.com/dustin/go-humanize"
)

// MediaType is that of the pages.
const MediaType = "text/html; charset=utf-8"

// Index is the page of a folder. All links are relative, so that a page is the same behind a proxy with a path of its own, and where a
// program fetches everything below it.
type Index struct {
	Title   string   // the path, such as /images/debian-bookworm/
	Text    []string // lines above the list
	Top     bool     // there is nothing above
	Entries []Entry
	// Next is where the list goes on, "" at its end.
	Next string
}

// Entry is a line of the list.
type Entry struct {
	Name     string
	Link     string    // relative, each part escaped; folders end in a slash
	Modified time.Time // zero: not known
	Size     int64     // bytes; -1: a folder
	Note     string
}

// Time is the time in UTC, to the minute.
func (e Entry) Time() string {
	if e.Modified.IsZero() {
		return ""
	}
	return e.Modified.UTC().Format("2006-01-02 15:04")
}

// HumanSize is the size for people.
func (e Entry) HumanSize() string {
	if e.Size < 0 {
		return "-"
	}
	return humanize.IBytes(uint64(e.Size))
}

//go:embed index.html
var indexHTML string

// Pages makes pages. It is safe for concurrent use.
type Pages struct{ index *template.Template }

// New parses the templates.
func New() (*Pages, error) {
	index, err := template.New("index").Parse(indexHTML)
	if err != nil {
		return nil, fmt.Errorf("parse the page of a folder: %w", err)
	}
	return &Pages{index}, nil
}

// Index makes the page of a folder: plain HTML without script, style or anything else to load. Equal indexes give equal bytes.
func (p *Pages) Index(i Index) ([]byte, error) {
	var page bytes.Buffer
	if err := p.index.Execute(&page, i); err != nil {
		return nil, fmt.Errorf("make the page of %s: %w", i.Title, err)
	}
	return page.Bytes(), nil
}
