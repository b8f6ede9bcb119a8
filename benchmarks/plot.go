package main

import (
	"fmt"
	"math"
	"strings"
)

// plot draws the times over the number of versions, both axes logarithmic, as SVG: a slope is an exponent.
func plot(counts []float64, all []*growing) []byte {
	const left, top, width, height = 60.0, 20.0, 420.0, 300.0
	colours := []string{"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00"} // told apart also by the colour-blind
	low, high := math.Inf(1), math.Inf(-1)
	for _, g := range all {
		for _, t := range g.times {
			low, high = min(low, math.Log10(t)), max(high, math.Log10(t))
		}
	}
	low, high = math.Floor(low), math.Ceil(high)
	first, last := math.Log10(counts[0]), math.Log10(counts[len(counts)-1])
	x := func(n float64) float64 { return left + width*(math.Log10(n)-first)/max(last-first, 1e-9) }
	y := func(ms float64) float64 { return top + height*(high-math.Log10(ms))/max(high-low, 1) }
	var s strings.Builder
	fmt.Fprintf(&s, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 700 370" font-family="sans-serif" font-size="12">`+"\n"+`<rect width="700" height="370" fill="#fff"/>`+"\n")
	for e := low; e <= high; e++ {
		at := y(math.Pow(10, e))
		fmt.Fprintf(&s, `<path d="M%g %.1fh%g" stroke="#ddd"/><text x="%g" y="%.1f" text-anchor="end">%g ms</text>`+"\n", left, at, width, left-6, at+4, math.Pow(10, e))
	}
	for _, n := range counts {
		fmt.Fprintf(&s, `<path d="M%.1f %gv%g" stroke="#ddd"/><text x="%.1f" y="%g" text-anchor="middle">%.0f</text>`+"\n", x(n), top, height, x(n), top+height+18, n)
	}
	fmt.Fprintf(&s, `<text x="%g" y="%g" text-anchor="middle">versions</text>`+"\n", left+width/2, top+height+38)
	for i, g := range all {
		var points []string
		for j, t := range g.times {
			points = append(points, fmt.Sprintf("%.1f,%.1f", x(counts[j]), y(t)))
		}
		colour := colours[i%len(colours)]
		fmt.Fprintf(&s, `<polyline points="%s" fill="none" stroke="%s" stroke-width="2"/><text x="%g" y="%.1f" fill="%s">%s, n^%.2f</text>`+"\n",
			strings.Join(points, " "), colour, left+width+10, top+20+20*float64(i), colour, g.name, exponent(counts, g.times))
	}
	s.WriteString("</svg>\n")
	return []byte(s.String())
}
