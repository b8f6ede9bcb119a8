package tus_test

import (
	"net/http"
	"runtime"
	"testing"

	"github.com/imgsrv/imgsrv/events"
)

// What a PATCH allocates doesn't grow with its bytes.
func TestAPatchAllocatesNoMoreForMoreBytes(t *testing.T) {
	in := newIntake(t, nil) // not parallel: it counts what the process allocates
	data := randomBytes(1 << 20)
	patch := func(mib int) uint64 {
		session := in.session([]byte("metadata"), events.UploadFile{Format: "disk.qcow2", Size: int64(mib+1) << 20})
		if a := in.create(session, "disk.qcow2", (mib+1)<<20); a.status != http.StatusCreated {
			t.Fatalf("creation: %+v", a)
		}
		conn := in.begunPatch(session, 0, mib<<20)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range mib {
			if _, err := conn.Write(data); err != nil {
				t.Fatal(err)
			}
		}
		if status, _ := in.answered(conn); status != http.StatusNoContent {
			t.Fatalf("PATCH of %d MiB: %d", mib, status)
		}
		runtime.ReadMemStats(&after)
		return after.Mallocs - before.Mallocs
	}
	patch(1) // what is made once
	const mib = 96
	few, many := patch(1), patch(mib)
	if many > few+4*mib { // some buffers are made anew, and more of them under the race detector, where a sync.Pool loses some on purpose
		t.Errorf("%d allocations for 1 MiB, %d for %d MiB", few, many, mib)
	}
}
