//go:build faults

package faults

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// On says whether places are looked at; what computes a place's name stands behind it.
const On = true

// plan is what the environment asks for.
type plan struct {
	mu    sync.Mutex
	place string // "" for none
	nth   int
	seen  int
	log   *os.File // nil for none
}

// fromEnvironment is asked once: a process has one plan.
var fromEnvironment = sync.OnceValue(func() *plan {
	p := &plan{}
	if text := os.Getenv("IMGSRV_FAULT"); text != "" {
		at := strings.LastIndexByte(text, ':')
		n, err := strconv.Atoi(text[at+1:])
		if at < 0 || err != nil || n < 1 {
			panic(fmt.Sprintf("IMGSRV_FAULT=%s is not PLACE:N", text))
		}
		p.place, p.nth = text[:at], n
	}
	if name := os.Getenv("IMGSRV_FAULT_LOG"); name != "" {
		var err error
		if p.log, err = os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600); err != nil {
			panic(err)
		}
	}
	return p
})

// Point is a place. An argument that is a path is taken from the storage folder on.
func Point(what, about string) { hit(Name(what, about), 0) }

// During is a place at which the process ends a moment later, while it is about what comes next.
func During(what, about string) {
	hit(Name("during "+what, about), time.Duration(1+rand.IntN(400))*time.Microsecond)
}

func hit(place string, after time.Duration) {
	p := fromEnvironment()
	if p.place == "" && p.log == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.log != nil {
		if _, err := p.log.WriteString(place + "\n"); err != nil {
			panic(err)
		}
	}
	if place != p.place {
		return
	}
	if p.seen++; p.seen == p.nth && after > 0 {
		time.AfterFunc(after, end)
	} else if p.seen == p.nth {
		end()
	}
}

// end ends the process. Whoever calls it doesn't go on: the signal is on its way.
func end() {
	if err := syscall.Kill(os.Getpid(), syscall.SIGKILL); err != nil {
		panic(err)
	}
	select {}
}

// Before and After are the two places around an operation on a file, by its path.
func Before(what, path string) { Point("before "+what, path) }

// After is as [Before].
func After(what, path string) { Point("after "+what, path) }
