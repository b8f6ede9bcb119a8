//go:build !linux

package vcdiff

import "os/exec"

// dieWithUs does nothing here: the program ends when it writes and nobody reads.
func dieWithUs(*exec.Cmd) {}

// limit does nothing here: time and the size of what comes out are bounded all the same.
func limit(int, int64, int) error { return nil }
