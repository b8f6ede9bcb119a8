package tusname_test

import (
	"encoding/base64"
	"testing"

	"github.com/imgsrv/imgsrv/internal/tusname"
)

func TestMetadataIsWhatTusSays(t *testing.T) {
	t.Parallel()
	got := tusname.Metadata("s", "v", "f")
	want := "session " + base64.StdEncoding.EncodeToString([]byte("s")) + ",variant " + base64.StdEncoding.EncodeToString([]byte("v")) + ",format " + base64.StdEncoding.EncodeToString([]byte("f"))
	if got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestIDsAreReadAsTheyAreWritten(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, 7, 9999} {
		if session, got, ok := tusname.Parse(tusname.ID("s", n)); session != "s" || got != n || !ok {
			t.Errorf("%d: %s, %d, %v", n, session, got, ok)
		}
	}
	for _, id := range []string{"", "s", "s.", "s.-1", "s.+1", "s.01", "s.1.2", "s.12345", "s.x"} {
		if session, n, ok := tusname.Parse(id); ok {
			t.Errorf("%q is read as %s, %d", id, session, n)
		}
	}
}
