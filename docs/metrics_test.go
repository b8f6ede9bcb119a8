package docs_test

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var (
	instrument = regexp.MustCompile(`(UpDownCounter|Counter|Gauge|Histogram|gauge)\((?:\d, )?"(imgsrv\.[a-z_.]+)"(.*)`)
	metricUnit = regexp.MustCompile(`^, "(By|s)"|metric\.WithUnit\("(By|s)"\)`)
	ofUnit     = map[string]string{"": "", "By": "_bytes", "s": "_seconds"}
)

// Each metric of the code has its line in docs/operations.md, under the name that Prometheus sees; there is no line for one that is gone.
func TestTheTableOfMetricsIsThatOfTheCode(t *testing.T) {
	t.Parallel()
	var want, got []string
	for _, folder := range []string{"cmd", "events", "handlers", "internal", "projections", "store"} {
		for _, file := range goFiles(t, folder) {
			for _, made := range instrument.FindAllStringSubmatch(page(t, "../"+file.path), -1) {
				unit := append(metricUnit.FindStringSubmatch(made[3]), "", "", "")
				suffix := ofUnit[unit[1]+unit[2]]
				name := strings.TrimSuffix(strings.ReplaceAll(made[2], ".", "_"), suffix) + suffix
				if made[1] == "Counter" {
					name += "_total"
				}
				want = append(want, name)
			}
		}
	}
	_, table, _ := strings.Cut(page(t, "operations.md"), "\n## Metrics\n")
	table, _, _ = strings.Cut(table, "\n## ")
	for line := range strings.Lines(table) {
		if cells := strings.Split(line, "|"); len(cells) > 1 {
			for _, name := range quoted.FindAllStringSubmatch(cells[1], -1) {
				if strings.HasPrefix(name[1], "imgsrv_") {
					got = append(got, name[1])
				}
			}
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("docs/operations.md (+) against the code (-):\n%s", diff)
	}
}
