package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
)

// result is a row. Value is what the reach is about: the ratio where there is a peer, else the figure itself.
type result struct {
	Name   string  `json:"name"`
	What   string  `json:"what"`
	Peer   string  `json:"peer,omitempty"`
	Unit   string  `json:"unit"`
	Ours   float64 `json:"ours"`             // median of the rounds
	Theirs float64 `json:"theirs,omitempty"` // as Ours, where there is a peer
	// Values are the ratios of the rounds, or, without a peer, their figures; Value is their median.
	Values  []float64 `json:"values"`
	Value   float64   `json:"value"`
	AtLeast bool      `json:"at_least"` // the reach is a least value; else a largest one
	Reach   float64   `json:"reach"`
	P50     float64   `json:"p50_ms,omitempty"`
	P99     float64   `json:"p99_ms,omitempty"`
	PeerP50 float64   `json:"peer_p50_ms,omitempty"`
	PeerP99 float64   `json:"peer_p99_ms,omitempty"`
	// MostP99 is how large P99 may be, milliseconds; 0: as large as it likes.
	MostP99 float64 `json:"most_p99_ms,omitempty"`
	Note    string  `json:"note,omitempty"`
	Pass    bool    `json:"pass"`
}

// beside is a row of two sides.
func beside(name, what, peer, unit string, s samples) result {
	return result{Name: name, What: what, Peer: peer, Unit: unit, Ours: median(s.ours), Theirs: median(s.theirs), Values: s.ratios()}
}

// alone is a row without a peer.
func alone(name, what, unit string, values ...float64) result {
	return result{Name: name, What: what, Unit: unit, Ours: median(values), Values: values}
}

func (r result) atLeast(reach float64) result { r.AtLeast, r.Reach = true, reach; return r }
func (r result) atMost(reach float64) result  { r.AtLeast, r.Reach = false, reach; return r }

// judge fills Value and Pass in.
func (r *result) judge() {
	r.Value = median(r.Values)
	r.Pass = r.Value >= r.Reach
	if !r.AtLeast {
		r.Pass = r.Value <= r.Reach
	}
	if r.MostP99 > 0 && r.P99 > r.MostP99 {
		r.Pass = false
	}
}

func (r *result) reachText() string {
	sign, unit := "<=", ""
	if r.AtLeast {
		sign = ">="
	}
	if r.Peer == "" {
		unit = " " + r.Unit
	}
	text := fmt.Sprintf("%s %.4g%s", sign, r.Reach, unit)
	if r.MostP99 > 0 {
		text += fmt.Sprintf(", p99 <= %.3g ms", r.MostP99)
	}
	return text
}

func (r *result) verdict() string {
	if r.Pass {
		return "pass"
	}
	return "FAIL"
}

// cells are the columns of the table.
func (r *result) cells() []string {
	peer, theirs, latency := "-", "-", "-"
	if r.Peer != "" {
		peer, theirs = r.Peer, fmt.Sprintf("%.4g", r.Theirs)
	}
	if r.P50 > 0 {
		latency = fmt.Sprintf("%.3g/%.3g", r.P50, r.P99)
	}
	if r.PeerP50 > 0 {
		latency += fmt.Sprintf(" (%.3g/%.3g)", r.PeerP50, r.PeerP99)
	}
	return []string{r.Name, fmt.Sprintf("%.4g", r.Ours), theirs, r.Unit, latency, fmt.Sprintf("%.3g", r.Value), r.reachText(), r.verdict(), peer}
}

func (r *result) line() string { return strings.Join(r.cells(), "  ") }

func writeTable(w io.Writer, results []result) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	write := func(cells ...string) { fmt.Fprintln(t, strings.Join(cells, "\t")) } //nolint:errcheck // Flush would say
	write("row", "imgsrv", "peer", "unit", "p50/p99 ms (peer)", "ratio", "reach", "", "beside")
	for _, r := range results {
		write(r.cells()...)
	}
	_ = t.Flush() // to a terminal
	for _, r := range results {
		if r.Note != "" {
			fmt.Fprintf(w, "%s: %s\n", r.Name, r.Note) //nolint:errcheck // as above
		}
	}
}

func writeResults(path string, d document) error {
	text, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		return fmt.Errorf("write the results: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}

func readResults(path string) ([]result, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var d document
	if err := json.Unmarshal(text, &d); err != nil {
		return nil, fmt.Errorf("read results from %s: %w", path, err)
	}
	return d.Results, nil
}

// writeGoBench writes the rounds in the form of Go's benchmarks (golang.org/design/14313-benchmark-format). Units tell benchstat which way
// is the better one.
func writeGoBench(w io.Writer, results []result) {
	print := func(format string, args ...any) { fmt.Fprintf(w, format, args...) } //nolint:errcheck // to a pipe
	print("Unit gain better=higher\nUnit cost better=lower\n")
	for _, r := range results {
		unit := "cost"
		if r.AtLeast {
			unit = "gain"
		}
		for _, v := range r.Values {
			print("Benchmark/row=%s 1 %.6g %s\n", r.Name, v, unit)
		}
	}
}
