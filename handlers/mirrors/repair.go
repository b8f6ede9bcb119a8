package mirrors

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/internal/simplestreams"
)

// Fetch looks on the servers that mirrors follow for blobs whose bytes are lost here, and hands what it finds to take, with a name
// of where it is from: scrub.Source. A file is found by its digest, whatever its name is there; another imgsrv has all that it
// publishes under its digest too. A server that doesn't answer is an error beside what the others have.
func (m *Manager) Fetch(ctx context.Context, wanted []events.Blob, take func(ctx context.Context, b events.Blob, from string, bytes io.Reader) error) error {
	mirrors, err := m.List(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, mirror := range mirrors {
		if len(wanted) == 0 {
			break
		}
		base, err := m.address(mirror)
		var offered map[string]string
		var isImgsrv bool
		if err == nil {
			offered, isImgsrv, err = m.offered(ctx, base)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		clean := scrubber(base)
		if err != nil {
			errs = append(errs, fmt.Errorf("mirror %s: %s", mirror.Name, clean.Replace(err.Error())))
			continue
		}
		var left []events.Blob
		for _, b := range wanted {
			path, ok := offered[b.Digest.Hex()]
			if !ok && isImgsrv {
				path = "cas/sha256/" + b.Digest.Hex()[:2] + "/" + b.Digest.Hex()
			}
			if path == "" {
				left = append(left, b)
				continue
			}
			remote := &remoteFile{ctx: ctx, from: m.upstream, base: base, path: path, size: b.Size}
			err := take(ctx, b, "mirror "+mirror.Name, cleaned{io.NewSectionReader(remote, 0, b.Size), clean})
			remote.close()
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil {
				left = append(left, b) // another may have it
			}
		}
		wanted = left
	}
	return errors.Join(errs...)
}

// cleaned is a reader whose errors say nothing of what opens the server: who takes its bytes tells them on.
type cleaned struct {
	io.Reader
	clean *strings.Replacer
}

func (c cleaned) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = errors.New(c.clean.Replace(err.Error()))
	}
	return n, err
}

// offered are the paths of the files that a server's documents list, by the hex digits of their digests.
func (m *Manager) offered(ctx context.Context, url string) (paths map[string]string, isImgsrv bool, err error) {
	data, _, err := m.upstream.document(ctx, url, simplestreams.IndexPath, events.MirrorDocument{})
	if err != nil {
		return nil, false, err
	}
	listed, _, err := simplestreams.ParseIndex(data)
	if err != nil {
		return nil, false, err
	}
	paths = map[string]string{}
	for _, one := range listed[:min(len(listed), events.MaxMirrorDocuments)] {
		if data, _, err = m.upstream.document(ctx, url, one.Path, events.MirrorDocument{}); err != nil {
			return nil, false, err
		}
		images, _, err := simplestreams.ParseProducts(data)
		if err != nil {
			return nil, false, fmt.Errorf("%s: %w", one.Path, err)
		}
		for _, image := range images {
			for _, file := range []simplestreams.File{image.Metadata, image.Root} {
				if file.Path != "" {
					paths[file.SHA256] = file.Path
				}
			}
			_, _, _, ours := ofImgsrv(image)
			isImgsrv = isImgsrv || ours
		}
	}
	return paths, isImgsrv, nil
}
