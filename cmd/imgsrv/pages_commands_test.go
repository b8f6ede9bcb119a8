package main

import (
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
)

var (
	fenced     = regexp.MustCompile("(?ms)^```(console|sh|yaml)\n(.*?)^```")
	assignment = regexp.MustCompile(`^[A-Z_]+=`)
)

// Every call of imgsrv in an example of README.md and docs/ is one that the command line takes: the command is there, and so are
// its flags. Nothing is run.
func TestTheCommandLineTakesTheExamplesOfThePages(t *testing.T) {
	t.Parallel()
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	calls, left := 0, -1
	parser, err := newParser(t.Context(), &grammar{}, Terminal{Out: io.Discard, Err: io.Discard}, func(code int) { left = code })
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range append(pages, "../../README.md") {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, block := range fenced.FindAllStringSubmatch(string(text), -1) {
			for _, args := range callsIn(block[2], block[1] == "console") {
				calls++
				left = -1
				forget(parser)
				_, err := parser.Parse(args)
				ended := left == exitOK // by --help
				if err != nil && !ended && !strings.Contains(err.Error(), "no such file or directory") {
					t.Errorf("%s: imgsrv %s: %v", filepath.Base(page), strings.Join(args, " "), err)
				}
			}
		}
	}
	if calls < 50 {
		t.Errorf("only %d calls were found: does this test still understand the pages?", calls)
	}
}

// forget makes a parser as if it had parsed nothing yet, which costs far less than another one. Values go back to their defaults by themselves.
func forget(parser *kong.Kong) {
	_ = kong.Visit(parser.Model, func(v kong.Visitable, next kong.Next) error {
		switch v := v.(type) {
		case *kong.Flag:
			v.Set = false
		case *kong.Value:
			v.Set = false
		}
		return next(nil)
	})
}

// callsIn are the arguments of the calls of imgsrv in a block of shell commands, or in those of a session, after their $, or # for root; also of those in a container. What a
// shell would put in place of $NAME and $(…) stays as it is written.
func callsIn(block string, session bool) (calls [][]string) {
	for line := range strings.Lines(strings.ReplaceAll(block, "\\\n", " ")) {
		line, typed := strings.CutPrefix(strings.TrimSpace(line), "$ ")
		if session && !typed {
			line, typed = strings.CutPrefix(line, "# ")
		}
		if session && !typed {
			continue
		}
		words := shellWords(line)
		for i, word := range words {
			first := i == 0 || words[i-1] == "|" || words[i-1] == "&&" || assignment.MatchString(words[i-1]) ||
				words[i-1] == "--" || i > 1 && words[i-2] == "exec" // kubectl exec POD -- imgsrv, docker exec CONTAINER imgsrv
			if !first || word != "imgsrv" && word != "./imgsrv" {
				continue
			}
			end := i + 1
			for end < len(words) && !strings.ContainsAny(words[end][:min(1, len(words[end]))], "|&>;#") {
				end++
			}
			calls = append(calls, words[i+1:end])
		}
	}
	return calls
}

// shellWords splits a line at spaces that are not quoted or inside of $(…).
func shellWords(line string) (words []string) {
	var word strings.Builder
	begun, quote, depth := false, rune(0), 0
	for _, r := range line {
		switch {
		case quote == 0 && depth == 0 && (r == ' ' || r == '\n'):
			if begun {
				words = append(words, word.String())
			}
			word.Reset()
			begun = false
			continue
		case quote == 0 && depth == 0 && (r == '\'' || r == '"'):
			quote, begun = r, true
			continue
		case r == quote:
			quote = 0
			continue
		case quote == 0 && r == '(':
			depth++
		case quote == 0 && r == ')':
			depth--
		}
		begun = true
		word.WriteRune(r)
	}
	if begun {
		words = append(words, word.String())
	}
	return words
}
