// Package kept keeps answers in memory as long as what they were read from is known to be the same. It knows nothing of what the
// answers are, nor of who may see them.
package kept

import "sync"

// Answers are those of one edition of their source. They may be used by several goroutines. The nil Answers keeps nothing.
type Answers struct {
	edition  func() (number uint64, ok bool)
	maxBytes int

	mu    sync.RWMutex
	of    uint64
	rows  map[any]any // by question
	bytes int
}

// New makes a place for answers of some maxBytes in all. Edition says in which state their source is, as far as that is known without asking
// it; a later state has a higher number. Nil: it is never known.
func New(edition func() (number uint64, ok bool), maxBytes int) *Answers {
	if edition == nil {
		return nil
	}
	return &Answers{edition: edition, maxBytes: maxBytes}
}

// Get gives the answer to a question, a comparable value of a type that no other kind of question has, that was answered before in this
// edition, or else asks. Failures are not kept. Size is how many bytes an answer takes, roughly. Callers share what an answer refers to, and must not change it.
func Get[A any](k *Answers, question any, size func(A) int, ask func() (A, error)) (A, error) {
	if k == nil {
		return ask()
	}
	edition, ok := k.edition() // before the source is read
	if !ok {
		return ask()
	}
	if known, found := k.get(edition, question); found {
		return known.(A), nil
	}
	answer, err := ask()
	if err == nil {
		k.put(edition, question, answer, size(answer))
	}
	return answer, err
}

func (k *Answers) get(edition uint64, question any) (answer any, found bool) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	if k.of != edition {
		return nil, false
	}
	answer, found = k.rows[question]
	return answer, found
}

func (k *Answers) put(edition uint64, question, answer any, bytes int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if edition < k.of || bytes > k.maxBytes/4 { // asked before the source changed; or nothing else would have room
		return
	}
	if edition > k.of || k.bytes+bytes > k.maxBytes { // all at once: what is asked for often is back soon
		k.of, k.rows, k.bytes = edition, map[any]any{}, 0
	}
	if _, found := k.rows[question]; !found { // else another caller was faster
		k.rows[question] = answer
		k.bytes += bytes
	}
}
