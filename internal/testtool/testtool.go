// Package testtool holds the one rule for tests that need a program this machine may not have: say which one and skip;
// but fail where the tools are promised to be there, as in CI. Only tests import it; it knows no tool itself.
package testtool

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// RequireVariable is the environment variable that, set to 1, turns every skip for an absent tool into a failure.
const RequireVariable = "IMGSRV_TEST_REQUIRE_TOOLS"

// Need skips (or fails) the test unless all the named programs are in $PATH.
func Need(t testing.TB, programs ...string) {
	t.Helper()
	var absent []string
	for _, name := range programs {
		if _, err := exec.LookPath(name); err != nil {
			absent = append(absent, name)
		}
	}
	if len(absent) > 0 {
		Absent(t, strings.Join(absent, ", "))
	}
}

// Absent skips (or fails) the test because something it needs is not there; what says what, and best also how to get
// it. It does not return.
func Absent(t testing.TB, what string) {
	t.Helper()
	if os.Getenv(RequireVariable) == "1" {
		t.Fatalf("this test needs what is absent here, and %s=1 promises it: %s", RequireVariable, what)
	}
	t.Skipf("this test needs what is absent here: %s", what)
}
