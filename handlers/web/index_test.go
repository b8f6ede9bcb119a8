package web_test

import (
	"strings"
	"testing"
	"time"

	"github.com/imgsrv/imgsrv/handlers/web"
)

func TestAPageIsPlainHTMLWhateverTheTextsAre(t *testing.T) {
	t.Parallel()
	pages, err := web.New()
	if err != nil {
		t.Fatal(err)
	}
	page, err := pages.Index(web.Index{Title: "/images/<b>/", Text: []string{`<script>alert("x")</script> & more`}, Next: "?after=a%26b",
		Entries: []web.Entry{
			{Name: "1.0+a~b/", Link: "./1.0+a~b/", Modified: time.Date(2026, 1, 31, 23, 59, 59, 0, time.FixedZone("", 3600)), Size: -1, Note: "latest"},
			{Name: `"><img src=x>`, Link: "javascript:alert(1)", Size: 3 << 20},
		}})
	if err != nil {
		t.Fatal(err)
	}
	text := string(page)
	for _, want := range []string{"<h1>Index of /images/&lt;b&gt;/</h1>", "&lt;script&gt;", `<a href="./1.0&#43;a~b/">1.0&#43;a~b/</a>`, "<td>2026-01-31 22:59</td>",
		"3.0 MiB", `<a href="../">`, `<a href="?after=a%26b" rel="next">`} {
		if !strings.Contains(text, want) {
			t.Errorf("the page lacks %s:\n%s", want, text)
		}
	}
	// What a policy of default-src 'none' would keep from working, and what a text could smuggle in.
	for _, never := range []string{"<script", "<style", "style=", "<img", "<link", "javascript:", "http:", "https:"} {
		if strings.Contains(text, never) {
			t.Errorf("the page has %s:\n%s", never, text)
		}
	}
	top, err := pages.Index(web.Index{Title: "/images/", Top: true})
	if err != nil || strings.Contains(string(top), "../") {
		t.Errorf("the top leads up: %v\n%s", err, top)
	}
}
