package streams

import (
	"bytes"
	"cmp"
	"errors"
	"hash/fnv"
	"slices"
	"strings"

	"github.com/imgsrv/imgsrv/internal/incus"
	"github.com/imgsrv/imgsrv/internal/pieces"
)

// chunkProducts is about how many products there are in a chunk: a changed product costs its chunk's being hashed and compressed
// again, and each chunk is compressed without what stands in the others.
const chunkProducts = 64

// said is all that a fragment is made of.
type said struct {
	owner       *listing
	os, release string // of its image
	names       []string
	deltas      []delta
}

// fragment is a product's part of the documents. It is never changed.
type fragment struct {
	said   said
	key    string
	member []byte // of images.json: "KEY":{…}
	first  bool   // of its chunk
}

func newFragment(says said) (*fragment, error) {
	product, err := describe(says.owner.Product, Image{OS: says.os, Release: says.release}, says.names)
	if err != nil {
		return nil, err
	}
	addDeltas(product, says.owner.Product, says.deltas)
	f := &fragment{said: says, key: says.owner.key}
	if f.member, err = product.Member(f.key); err != nil {
		return nil, err
	}
	hash := fnv.New64a()
	_, _ = hash.Write([]byte(f.key)) // a hash takes everything
	f.first = hash.Sum64()>>40%chunkProducts == 0
	return f, nil
}

// is says whether the fragment is what would be made.
func (f *fragment) is(says said) bool {
	return f != nil && f.said.owner == says.owner && f.said.os == says.os && f.said.release == says.release &&
		slices.Equal(f.said.names, says.names) && slices.Equal(f.said.deltas, says.deltas)
}

// chunk is fragments that follow each other. Where chunks begin depends on their first keys alone, so that the same documents are
// always cut the same way. It is never changed.
type chunk struct {
	fragments []*fragment
	leads     bool // nothing stands before it
	// Its parts of the two documents: names and members, with a comma before unless it leads.
	index, images *pieces.Piece
}

func newChunk(fragments []*fragment, leads bool) *chunk {
	size := len(fragments)
	for _, f := range fragments {
		size += len(f.member)
	}
	index, images := make([]byte, 0, size/8), make([]byte, 0, size)
	for i, f := range fragments {
		if i > 0 || !leads {
			index, images = append(index, ','), append(images, ',')
		}
		images = append(images, f.member...)
		name, _, _ := bytes.Cut(f.member, []byte(`":{`))
		index = append(append(index, name...), '"')
	}
	return &chunk{fragments: fragments, leads: leads, index: pieces.New(slices.Clip(index)), images: pieces.New(images)}
}

// cut takes and adds fragments, and cuts them into chunks again; those that are the same, before or elsewhere, are kept.
func cut(before []*chunk, gone map[*fragment]bool, come []*fragment, elsewhere *Shown) []*chunk {
	slices.SortFunc(come, func(a, b *fragment) int { return cmp.Compare(a.key, b.key) })
	known := make(map[string]*chunk, len(before)) // by the first key
	total := len(come)
	for _, c := range before {
		total += len(c.fragments)
	}
	all := make([]*fragment, 0, total)
	for _, c := range before {
		known[c.fragments[0].key] = c
		for _, f := range c.fragments {
			for len(come) > 0 && come[0].key < f.key {
				all, come = append(all, come[0]), come[1:]
			}
			if !gone[f] {
				all = append(all, f)
			}
		}
	}
	all = append(all, come...)

	var chunks []*chunk
	for start := 0; start < len(all); {
		end := start + 1
		for end < len(all) && !all[end].first {
			end++
		}
		c := known[all[start].key]
		if !c.is(all[start:end], start == 0) {
			if c = elsewhere.chunkOf(all[start].key); !c.is(all[start:end], start == 0) {
				c = newChunk(slices.Clone(all[start:end]), start == 0)
			}
		}
		chunks = append(chunks, c)
		start = end
	}
	return chunks
}

func (c *chunk) is(fragments []*fragment, leads bool) bool {
	return c != nil && c.leads == leads && slices.Equal(c.fragments, fragments)
}

// chunkOf finds the chunk in which a key is, or would be; nil if it is before all of them.
func (s *Shown) chunkOf(key string) *chunk {
	if s == nil {
		return nil
	}
	at, found := slices.BinarySearchFunc(s.chunks, key, func(c *chunk, key string) int { return strings.Compare(c.fragments[0].key, key) })
	if found {
		return s.chunks[at]
	}
	if at == 0 {
		return nil
	}
	return s.chunks[at-1]
}

// find finds the fragment of a key; nil if there is none.
func (s *Shown) find(key string) *fragment {
	c := s.chunkOf(key)
	if c == nil {
		return nil
	}
	at, found := slices.BinarySearchFunc(c.fragments, key, func(f *fragment, key string) int { return strings.Compare(f.key, key) })
	if !found {
		return nil
	}
	return c.fragments[at]
}

// OwnBytes is how much memory the documents take that isn't another's too.
func (s *Shown) OwnBytes(other *Shown) (n int) {
	for _, c := range s.chunks {
		if other.chunkOf(c.fragments[0].key) != c {
			n += len(c.images.Bytes()) + len(c.index.Bytes())
		}
		n += 200 * len(c.fragments) // pointers and entries of maps
	}
	return n
}

// assemble puts the chunks between what stands before and after the products.
func (s *Shown) assemble() error {
	empty := incus.NewProducts(s.Changed.At)
	if s.Changed.Sequence == 0 {
		empty.Updated = ""
	}
	for _, document := range []struct {
		into    *pieces.Body
		encode  func() ([]byte, error)
		opening string
		ofChunk func(*chunk) *pieces.Piece
	}{
		{&s.Images, empty.Encode, `"products":{`, func(c *chunk) *pieces.Piece { return c.images }},
		{&s.Index, empty.Index(incus.ImagesPath).Encode, `"products":[`, func(c *chunk) *pieces.Piece { return c.index }},
	} {
		text, err := document.encode()
		if err != nil {
			return err
		}
		at := bytes.Index(text, []byte(document.opening))
		if at < 0 {
			return errors.New("a simplestreams document without products")
		}
		at += len(document.opening)
		body := make(pieces.Body, 0, len(s.chunks)+2)
		body = append(body, pieces.New(text[:at]))
		for _, c := range s.chunks {
			body = append(body, document.ofChunk(c))
		}
		*document.into = append(body, pieces.New(text[at:]))
	}
	return nil
}
