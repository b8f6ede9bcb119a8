package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/imgsrv/imgsrv/internal/provenance"
)

// maxTextBytes bounds checksums, signatures and keys.
const maxTextBytes = 1 << 20

// SigningKey reads the public key that the server says is its own. From a server that isn't trusted yet it proves nothing.
func (c *Client) SigningKey(ctx context.Context) (provenance.PublicKey, error) {
	text, err := c.text(ctx, route("api", "signing-key"))
	if err != nil {
		return provenance.PublicKey{}, err
	}
	key, err := provenance.ParsePublicKey(string(text))
	if err != nil {
		return provenance.PublicKey{}, fmt.Errorf("read the server's public key: %w", err)
	}
	return key, nil
}

// SignedChecksums reads the checksums of a version, by its name or an alias, and checks them against a key that the caller trusts:
// SHA-256 in hex by the files' names (provenance.FileName), and what the signature says they are of. Errors wrap
// provenance.ErrSignature where they aren't signed by that key, or are those of another version.
func (c *Client) SignedChecksums(ctx context.Context, key provenance.PublicKey, image, versionOrAlias string) (said provenance.Statement, files map[string]string, err error) {
	// A file that is made of the version between the two requests makes signature and checksums differ: once more.
	for range 3 {
		if said, files, err = c.signedChecksums(ctx, key, image, versionOrAlias); !errors.Is(err, provenance.ErrSignature) {
			break
		}
	}
	return said, files, err
}

func (c *Client) signedChecksums(ctx context.Context, key provenance.PublicKey, image, versionOrAlias string) (provenance.Statement, map[string]string, error) {
	none := provenance.Statement{}
	version := func(name, file string) string { return route("api", "images", image, "versions", name, file) }
	signature, err := c.text(ctx, version(versionOrAlias, provenance.SignatureName))
	if err != nil {
		return none, nil, err
	}
	claim, err := provenance.Claim(signature)
	if err != nil {
		return none, nil, err
	}
	// By the version's own name: an alias may move between the two requests.
	sums, err := c.text(ctx, version(claim.Version, provenance.ChecksumsName))
	if err != nil {
		return none, nil, err
	}
	said, err := key.Verify(sums, signature)
	if err != nil {
		return none, nil, err
	}
	if !said.Answers(image, versionOrAlias) {
		return none, nil, fmt.Errorf("%w for %s/%s: it is that of %s/%s", provenance.ErrSignature, image, versionOrAlias, said.Image, said.Version)
	}
	files, err := provenance.ParseChecksums(sums)
	return said, files, err
}

// ChecksumsAndSignature reads both files as they are, of a version by its name; a server without a key has no signature. Nothing is checked but that
// they belong together: a caller that needs more has a key.
func (c *Client) ChecksumsAndSignature(ctx context.Context, image, version string) (sums, signature []byte, err error) {
	file := func(name string) string { return route("api", "images", image, "versions", version, name) }
	for range 5 {
		if sums, err = c.text(ctx, file(provenance.ChecksumsName)); err != nil {
			return nil, nil, err
		}
		signature, err = c.text(ctx, file(provenance.SignatureName))
		if IsProblem(err, CodeNotFound) {
			signature, err = nil, nil
		}
		if err != nil {
			return nil, nil, err
		}
		again, err := c.text(ctx, file(provenance.ChecksumsName))
		if err != nil {
			return nil, nil, err
		}
		if bytes.Equal(again, sums) {
			return sums, signature, nil
		}
	}
	return nil, nil, fmt.Errorf("the checksums of %s %s change with each request", image, version)
}

// text reads a short text.
func (c *Client) text(ctx context.Context, ref string) (text []byte, err error) {
	err = c.firstAgain(ctx, func() error {
		r, err := c.request(ctx, http.MethodGet, ref, nil)
		if err != nil {
			return err
		}
		answer, err := c.send(r)
		if err != nil {
			return err
		}
		defer discard(answer)
		if text, err = io.ReadAll(io.LimitReader(answer.Body, maxTextBytes)); err != nil {
			return &ConnectionError{Server: c.server(), Err: err}
		}
		return nil
	})
	return text, err
}
