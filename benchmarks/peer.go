package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"syscall"
)

// peerVariable makes this program a peer that is a Go package, in a process of its own.
const peerVariable = "IMGSRV_BENCH_PEER"

type peerSpec struct {
	Kind string // tusd or content
	Host string
	Args []string
}

// peer starts one and gives its base URL. Its /metrics has the one figure that the harness reads.
func (b *bench) peer(ctx context.Context, kind string, args ...string) (*process, string, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, "", err
	}
	port, err := freePort()
	if err != nil {
		return nil, "", err
	}
	host := fmt.Sprintf("127.0.0.1:%d", port)
	spec, err := json.Marshal(peerSpec{kind, host, args})
	if err != nil {
		return nil, "", err
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), peerVariable+"="+string(spec))
	p, err := b.start(cmd, syscall.SIGTERM)
	if err != nil {
		return nil, "", err
	}
	return p, "http://" + host, p.await(ctx, func() error { return answers(host) })
}

// answers says whether somebody takes connections there.
func answers(host string) error {
	c, err := net.Dial("tcp", host)
	if err != nil {
		return err
	}
	return c.Close()
}

// runPeer is what the process does.
func runPeer(encoded string) error {
	var spec peerSpec
	if err := json.Unmarshal([]byte(encoded), &spec); err != nil {
		return err
	}
	mux := http.NewServeMux()
	switch spec.Kind {
	case "tusd":
		if err := tusdRoutes(mux, spec.Args[0]); err != nil {
			return err
		}
	case "content":
		contentRoutes(mux, spec.Args[0], spec.Args[1])
	}
	mux.HandleFunc("/metrics", func(w http.ResponseWriter, _ *http.Request) {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		fmt.Fprintf(w, "go_memstats_mallocs_total %d\n", m.Mallocs) //nolint:errcheck // the asker sees it
	})
	return http.ListenAndServe(spec.Host, mux)
}
