package limits

import (
	"net"
	"net/http"
	"sync"
	"time"
)

// Connections bounds the connections of a listener, so that files are left for requests. Where all places are taken, the
// connection that has been idle for the longest makes room; without one, new clients wait in the kernel's queue.
type Connections struct {
	most int

	mu    sync.Mutex
	freed *sync.Cond // told when one ends or comes to be idle, and at the end
	open  int
	ended bool
	idle  map[net.Conn]time.Time
}

// NewConnections makes a bound; most is from 1.
func NewConnections(most int) *Connections {
	c := &Connections{most: most, idle: map[net.Conn]time.Time{}}
	c.freed = sync.NewCond(&c.mu)
	return c
}

// Listener bounds what a listener accepts. The http.Server's ConnState has to be State.
func (c *Connections) Listener(l net.Listener) net.Listener {
	return &boundedListener{Listener: l, of: c}
}

// State follows which connections are idle.
func (c *Connections) State(conn net.Conn, state http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if state == http.StateIdle {
		c.idle[conn] = time.Now()
		c.freed.Broadcast()
		return
	}
	delete(c.idle, conn)
}

// take waits for a place; false says that the listener has ended.
func (c *Connections) take() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.open >= c.most && !c.ended {
		var oldest net.Conn
		var since time.Time
		for conn, at := range c.idle {
			if oldest == nil || at.Before(since) {
				oldest, since = conn, at
			}
		}
		if oldest == nil {
			c.freed.Wait()
			continue
		}
		delete(c.idle, oldest)
		c.mu.Unlock()
		_ = oldest.Close() // gives its place back
		c.mu.Lock()
	}
	if c.ended {
		return false
	}
	c.open++
	return true
}

func (c *Connections) release() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open--
	c.freed.Broadcast()
}

func (c *Connections) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	c.freed.Broadcast()
}

type boundedListener struct {
	net.Listener
	of *Connections
}

// Accept implements net.Listener.
func (l *boundedListener) Accept() (net.Conn, error) {
	if !l.of.take() {
		return nil, net.ErrClosed
	}
	conn, err := l.Listener.Accept()
	if err != nil {
		l.of.release()
		return nil, err
	}
	counted := &countedConn{Conn: conn, release: sync.OnceFunc(l.of.release)}
	if tcp, ok := conn.(*net.TCPConn); ok {
		return &countedTCP{countedConn: counted, tcp: tcp}, nil
	}
	return counted, nil
}

// Close implements net.Listener.
func (l *boundedListener) Close() error {
	l.of.end()
	return l.Listener.Close()
}

type countedConn struct {
	net.Conn
	release func()
}

// Close implements net.Conn.
func (c *countedConn) Close() error {
	defer c.release()
	return c.Conn.Close()
}
