package streams

import (
	"fmt"
	"net/url"
	"strconv"
	"sync"
	"time"

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
	known map[string]*imagePages // by image
	bytes int                    // of all bodies
}

// imagePages are those of one state of an image: they go with it, since it may take far more memory than they do.
type imagePages struct {
	line  *projection.Line
	known map[pageKey]*content
	bytes int
}

type pageKey struct {
	after string
	limit int
}

// of is a page of an image for a principal: limit versions, published before the version after.
func (p *pages) of(s *state, who access.Principal, image string, query url.Values) (*content, error) {
	line := s.tables.Line(image)
	if line == nil || line.Visibility() != events.Public && !who.May(events.RoleReader, image) {
		return nil, problem.New(events.CodeNotFound, "there is no such image")
	}
	key := pageKey{query.Get("after"), defaultPage}
	if text := query.Get("limit"); text != "" {
		limit, err := strconv.Atoi(text)
		if err != nil || limit < 1 || limit > maxPage {
			return nil, problem.New(problem.CodeBadRequest, fmt.Sprintf("limit is how many versions a page has, 1 to %d", maxPage))
		}
		key.limit = limit
	}
	if known := p.find(image, line, key); known != nil {
		return known, nil
	}
	page, ok, err := line.Page(key.after, key.limit)
	if err != nil {
		return nil, fmt.Errorf("make the simplestreams document of an image: %w", err)
	}
	if !ok {
		return nil, problem.New(problem.CodeBadRequest, "after is not what the link to a next page said")
	}
	modified := page.Changed.At
	if line.Visibility() != events.Public {
		modified = time.Time{} // the tables don't say when a private image was described anew; the entity tag says more
	}
	c := newContent(modified, pieces.Body{pieces.New(page.Body)})
	if page.Next != "" {
		next := url.Values{"after": {page.Next}}
		if key.limit != defaultPage {
			next.Set("limit", strconv.Itoa(key.limit))
		}
		c.next = "?" + next.Encode() // relative: what stands before it may be a token
	}
	p.keep(image, line, key, c, len(page.Body))
	return c, nil
}

func (p *pages) find(image string, line *projection.Line, key pageKey) *content {
	p.mu.Lock()
	defer p.mu.Unlock()
	if of := p.known[image]; of != nil && of.line == line {
		return of.known[key]
	}
	return nil
}

func (p *pages) keep(image string, line *projection.Line, key pageKey, c *content, bytes int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.known == nil || p.bytes >= maxPageBytes {
		p.known, p.bytes = map[string]*imagePages{}, 0
	}
	of := p.known[image]
	if of == nil || of.line != line {
		if of != nil {
			p.bytes -= of.bytes
		}
		of = &imagePages{line: line, known: map[pageKey]*content{}}
		p.known[image] = of
	}
	if of.known[key] == nil { // else another request was faster
		of.known[key] = c
		of.bytes, p.bytes = of.bytes+bytes, p.bytes+bytes
	}
}
