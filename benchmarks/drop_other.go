//go:build !linux

package main

import "errors"

// recvDrop has no counterpart here: bytes would have to be copied.
func recvDrop(int, int) (int, error) { return 0, errors.New("the benchmarks run on Linux only") }
