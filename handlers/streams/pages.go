package streams

import (
	"fmt"
	"net/url"
	"strconv"
	"sync"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/access"
	"github.com/imgsrv/imgsrv/handlers/problem"
	"github.com/imgsrv/imgsrv/internal/pieces"
	projection "github.com/imgsrv/imgsrv/projections/streams"
)

const (
	defaultPage  = 100      // versions
	maxPage      = 1000     // versions
	maxPageBytes = 16 << 20 // kept in memory; one more page may come on top
)

// pages keeps documents of one image each, by what they are made of, so that each is made once.
type pages struct {
	mu    sync.Mutex
	known map[pageKey]*content
	bytes int
}

type pageKey struct {
	line  *projection.Line
	after string
	limit int
}

// of is a page of an image for a principal: limit versions, published before the version after.
func (p *pages) of(s *state, who access.Principal, image string, query url.Values) (*content, error) {
	line := s.tables.Line(image)
	if line == nil || line.Visibility() != events.Public && !who.May(events.RoleReader, image) {
		return nil, problem.New(events.CodeNotFound, "there is no such image")
	}
	key := pageKey{line, query.Get("after"), defaultPage}
	if text := query.Get("limit"); text != "" {
		limit, err := strconv.Atoi(text)
		if err != nil || limit < 1 || limit > maxPage {
			return nil, problem.New(problem.CodeBadRequest, fmt.Sprintf("limit is how many versions a page has, 1 to %d", maxPage))
		}
		key.limit = limit
	}
	p.mu.Lock()
	known := p.known[key]
	p.mu.Unlock()
	if known != nil {
		return known, nil
	}
	page, ok, err := line.Page(key.after, key.limit)
	if err != nil {
		return nil, fmt.Errorf("make the simplestreams document of an image: %w", err)
	}
	if !ok {
		return nil, problem.New(problem.CodeBadRequest, "after is not what the link to a next page said")
	}
	c := newContent(page.Changed.At, pieces.Body{pieces.New(page.Body)})
	if page.Next != "" {
		next := url.Values{"after": {page.Next}}
		if key.limit != defaultPage {
			next.Set("limit", strconv.Itoa(key.limit))
		}
		c.next = "?" + next.Encode() // relative: what stands before it may be a token
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.known == nil || p.bytes >= maxPageBytes {
		p.known, p.bytes = map[pageKey]*content{}, 0
	}
	p.known[key] = c
	p.bytes += len(page.Body)
	return c, nil
}
