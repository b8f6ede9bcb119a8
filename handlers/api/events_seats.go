package api

import (
	"net"
	"sync"
)

// Seats of those who follow the events: each takes a consumer of the stream, which has 1,000.
const (
	maxEventClients     = 500
	maxAnonymousClients = 350 // of them; so that strangers leave some for who has a token
	maxClientsOfOne     = 50  // for one principal, or one address without credentials
)

// seats counts who follows the events.
type seats struct {
	mu        sync.Mutex
	all       int
	anonymous int
	of        map[string]int
}

// enter takes a seat; ok is false where there is none for this caller. leave gives it back.
func (s *seats) enter(remote, principal string) (leave func(), ok bool) {
	key := "principal " + principal
	if principal == "" {
		host, _, err := net.SplitHostPort(remote)
		if err != nil {
			host = remote
		}
		key = "address " + host
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.of == nil {
		s.of = map[string]int{}
	}
	if s.all == maxEventClients || s.of[key] == maxClientsOfOne || principal == "" && s.anonymous == maxAnonymousClients {
		return nil, false
	}
	change := func(by int) {
		s.all += by
		if principal == "" {
			s.anonymous += by
		}
		if s.of[key] += by; s.of[key] == 0 {
			delete(s.of, key)
		}
	}
	change(1)
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		change(-1)
	}, true
}
