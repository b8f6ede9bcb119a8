package testtool_test

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/imgsrv/imgsrv/internal/testtool"
)

// recorder stands for a test and notes how it was ended.
type recorder struct {
	testing.TB
	ending string
}

func (r *recorder) Helper() {}

func (r *recorder) Skipf(format string, args ...any) {
	r.ending = "skip: " + fmt.Sprintf(format, args...)
	runtime.Goexit()
}

func (r *recorder) Fatalf(format string, args ...any) {
	r.ending = "fail: " + fmt.Sprintf(format, args...)
	runtime.Goexit()
}

// Not parallel: the rule reads the environment.
func TestAbsentToolSkipsAndFailsWhereToolsArePromised(t *testing.T) {
	const none = "imgsrv-has-no-such-program"
	for _, c := range []struct {
		name, require string
		programs      []string
		want          string
	}{
		{"present", "1", []string{"go"}, ""},
		{"absent", "", []string{"go", none}, "skip: this test needs what is absent here: " + none},
		{"absent, other value", "0", []string{none}, "skip: this test needs what is absent here: " + none},
		{"absent but promised", "1", []string{none, "go"},
			"fail: this test needs what is absent here, and IMGSRV_TEST_REQUIRE_TOOLS=1 promises it: " + none},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv(testtool.RequireVariable, c.require)
			rec := &recorder{}
			done := make(chan struct{})
			go func() {
				defer close(done)
				testtool.Need(rec, c.programs...)
			}()
			<-done
			if diff := cmp.Diff(c.want, rec.ending); diff != "" {
				t.Error(diff)
			}
		})
	}
}
