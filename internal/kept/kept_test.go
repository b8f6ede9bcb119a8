package kept_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/imgsrv/imgsrv/internal/kept"
)

// source is something that is read, whose value is that of its edition.
type source struct {
	mu      sync.Mutex
	edition uint64
	known   bool
	asked   int
}

func (s *source) state() (uint64, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.edition, s.known
}

func (s *source) ask() (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	return s.edition, nil
}

type question int

func one(uint64) int { return 1 }

func TestAnAnswerIsKeptForItsEdition(t *testing.T) {
	t.Parallel()
	s := &source{edition: 1, known: true}
	k := kept.New(s.state, 100)
	for _, step := range []struct {
		what    string
		edition uint64
		known   bool
		asked   int // after two questions
	}{
		{"first", 1, true, 1}, {"same", 1, true, 1}, {"next", 2, true, 2}, {"unknown", 2, false, 4}, {"known again", 3, true, 5},
	} {
		s.edition, s.known = step.edition, step.known
		for range 2 {
			if got, err := kept.Get(k, question(0), one, s.ask); err != nil || got != step.edition {
				t.Fatalf("%s: %d, %v", step.what, got, err)
			}
		}
		if s.asked != step.asked {
			t.Errorf("%s: asked %d times so far, want %d", step.what, s.asked, step.asked)
		}
	}
}

func TestFailuresAreAskedAgain(t *testing.T) {
	t.Parallel()
	s := &source{edition: 1, known: true}
	k, broken := kept.New(s.state, 100), errors.New("broken")
	for range 2 {
		if _, err := kept.Get(k, question(0), one, func() (uint64, error) { s.asked++; return 0, broken }); !errors.Is(err, broken) {
			t.Fatal(err)
		}
	}
	if s.asked != 2 {
		t.Errorf("asked %d times", s.asked)
	}
}

func TestWithoutEditionsNothingIsKept(t *testing.T) {
	t.Parallel()
	s := &source{}
	k := kept.New(nil, 100)
	for range 2 {
		if _, err := kept.Get(k, question(0), one, s.ask); err != nil {
			t.Fatal(err)
		}
	}
	if s.asked != 2 {
		t.Errorf("asked %d times", s.asked)
	}
}

// An answer that was asked for before the source changed must not be given as one of after.
func TestAnAnswerThatWasOvertakenIsNotKept(t *testing.T) {
	t.Parallel()
	s := &source{edition: 1, known: true}
	k := kept.New(s.state, 100)
	got, err := kept.Get(k, question(0), one, func() (uint64, error) {
		old := s.edition
		s.edition = 2
		if newer, err := kept.Get(k, question(0), one, s.ask); err != nil || newer != 2 {
			t.Errorf("%d, %v", newer, err)
		}
		return old, nil
	})
	if err != nil || got != 1 {
		t.Fatalf("%d, %v", got, err)
	}
	if got, err := kept.Get(k, question(0), one, s.ask); err != nil || got != 2 {
		t.Errorf("after the change: %d, %v", got, err)
	}
}

// Whatever is asked, of whatever size, the answer is that of the edition.
func TestAnyQuestionsGetTheirOwnAnswers(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		edition := uint64(1)
		k := kept.New(func() (uint64, bool) { return edition, true }, 40)
		for range rapid.IntRange(1, 60).Draw(t, "questions") {
			if rapid.IntRange(0, 5).Draw(t, "change") == 0 {
				edition++
			}
			q := question(rapid.IntRange(0, 9).Draw(t, "question"))
			want := fmt.Sprint(edition, q)
			got, err := kept.Get(k, q, func(string) int { return int(q) * 2 }, func() (string, error) { return want, nil })
			if err != nil || got != want {
				t.Fatalf("%q, want %q, %v", got, want, err)
			}
		}
	})
}

func TestAnswersAreBounded(t *testing.T) {
	t.Parallel()
	s := &source{edition: 1, known: true}
	k := kept.New(s.state, 8)
	for round := range 2 {
		for q := range 100 {
			if _, err := kept.Get(k, question(q), func(uint64) int { return 2 }, s.ask); err != nil {
				t.Fatal(err)
			}
		}
		if s.asked != 100*(round+1) {
			t.Errorf("100 questions in turn, four of which have room: asked %d times in round %d", s.asked, round)
		}
	}
	for range 2 {
		if _, err := kept.Get(k, question(1000), func(uint64) int { return 3 }, s.ask); err != nil {
			t.Fatal(err)
		}
	}
	if s.asked != 202 {
		t.Error("an answer that would fill the place alone is kept")
	}
}
