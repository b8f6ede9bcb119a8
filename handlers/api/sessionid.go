package api

import (
	"bytes"
	"context"

	"github.com/google/uuid"
)

// newSessionID is the id of a session that is opened now: a UUIDv7, greater than those of the sessions that moved its aliases
// last. An alias moves at a publication only if the upload is the newer one, by its id: a clock that was set back, or that
// of another node that is ahead, must not make a later upload look like an earlier one.
func (s *server) newSessionID(ctx context.Context, image string, aliases []string) (string, error) {
	id := uuid.Must(uuid.NewV7())
	for _, alias := range aliases {
		current, err := s.Events.Alias(ctx, image, alias)
		if err != nil {
			return "", err
		}
		if other, err := uuid.Parse(current.State.UploadID); err == nil {
			id = later(id, other)
		}
	}
	return id.String(), nil
}

// later is a UUIDv7 (RFC 9562, section 5.7) as it is where it is greater than another one, or else with the millisecond after
// that one's.
func later(id, other uuid.UUID) uuid.UUID {
	if bytes.Compare(id[:], other[:]) > 0 {
		return id
	}
	const digits = 6 // of the time, in milliseconds, big-endian
	copy(id[:digits], other[:digits])
	for i := digits - 1; i >= 0; i-- {
		if id[i]++; id[i] != 0 {
			break
		}
	}
	return id
}
