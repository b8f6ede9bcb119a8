package client_test

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/imgsrv/imgsrv/internal/client"
)

// budget is how many bytes a connection may carry each way before it is cut; a negative number is no bound.
type budget struct{ up, down int64 }

func unbounded() budget { return budget{-1, -1} }

// cutter is a TCP proxy that cuts connections in the middle, as bad lines do.
type cutter struct {
	addr string
	cuts atomic.Int64
}

// newCutter puts a proxy before a backend. of gives the budget of the n-th connection, counted from 0.
func newCutter(t *testing.T, backend string, of func(n int) budget) *cutter {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cutter{addr: listener.Addr().String()}
	var all sync.WaitGroup
	var mu sync.Mutex
	open := map[net.Conn]bool{}
	all.Go(func() {
		for n := 0; ; n++ {
			front, err := listener.Accept()
			if err != nil {
				return
			}
			back, err := net.Dial("tcp", backend)
			if err != nil {
				_ = front.Close()
				continue
			}
			mu.Lock()
			open[front], open[back] = true, true
			mu.Unlock()
			b := of(n)
			cut := func() {
				// A reset, not an orderly end: what is under way is lost.
				_ = front.(*net.TCPConn).SetLinger(0)
				_ = front.Close()
				_ = back.Close()
			}
			all.Go(func() { c.pipe(back, front, b.up, cut) })
			all.Go(func() { c.pipe(front, back, b.down, cut) })
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		mu.Lock()
		for conn := range open {
			_ = conn.Close()
		}
		mu.Unlock()
		all.Wait()
	})
	return c
}

func (c *cutter) pipe(to, from net.Conn, bound int64, cut func()) {
	defer cut()
	if bound < 0 {
		_, _ = io.Copy(to, from)
		return
	}
	if n, _ := io.CopyN(to, from, bound); n == bound {
		c.cuts.Add(1)
	}
}

// quick is a retry that doesn't make tests wait.
func quick(limit int) client.Retry {
	return client.Retry{First: time.Millisecond, Longest: 5 * time.Millisecond, Limit: limit}
}

func newClient(t *testing.T, server string, o client.Options) *client.Client {
	t.Helper()
	if o.Retry.Limit == 0 {
		o.Retry = quick(50)
	}
	c, err := client.New(server, "secret-token", o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// content is n bytes that don't repeat in any piece that is sent at once.
func content(n int) []byte {
	data := make([]byte, n)
	state := uint64(88172645463325252) // xorshift64
	for i := range data {
		state ^= state << 13
		state ^= state >> 7
		state ^= state << 17
		data[i] = byte(state)
	}
	return data
}
