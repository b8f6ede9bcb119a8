package api

import (
	"bytes"
	"testing"

	"github.com/google/uuid"
)

func TestASessionsIDIsLaterThanTheOneBefore(t *testing.T) {
	t.Parallel()
	now := uuid.Must(uuid.NewV7())
	for _, text := range []string{"00000000-0000-7000-8000-000000000000", now.String(), "0fffffff-ffff-7fff-bfff-ffffffffffff", "01a2ffff-ffff-7fff-bfff-ffffffffffff"} {
		other := uuid.MustParse(text)
		id := later(now, other)
		if bytes.Compare(id[:], other[:]) <= 0 || id.Version() != 7 || id.Variant() != uuid.RFC4122 {
			t.Errorf("%s comes after %s", id, other)
		}
		if bytes.Compare(now[:], other[:]) > 0 && id != now {
			t.Errorf("%s was late enough and became %s", now, id)
		}
	}
}
