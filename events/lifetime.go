package events

import "time"

// Lifetime says who added something that stays until somebody removes it.
type Lifetime struct {
	Removed   bool      `json:"removed,omitempty"`
	AddedBy   string    `json:"added_by"`
	AddedAt   time.Time `json:"added_at"`
	RemovedBy string    `json:"removed_by,omitempty"`
	RemovedAt time.Time `json:"removed_at,omitzero"`
}

// Living says whether it was added, and not removed since.
func (l Lifetime) Living() bool { return l != (Lifetime{}) && !l.Removed }

func (l *Lifetime) end(by string, at time.Time) { l.Removed, l.RemovedBy, l.RemovedAt = true, by, at }
