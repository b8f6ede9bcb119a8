package events

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func someMirror() Mirror {
	return Mirror{Name: "lxc", URL: "https://images.example.org", Filters: []string{"debian/*"}, Keep: 2, EverySeconds: 3600, Lifetime: Lifetime{AddedBy: "admin", AddedAt: time.Unix(1000, 0).UTC()}}
}

// mirrorAfter is the state that a decision leads to.
func mirrorAfter(t *testing.T, sequence Sequence, changes []Change, err error) Current[Mirror] {
	t.Helper()
	if err != nil || len(changes) != 1 {
		t.Fatalf("changes %v, error %v", changes, err)
	}
	return Current[Mirror]{State: Fold(Mirror{}, changes[0].Fact), Sequence: sequence}
}

func TestALifeOfAMirror(t *testing.T) {
	t.Parallel()
	changes, err := AddMirror(someMirror(), Current[Mirror]{})
	mirror := mirrorAfter(t, 1, changes, err)
	if mirror.State.Request == nil || mirror.State.Request.By != "admin" || mirror.State.Due(time.Unix(1e9, 0)) {
		t.Errorf("a new mirror wants a run, and is not due for another: %+v", mirror.State)
	}
	if changes, err := RequestSync(mirror, "lxc", "somebody", time.Unix(1100, 0)); err != nil || changes != nil {
		t.Errorf("a second request while one is there: %v, %v", changes, err)
	}
	if _, err := AddMirror(someMirror(), mirror); !IsCode(err, CodeMirrorExists) {
		t.Errorf("the name is taken: %v", err)
	}

	bad := EndSync{Request: 1, Run: MirrorRun{EndedAt: time.Unix(1200, 0).UTC(), Matched: 1, Failed: 1, FetchedBytes: 10, Problems: slices.Repeat([]string{"a\x1b[2J" + strings.Repeat("x", 1000)}, 50)}, NextAt: time.Unix(1300, 0)}
	mirror = mirrorAfter(t, 2, CompleteSync(mirror, bad), nil)
	if mirror.State.Failures != 1 || !mirror.State.LastSuccessAt.IsZero() || mirror.State.Lag(time.Unix(1500, 0)) != 500*time.Second {
		t.Errorf("a run that failed: %+v", mirror.State)
	}
	if problems := mirror.State.LastRun.Problems; len(problems) != MaxMirrorProblems || len(problems[0]) > 600 || strings.ContainsRune(problems[0], 0x1b) {
		t.Errorf("%d problems, the first %q", len(problems), problems[0])
	}
	if mirror.State.Due(time.Unix(1299, 0)) || !mirror.State.Due(time.Unix(1300, 0)) {
		t.Error("the next run is due at 1300")
	}

	changes, err = RequestSync(mirror, "lxc", "imgsrv", time.Unix(1300, 0))
	mirror = mirrorAfter(t, 3, changes, err)
	if changes := CompleteSync(mirror, EndSync{Request: 1}); changes != nil {
		t.Errorf("the end of another run: %v", changes)
	}
	good := EndSync{Request: 3, Run: MirrorRun{EndedAt: time.Unix(1400, 0).UTC(), Matched: 3, Published: 1, Present: 1, Refused: 1, FetchedBytes: 20, SavedBytes: 5}, NextAt: time.Unix(5000, 0),
		Refused: []MirrorRefusal{{Image: "debian", Version: "1", Digest: "d", Reason: "r"}}}
	mirror = mirrorAfter(t, 4, CompleteSync(mirror, good), nil)
	if mirror.State.Failures != 0 || mirror.State.Lag(time.Unix(1500, 0)) != 100*time.Second || mirror.State.Request != nil {
		t.Errorf("a run that succeeded: %+v", mirror.State)
	}
	if mirror.State.FetchedBytes != 30 || mirror.State.SavedBytes != 5 {
		t.Errorf("the sums of the runs: %+v", mirror.State)
	}
	if diff := cmp.Diff(good.Refused, mirror.State.Refused); diff != "" {
		t.Error(diff)
	}

	changes, err = RemoveMirror(mirror, "lxc", "admin", time.Unix(2000, 0))
	mirror = mirrorAfter(t, 5, changes, err)
	if mirror.State.Due(time.Unix(1e9, 0)) {
		t.Error("a removed mirror is due")
	}
	if _, err := RemoveMirror(mirror, "lxc", "admin", time.Unix(2000, 0)); !IsCode(err, CodeNotFound) {
		t.Errorf("removed twice: %v", err)
	}
	if _, err := RequestSync(mirror, "lxc", "admin", time.Unix(2000, 0)); !IsCode(err, CodeNotFound) {
		t.Errorf("a run of a removed one: %v", err)
	}
	again, err := AddMirror(someMirror(), mirror)
	if state := mirrorAfter(t, 6, again, err).State; state.Removed || state.LastRun != nil || again[0].Expect != 5 {
		t.Errorf("added again: %+v", state)
	}
}

func TestAMirrorsFormIsChecked(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*Mirror){
		"name":        func(m *Mirror) { m.Name = "a.b" },
		"scheme":      func(m *Mirror) { m.URL = "ftp://images.example.org" },
		"credentials": func(m *Mirror) { m.URL = "https://user:password@images.example.org" },
		"query":       func(m *Mirror) { m.URL = "https://images.example.org?a=b" },
		"long URL":    func(m *Mirror) { m.URL = "https://images.example.org/" + strings.Repeat("x", 3000) },
		"filter":      func(m *Mirror) { m.Filters = []string{""} },
		"filters":     func(m *Mirror) { m.Filters = slices.Repeat([]string{"a"}, 51) },
		"machines":    func(m *Mirror) { m.Architectures = slices.Repeat([]string{"amd64"}, MaxMirrorFilters+1) },
		"key":         func(m *Mirror) { m.UpstreamKey = strings.Repeat("k", MaxMirrorKeyBytes+1) },
		"visibility":  func(m *Mirror) { m.Visibility = "shared" },
		"keep":        func(m *Mirror) { m.Keep = 0 },
		"every":       func(m *Mirror) { m.EverySeconds = 59 },
		"field":       func(m *Mirror) { m.ImageName = "{os}-{distro}" },
		"brace":       func(m *Mirror) { m.ImageName = "{os" },
	} {
		mirror := someMirror()
		change(&mirror)
		if _, err := AddMirror(mirror, Current[Mirror]{}); !IsCode(err, CodeInvalid) || strings.Contains(err.Error(), "password@") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
