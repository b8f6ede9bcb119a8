package crash

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"
)

var soak = flag.Duration("crash.soak", 0, "kill servers at random moments under load for so long")

const (
	soakClients = 4
	roundTime   = 15 * time.Second // of load; then the site is checked, and the next begins
)

// TestSoak kills servers at moments of chance, and at marked places, while several clients do things of chance; at the end of each
// round nothing may be lost. It is for hours, so nothing happens without its flag.
func TestSoak(t *testing.T) {
	if *soak == 0 {
		t.Skip("for as long as -crash.soak says; see task soak")
	}
	if *seed == 0 {
		*seed = rand.Uint64()
	}
	t.Logf("-crash.seed %d", *seed)
	points := pointsOf(t)
	kills, rounds, versions := 0, 0, 0
	for until := time.Now().Add(*soak); time.Now().Before(until) && !t.Failed(); rounds++ {
		t.Run(strconv.Itoa(rounds), func(t *testing.T) {
			random := rand.New(rand.NewPCG(*seed, uint64(rounds)))
			killed, published := round(t, random, points)
			kills += killed
			versions += published
			t.Logf("%d kills, %d versions published", killed, published)
		})
	}
	t.Logf("%d rounds with %d kills and %d published versions", rounds, kills, versions)
}

// round is one site under load.
func round(t *testing.T, random *rand.Rand, points []point) (kills, versions int) {
	// The sources of chance are made here, one for each that uses one.
	forFaults, forKills := rand.New(rand.NewPCG(random.Uint64(), 1)), rand.New(rand.NewPCG(random.Uint64(), 2))
	s := newSite(t, databaseOf(t), func(int) []string {
		if forFaults.IntN(3) > 0 {
			return nil
		}
		return []string{"IMGSRV_FAULT=" + points[forFaults.IntN(len(points))].String()}
	})
	until := time.Now().Add(roundTime)
	expectations := make([]expectation, soakClients)
	clients := make([]*run, soakClients)
	over := make(chan struct{})
	var killer, working sync.WaitGroup
	killer.Go(func() { s.killNowAndThen(forKills, over) })
	for i := range soakClients {
		own := rand.New(rand.NewPCG(random.Uint64(), uint64(3+i)))
		working.Go(func() {
			t.Run(fmt.Sprint("client ", i), func(t *testing.T) {
				clients[i] = s.client(t)
				expectations[i] = life(clients[i], fmt.Sprint("image", i), own, until)
			})
		})
	}
	working.Wait()
	close(over)
	killer.Wait()
	checker := s.client(t)
	if t.Failed() {
		return s.killed, 0
	}
	s.mu.Lock()
	s.fault = func(int) []string { return nil } // what runs may still have one, and is started again
	s.mu.Unlock()
	for i, c := range clients {
		checker.promises = append(checker.promises, c.promises...)
		versions += len(expectations[i].versions)
	}
	checker.check(expectations...)
	return s.killed, versions
}

// killNowAndThen kills whatever server runs, until the round is over.
func (s *site) killNowAndThen(random *rand.Rand, over <-chan struct{}) {
	for {
		select {
		case <-over:
			return
		case <-time.After(time.Duration(50+random.IntN(2500)) * time.Millisecond):
		}
		s.mu.Lock()
		if s.srv != nil {
			_ = s.srv.cmd.Process.Kill() // dead already, maybe
		}
		s.mu.Unlock()
	}
}

// life is what one client does with an image of its own, until it is time. Bytes are taken from a few, so that blobs are shared.
func life(r *run, image string, random *rand.Rand, until time.Time) expectation {
	r.t.Helper()
	want := expectation{image: image, versions: map[string][2][]byte{}, aliases: map[string]string{}}
	content := func(magic string) file {
		return file{data: bytesOf(magic, 1_000+100_000*random.IntN(6), byte(random.IntN(5))), declare: random.IntN(2) == 0}
	}
	for n := 1; time.Now().Before(until) || len(want.versions) == 0; n++ {
		name := strconv.Itoa(n)
		root, sbom := content("hsqs"), content("{")
		var aliases []string
		if random.IntN(2) == 0 {
			aliases = []string{"latest"}
		}
		refused := random.IntN(8) == 0
		if refused {
			root.declare, root.sha256 = false, digestOf([]byte(image+name))
		}
		s := r.open(version(image, name, aliases, root, sbom))
		gaveUp := r.send(s, random, root, sbom)
		if gaveUp {
			want.absent = append(want.absent, name)
			continue
		}
		if refused {
			r.want(s, "failed")
			want.absent = append(want.absent, name)
			continue
		}
		r.want(s, "published")
		want.versions[name] = [2][]byte{root.data, sbom.data}
		for _, alias := range aliases {
			want.aliases[alias] = name
		}
		r.rename(&want, random)
	}
	return want
}

// send uploads the files that the server lacks; now and then a line breaks, and now and then the client gives up before the end.
func (r *run) send(s session, random *rand.Rand, files ...file) (gaveUp bool) {
	r.t.Helper()
	giveUp := random.IntN(8) == 0
	for n, f := range s.Files {
		data := files[n].data
		if f.Tus == nil {
			continue
		}
		path := r.create(s, n)
		if random.IntN(3) == 0 {
			r.broken(path, data, random.IntN(len(data)))
		}
		if giveUp {
			r.upload(path, data, len(data)/2, len(data))
			r.promised(r.call("DELETE", r.pathOf(s.StatusURL), nil, []int{200}), "."+s.ID)
			return true
		}
		r.upload(path, data, len(data), 1+len(data)/(1+random.IntN(4)))
	}
	return false
}

// rename moves an alias, or withdraws a version that no alias names, sometimes for a moment only.
func (r *run) rename(want *expectation, random *rand.Rand) {
	r.t.Helper()
	var names []string
	for name := range want.versions {
		names = append(names, name)
	}
	slices.Sort(names)
	name, base := names[random.IntN(len(names))], "/api/images/"+want.image
	switch random.IntN(3) {
	case 0:
		r.promised(r.call("PUT", base+"/aliases/stable", map[string]string{"version": name}, []int{200}), "."+want.image+".stable")
		want.aliases["stable"] = name
	case 1:
		for _, named := range want.aliases {
			if named == name {
				return
			}
		}
		r.promised(r.call("POST", base+"/versions/"+name+"/withdraw", map[string]any{"reason": "by chance"}, []int{200}), "."+want.image+"."+name)
		if random.IntN(2) == 0 {
			r.promised(r.call("POST", base+"/versions/"+name+"/restore", nil, []int{200}), "."+want.image+"."+name)
			return
		}
		delete(want.versions, name)
		want.withdrawn = append(want.withdrawn, name)
	}
}
