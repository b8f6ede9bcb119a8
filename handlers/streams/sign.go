package streams

import (
	"net/http"
	"sync"
	"time"

	"github.com/imgsrv/imgsrv/handlers/streams/sjson"
	"github.com/imgsrv/imgsrv/internal/incus"
	"github.com/imgsrv/imgsrv/internal/pieces"
)

const (
	mediaTypeText = "text/plain; charset=utf-8"

	// maxSigned bounds the signed states that are kept: two for the public documents, the rest for those of some principals and images.
	maxSigned      = 32
	maxSignedBytes = 64 << 20 // kept in memory, without their compressed forms; one more document may come on top
)

// signing keeps signed states of documents, so that each is signed once.
type signing struct {
	signer *sjson.Signer // nil: there are no signed documents
	mu     sync.Mutex
	known  map[signedState]*content
	bytes  int // of all bodies
}

// signedState is what a signed document is made of.
type signedState struct {
	path, etag string // of the plain document
	modified   time.Time
}

// plain is the path of the document that a request's path needs.
func (s *signing) plain(path string) string {
	if s.signer == nil {
		return path
	}
	if plain, ok := sjson.Plain(path); ok {
		return plain
	}
	return path
}

// of is the signed form of a state of a document.
func (s *signing) of(plainPath string, c *content) (*content, error) {
	state := signedState{plainPath, c.etag, c.modified}
	s.mu.Lock()
	out := s.known[state]
	s.mu.Unlock()
	if out != nil {
		return out, nil
	}
	body := c.body.Bytes()
	var err error
	if plainPath == incus.IndexPath {
		if body, err = sjson.Index(body); err != nil {
			return nil, err
		}
	}
	if body, err = s.signer.Sign(body, c.modified); err != nil {
		return nil, err
	}
	out = newContent(c.modified, pieces.Body{pieces.New(body)})
	out.mediaType, out.next = mediaTypeText, c.next
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.known == nil || len(s.known) >= maxSigned || s.bytes >= maxSignedBytes {
		s.known, s.bytes = map[signedState]*content{}, 0
	}
	if s.known[state] == nil { // else another request was faster
		s.known[state] = out
		s.bytes += len(body)
	}
	return out, nil
}

// serveKey answers with the public key of the signatures.
func (h *Handler) serveKey(w http.ResponseWriter, r *http.Request) {
	key := newContent(time.Time{}, pieces.Body{pieces.New(h.signing.signer.PublicKey())})
	key.mediaType = "application/pgp-keys"
	h.serve(w, r, key)
}
