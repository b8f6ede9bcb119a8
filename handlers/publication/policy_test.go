package publication

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/imgsrv/imgsrv/events/jetstream"
)

func TestTheDocumentedPolicyIsTheOne(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/jobs.md")
	if err != nil {
		t.Fatal(err)
	}
	for k, p := range policies() {
		var row []string
		for line := range strings.Lines(string(page)) {
			if cells := strings.Split(line, "|"); len(cells) == 7 && strings.TrimSpace(cells[1]) == "`"+string(k)+"`" {
				row = cells
			}
		}
		if row == nil {
			t.Errorf("docs/jobs.md has no row for %s", k)
			continue
		}
		for i, want := range map[int]bool{3: p.counts, 4: p.again || !p.counts, 5: !p.final} {
			if said := strings.TrimSpace(row[i]); strings.HasPrefix(said, "no") != !want && said != "not needed" {
				t.Errorf("%s: column %d says %q, and the policy is %+v", k, i, said, p)
			}
		}
	}
}

func TestErrorsAreOfAKind(t *testing.T) {
	t.Parallel()
	over, stop := context.WithCancel(t.Context())
	stop()
	for _, test := range []struct {
		ctx  context.Context
		err  error
		want kind
	}{
		{t.Context(), errors.New("read: input/output error"), transient},
		{t.Context(), fmt.Errorf("%w, 2h", errTimeout), transient},
		{t.Context(), fmt.Errorf("inspect: %w", refuse("corrupt", "no")), permanent},
		{t.Context(), &poisonError{codePanicked, errors.New("x")}, poison},
		{t.Context(), fmt.Errorf("read: %w", jetstream.ErrUnavailable), waiting},
		{t.Context(), &jetstream.RetryAfter{}, waiting},
		{over, errors.New("cut short"), waiting},
		{over, refuse("corrupt", "found before the end"), permanent},
	} {
		if got := kindOf(test.ctx, test.err); got != test.want {
			t.Errorf("%v is %s, want %s", test.err, got, test.want)
		}
	}
}
