package faults

import (
	"strings"
	"testing"
)

func TestNamesAreTheSameInEveryRun(t *testing.T) {
	t.Parallel()
	const id, digest = "019aba40-0000-7000-8000-0000000000ab", "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
	for about, want := range map[string]string{
		"/tmp/1/storage/uploads/" + id + "/0.state":       "before x uploads/ID/0.state",
		"/tmp/1/storage/uploads/" + id + "/.tmp-73649812": "before x uploads/ID/.tmp-N",
		"/tmp/1/storage/cas/sha256/9f/" + digest:          "before x cas/sha256/XX/DIGEST",
		"/tmp/1/storage/cas/sha256/9f":                    "before x cas/sha256/XX",
		"/tmp/1/storage/uploads/.tmp-probe-12":            "before x uploads/.tmp-probe-N",
		"/tmp/1/storage/uploads/.gone-" + id:              "before x uploads/.gone-ID",
		"/tmp/1/data/admin.token":                         "before x admin.token",
		"/tmp/1/data/.secret-83":                          "before x .secret-N",
		"imgsrv.job.queued.v1":                            "before x imgsrv.job.queued.v1",
		"":                                                "before x",
	} {
		if got := Name("before x", about); got != want {
			t.Errorf("%s is %q, want %q", strings.ReplaceAll(about, digest, "…"), got, want)
		}
	}
}
