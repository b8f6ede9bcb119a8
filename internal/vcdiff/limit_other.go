//go:build !linux

package vcdiff

// limit does nothing here: time and the size of what comes out are bounded all the same.
func limit(int, int64, int) error { return nil }
