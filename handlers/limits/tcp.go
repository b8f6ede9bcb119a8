package limits

import (
	"io"
	"net"
)

// countedTCP keeps what net/http uses of a TCP connection: sendfile, and the half close after a last answer.
type countedTCP struct {
	*countedConn
	tcp *net.TCPConn
}

// ReadFrom implements io.ReaderFrom.
func (c *countedTCP) ReadFrom(r io.Reader) (int64, error) { return c.tcp.ReadFrom(r) }

// CloseWrite is as that of net.TCPConn.
func (c *countedTCP) CloseWrite() error { return c.tcp.CloseWrite() }
