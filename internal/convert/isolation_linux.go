package convert

import (
	"os"
	"syscall"
)

// isolation is how far a process is shut in.
type isolation int

const (
	notIsolated isolation = iota
	ownNetwork            // a network namespace with nothing in it: takes CAP_SYS_ADMIN
	ownUser               // the same within a user namespace, for everybody where the system allows it
)

// isolations are the ways to try, best first.
func isolations() []isolation { return []isolation{ownNetwork, ownUser, notIsolated} }

func (i isolation) attributes() *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	switch i {
	case ownNetwork:
		a.Cloneflags = syscall.CLONE_NEWNET
	case ownUser:
		a.Cloneflags = syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET
		a.UidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getuid(), HostID: os.Getuid(), Size: 1}}
		a.GidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getgid(), HostID: os.Getgid(), Size: 1}}
	}
	return a
}
