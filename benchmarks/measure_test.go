package main

import (
	"context"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestMedian(t *testing.T) {
	t.Parallel()
	for want, values := range map[float64][]float64{3: {5, 3, 1}, 2.5: {4, 1, 2, 3}, 7: {7}} {
		before := append([]float64(nil), values...)
		if got := median(values); got != want {
			t.Errorf("median of %v: %v, want %v", values, got, want)
		}
		if diff := cmp.Diff(before, values); diff != "" {
			t.Error("the values were moved", diff)
		}
	}
	if !math.IsNaN(median(nil)) {
		t.Error("nothing has a median")
	}
}

func TestPercentileIsOneOfTheValues(t *testing.T) {
	t.Parallel()
	var values []time.Duration
	for i := 100; i > 0; i-- {
		values = append(values, time.Duration(i))
	}
	for p, want := range map[float64]time.Duration{0: 1, 1: 1, 50: 50, 99: 99, 99.5: 100, 100: 100} {
		if got := percentile(values, p); got != want {
			t.Errorf("percentile %v: %d, want %d", p, got, want)
		}
	}
	if percentile(nil, 50) != 0 || percentile(values[:1], 99) != 100 {
		t.Error("few values")
	}
}

func TestExponent(t *testing.T) {
	t.Parallel()
	n := []float64{1e3, 1e4, 1e5}
	for name, c := range map[string]struct {
		of        func(float64) float64
		low, high float64
	}{
		"constant":    {func(float64) float64 { return 5 }, -0.001, 0.001},
		"logarithm":   {math.Log, 0.05, 0.2},
		"linear":      {func(n float64) float64 { return 3 * n }, 0.999, 1.001},
		"n log n":     {func(n float64) float64 { return n * math.Log(n) }, 1.05, 1.15},
		"square root": {math.Sqrt, 0.499, 0.501},
	} {
		var y []float64
		for _, x := range n {
			y = append(y, c.of(x))
		}
		if got := exponent(n, y); got < c.low || got > c.high {
			t.Errorf("%s: %v, want %v to %v", name, got, c.low, c.high)
		}
	}
}

func TestRoundsTakeTurnsAndTheFirstDoesNotCount(t *testing.T) {
	t.Parallel()
	b := &bench{rounds: 3}
	var order []string
	side := func(name string) func(context.Context) (float64, error) {
		return func(context.Context) (float64, error) {
			order = append(order, name)
			return float64(len(order)), nil
		}
	}
	s, err := b.pair(t.Context(), side("A"), side("B"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("B A A B B A A B", strings.Join(order, " ")); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]float64{3.0 / 4, 6.0 / 5, 7.0 / 8}, s.ratios()); diff != "" {
		t.Error(diff)
	}
}

// The ratio is that of the rounds, not of the medians.
func TestARowIsJudgedByTheMedianOfItsRounds(t *testing.T) {
	t.Parallel()
	r := beside("row", "what", "peer", "GB/s", samples{ours: []float64{1, 2, 9}, theirs: []float64{2, 2, 3}}).atLeast(1)
	r.judge()
	if r.Value != 1 || !r.Pass || r.Ours != 2 || r.Theirs != 2 {
		t.Errorf("%+v", r)
	}
	slow := r.atMost(0.9)
	slow.judge()
	late := r
	late.P99, late.MostP99 = 6, 5
	late.judge()
	if slow.Pass || late.Pass {
		t.Errorf("%+v, %+v", slow, late)
	}
}

func TestTheTableAndTheFileSayTheSame(t *testing.T) {
	t.Parallel()
	ratio := beside("download", "a download", "nginx", "GB/s", samples{ours: []float64{0.9}, theirs: []float64{1}}).atLeast(0.95)
	ratio.judge()
	figure := alone("idle", "memory", "MiB", 70).atMost(80)
	figure.judge()
	path := t.TempDir() + "/new/results.json"
	if err := writeResults(path, document{Results: []result{ratio, figure}}); err != nil {
		t.Fatal(err)
	}
	results, err := readResults(path)
	if err != nil {
		t.Fatal(err)
	}
	var table, lines strings.Builder
	writeTable(&table, results)
	writeGoBench(&lines, results)
	for _, want := range []string{"download", "0.9 ", ">= 0.95", "FAIL", "nginx", "<= 80 MiB", "pass"} {
		if !strings.Contains(table.String(), want) {
			t.Errorf("no %q in\n%s", want, table.String())
		}
	}
	want := "Unit gain better=higher\nUnit cost better=lower\nBenchmark/row=download 1 0.9 gain\nBenchmark/row=idle 1 70 cost\n"
	if diff := cmp.Diff(want, lines.String()); diff != "" {
		t.Error(diff)
	}
}

// The made events are facts that imgsrv reads, each of them on its entity's subject, and none has a name of the templates in it.
func TestMadeEventsAreFacts(t *testing.T) {
	t.Parallel()
	for _, template := range templates() {
		if len(template.events) < 10 {
			t.Errorf("%d events", len(template.events))
		}
		if err := template.check(); err != nil {
			t.Error(err)
		}
	}
}

func TestThePlotIsDrawn(t *testing.T) {
	t.Parallel()
	svg := string(plot([]float64{10, 100}, []*growing{{name: "gc", times: []float64{1, 10}}}))
	if !strings.Contains(svg, "gc, n^1.00") || !strings.HasSuffix(svg, "</svg>\n") || strings.Contains(svg, "NaN") {
		t.Error(svg)
	}
}

func TestGroupsAreChosenByName(t *testing.T) {
	t.Parallel()
	chosen, err := choose(groups(), "lag,append")
	if err != nil || len(chosen) != 2 || chosen[0].name != "lag" {
		t.Errorf("%d, %v", len(chosen), err)
	}
	if _, err := choose(groups(), "lags"); err == nil {
		t.Error("there is no such group")
	}
}
