package tus_test

import (
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/tus"
)

func TestAbandonedSessionsExpire(t *testing.T) {
	t.Parallel()
	in := newIntake(t, func(c *tus.Config) { c.Idle = time.Hour })
	abandoned := in.session(nil, events.UploadFile{Format: "a", Size: 10})
	in.create(abandoned, "a", 10)
	in.patch(in.url(abandoned, 0), 0, []byte("01"))
	complete := in.session(nil, events.UploadFile{Format: "a", Size: 2})
	in.create(complete, "a", 2)
	in.patch(in.url(complete, 0), 0, []byte("01"))

	expire := func() {
		if err := in.handler.ExpireAbandoned(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	expire()
	if at, ok := in.handler.ExpiresAt(abandoned); !ok || time.Until(at) < 30*time.Minute || time.Until(at) > time.Hour {
		t.Errorf("the session expires at %v (%v), want in about an hour", at, ok)
	}
	if got := in.offset(in.url(abandoned, 0)); got != 2 {
		t.Fatalf("a fresh upload was touched: offset %d", got)
	}
	in.now = in.now.Add(2 * time.Hour)
	expire()
	upload, err := in.log.Upload(t.Context(), abandoned)
	if err != nil || upload.State.State != events.SessionExpired {
		t.Fatalf("session is %s (%v), want expired", upload.State.State, err)
	}
	version, err := in.log.Version(t.Context(), "image", abandoned)
	if err != nil || version.State.State != events.StateReleased {
		t.Errorf("version is %s (%v), want released", version.State.State, err)
	}
	if a := in.patch(in.url(abandoned, 0), 2, []byte("2")); a.status != 409 || a.code != "session-closed" {
		t.Errorf("PATCH after expiry: %d %s", a.status, a.code)
	}
	if done, err := in.log.Upload(t.Context(), complete); err != nil || done.State.State != events.SessionOpen || !done.State.Complete {
		t.Errorf("a complete session on its way to its job became %+v (%v)", done.State, err)
	}
}

// A crash between a session's folder and its fact leaves a folder that no session will ever use.
func TestTheFolderOfASessionThatNeverBeganGoesBeforeSessionsExpire(t *testing.T) {
	t.Parallel()
	in := newIntake(t, func(c *tus.Config) { c.Idle = 24 * time.Hour })
	open := in.session(nil, events.UploadFile{Format: "a", Size: 10})
	orphan := uuid.Must(uuid.NewV7()).String()
	if err := in.store.CreateSession(orphan); err != nil {
		t.Fatal(err)
	}
	folders := func() (ids []string) {
		if err := in.handler.ExpireAbandoned(t.Context()); err != nil {
			t.Fatal(err)
		}
		sessions, err := in.store.Sessions()
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range sessions {
			ids = append(ids, s.ID)
		}
		return ids
	}
	if got := folders(); !slices.Contains(got, orphan) {
		t.Errorf("folders %v: one that may be about to get its fact is gone", got)
	}
	in.now = in.now.Add(20 * time.Minute)
	if got := folders(); !slices.Equal(got, []string{open}) {
		t.Errorf("folders %v, want that of the open session %s", got, open)
	}
}
