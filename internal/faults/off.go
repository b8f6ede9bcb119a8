//go:build !faults

package faults

// On says whether places are looked at; what computes a place's name stands behind it.
const On = false

// Point is a place.
func Point(_, _ string) {}

// During is a place at which the process ends a moment later, while it is about what comes next.
func During(_, _ string) {}

// Before and After are the two places around an operation on a file, by its path.
func Before(_, _ string) {}

// After is as [Before].
func After(_, _ string) {}
