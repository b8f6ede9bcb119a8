package problem_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/problem"
)

// codesIn lists the values of the constants of type Code in a file.
func codesIn(t *testing.T, path string) []events.Code {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var codes []events.Code
	ast.Inspect(file, func(node ast.Node) bool {
		spec, ok := node.(*ast.ValueSpec)
		if !ok || len(spec.Names) != 1 || !strings.HasPrefix(spec.Names[0].Name, "Code") || len(spec.Values) != 1 {
			return true
		}
		text, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
		if err != nil {
			t.Fatal(err)
		}
		codes = append(codes, events.Code(text))
		return true
	})
	return codes
}

func TestEachCodeHasAStatus(t *testing.T) {
	t.Parallel()
	codes := append(codesIn(t, "../../events/errors.go"), codesIn(t, "problem.go")...)
	if len(codes) < 25 {
		t.Fatalf("only %d codes were found", len(codes))
	}
	for _, code := range codes {
		details := problem.New(code, "x")
		if details.Status < 400 || details.Title == "" || details.Status == 500 && code != problem.CodeInternal && code != problem.CodeBlobDamaged {
			t.Errorf("%s: %+v", code, details)
		}
		if details.Type != problem.TypeBase+string(code) || details.Code != string(code) {
			t.Errorf("%s: %+v", code, details)
		}
		if general := problem.OfStatus(details.Status, "x"); general.Status != details.Status && details.Status != 409 && details.Status < 500 && details.Status != 410 && details.Status != 423 {
			t.Errorf("status %d becomes %d", details.Status, general.Status)
		}
	}
}

func TestErrorsBecomeProblems(t *testing.T) {
	t.Parallel()
	rule := &events.Error{Code: events.CodeInvalid, Text: "two rules", Fields: []events.FieldError{{Field: "a", Text: "rule a", Value: "x"}, {Field: "b", Text: "rule b"}}}
	for name, test := range map[string]struct {
		err  error
		want problem.Details
	}{
		"a refusal": {fmt.Errorf("open: %w", &events.Error{Code: events.CodeVersionExists, Text: "there", Upload: "id"}),
			problem.Details{Status: 409, Code: "version-exists", Title: "The version exists", Detail: "there", StatusURL: "/api/uploads/id"}},
		"broken rules": {rule, problem.Details{Status: 422, Code: "invalid-request", Title: "The request breaks a rule", Detail: "two rules",
			Errors: []*problem.Field{{Location: "a", Message: "rule a", Value: "x"}, {Location: "b", Message: "rule b"}}}},
		"the log is away": {fmt.Errorf("x: %w", jetstream.ErrUnavailable), problem.Details{Status: 503, Code: "unavailable", Title: "For now unavailable",
			Detail: "the event log is busy or doesn't answer: try again"}},
		"a deadline": {fmt.Errorf("x: %w", context.DeadlineExceeded), problem.Details{Status: 503, Code: "unavailable", Title: "For now unavailable",
			Detail: "the request was not finished in time: try again"}},
		"a secret": {errors.New("password is 1234"), problem.Details{Status: 500, Code: "internal-error", Title: "Internal error",
			Detail: "imgsrv failed to do this; its log says why"}},
		"a problem": {fmt.Errorf("x: %w", problem.New(problem.CodeGone, "gone")), problem.Details{Status: 410, Code: "gone", Title: "Gone", Detail: "gone"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test.want.Type = problem.TypeBase + test.want.Code
			got, err := json.Marshal(problem.From(test.err))
			if err != nil {
				t.Fatal(err)
			}
			want, err := json.Marshal(&test.want)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestAProblemReplacesTheHeadersOfTheAnswerItStandsFor(t *testing.T) {
	t.Parallel()
	for _, method := range []string{http.MethodGet, http.MethodHead} {
		var log bytes.Buffer
		w := httptest.NewRecorder()
		for _, name := range []string{"ETag", "Content-Length", "Content-Disposition", "Repr-Digest", "Last-Modified"} {
			w.Header().Set(name, "7")
		}
		w.Header().Set("Cache-Control", "public, immutable")
		problem.Write(w, httptest.NewRequest(method, "/", nil), slog.New(slog.NewTextHandler(&log, nil)), errors.New("disk on fire"))
		want := http.Header{"Content-Type": {"application/problem+json"}, "Cache-Control": {"no-store"}, "Imgsrv-Problem": {"internal-error"}}
		if diff := cmp.Diff(want, w.Header()); diff != "" || w.Code != 500 || (w.Body.Len() == 0) != (method == http.MethodHead) {
			t.Errorf("%s: %d, %d bytes, %s", method, w.Code, w.Body.Len(), diff)
		}
		if strings.Count(log.String(), "disk on fire") != 1 {
			t.Errorf("log: %s", log.String())
		}
	}
	w := httptest.NewRecorder()
	problem.Write(w, httptest.NewRequest(http.MethodGet, "/", nil), slog.New(slog.DiscardHandler), problem.New(problem.CodeNotYet, ""))
	if w.Header().Get("Retry-After") != "1" {
		t.Errorf("headers: %v", w.Header())
	}
}
