package main

import (
	"math"
	"slices"
	"time"
)

// samples are the figures of both sides, round by round.
type samples struct{ ours, theirs []float64 }

// ratios are ours over theirs in each round: what slows the machine for a while slows both.
func (s samples) ratios() []float64 {
	ratios := make([]float64, len(s.ours))
	for i := range s.ours {
		ratios[i] = s.ours[i] / s.theirs[i]
	}
	return ratios
}

// median is the middle of values, or the mean of the two in the middle; NaN for none.
func median(values []float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	v := slices.Sorted(slices.Values(values))
	middle := len(v) / 2
	if len(v)%2 == 1 {
		return v[middle]
	}
	return (v[middle-1] + v[middle]) / 2
}

// percentile is the smallest value that p percent of all don't exceed (nearest rank); 0 for none.
func percentile(values []time.Duration, p float64) time.Duration {
	if len(values) == 0 {
		return 0
	}
	v := slices.Sorted(slices.Values(values))
	rank := int(math.Ceil(p / 100 * float64(len(v))))
	return v[min(max(rank, 1), len(v))-1]
}

// exponent is the k of y = c·x^k that fits best: the slope of the least-squares line through the logarithms. 0 is constant, 1 linear.
func exponent(x, y []float64) float64 {
	var sx, sy, sxx, sxy float64
	for i := range x {
		lx, ly := math.Log(x[i]), math.Log(y[i])
		sx, sy, sxx, sxy = sx+lx, sy+ly, sxx+lx*lx, sxy+lx*ly
	}
	n := float64(len(x))
	return (n*sxy - sx*sy) / (n*sxx - sx*sx)
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
