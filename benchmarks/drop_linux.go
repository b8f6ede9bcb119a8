package main

import (
	"syscall"
	"unsafe"
)

// nowhere is where dropped bytes don't go: the kernel wants an address, and copies nothing to it.
var nowhere [1]byte

// recvDrop is recv(2) with MSG_TRUNC, by which TCP drops up to n bytes.
func recvDrop(fd, n int) (int, error) {
	got, _, errno := syscall.Syscall6(syscall.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&nowhere[0])), uintptr(n), syscall.MSG_TRUNC|syscall.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(got), nil
}
