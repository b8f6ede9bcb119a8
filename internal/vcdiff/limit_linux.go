package vcdiff

import (
	"errors"
	"fmt"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// dieWithUs has the system end a program when this process ends without having done so.
func dieWithUs(command *exec.Cmd) {
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}

// limit bounds what a process that has just begun may take. One that is gone already needs none.
func limit(pid int, memory int64, nice int) error {
	err := unix.Setpriority(unix.PRIO_PROCESS, pid, nice)
	if err == nil {
		bound := unix.Rlimit{Cur: uint64(memory), Max: uint64(memory)}
		err = unix.Prlimit(pid, unix.RLIMIT_AS, &bound, nil)
	}
	if err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("limit %s: %w", Program, err)
	}
	return nil
}
