package client

import (
	"context"
	"fmt"
	"io"
	"net/http"
)

// maxStreamBytes bounds a simplestreams document. That of 10,000 versions has about 20 MB.
const maxStreamBytes = 256 << 20

// StreamsDocument reads a simplestreams document by its path, such as streams/v1/index.json: what the token may see, byte for byte.
func (c *Client) StreamsDocument(ctx context.Context, path string) (document []byte, err error) {
	err = c.firstAgain(ctx, func() error {
		r, err := c.request(ctx, http.MethodGet, "/"+path, nil)
		if err != nil {
			return err
		}
		answer, err := c.send(r)
		if err != nil {
			return err
		}
		defer discard(answer)
		if document, err = io.ReadAll(io.LimitReader(answer.Body, maxStreamBytes+1)); err != nil {
			return &ConnectionError{Server: c.server(), Err: err}
		}
		if len(document) > maxStreamBytes {
			return fmt.Errorf("%s has more than %d bytes", path, maxStreamBytes)
		}
		return nil
	})
	return document, err
}
