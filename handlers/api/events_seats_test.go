package api

import (
	"fmt"
	"testing"
)

func TestSeatsForWhoFollowsTheEvents(t *testing.T) {
	t.Parallel()
	var s seats
	fill := func(remote, principal string) (leave []func()) {
		for {
			l, ok := s.enter(remote, principal)
			if !ok {
				return leave
			}
			leave = append(leave, l)
		}
	}
	one := fill("192.0.2.1:1000", "")
	if len(one) != maxClientsOfOne {
		t.Errorf("one address has %d", len(one))
	}
	if _, ok := s.enter("192.0.2.1:2000", "ci"); !ok {
		t.Error("a principal at that address has none")
	}
	others := 0
	for i := range 100 {
		others += len(fill(fmt.Sprintf("192.0.2.%d:1", 2+i), ""))
	}
	if others+len(one) != maxAnonymousClients {
		t.Errorf("strangers have %d", others+len(one))
	}
	named := 1
	for i := range 100 {
		named += len(fill("192.0.2.1:1", fmt.Sprint("p", i)))
	}
	if named != maxEventClients-maxAnonymousClients {
		t.Errorf("principals have %d", named)
	}
	one[0]()
	if _, ok := s.enter("192.0.2.1:1", ""); !ok {
		t.Error("a seat that was left is not free")
	}
}
