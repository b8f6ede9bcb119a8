//go:build !linux

package convert

import "syscall"

// isolation is how far a process is shut in: elsewhere than on Linux it isn't.
type isolation int

const notIsolated isolation = 0

func isolations() []isolation { return []isolation{notIsolated} }

func (isolation) attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
