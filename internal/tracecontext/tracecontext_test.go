package tracecontext_test

import (
	"testing"

	"go.opentelemetry.io/otel/trace"

	"github.com/imgsrv/imgsrv/internal/tracecontext"
)

func TestATraceParentGoesThroughAContext(t *testing.T) {
	t.Parallel()
	for given, want := range map[string]string{
		"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01":        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
		"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00":        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00",
		"cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-future": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
		"00-00000000000000000000000000000000-b7ad6b7169203331-01":        "",
		"00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01":        "",
		"imgsrv_secret": "",
		"":              "",
	} {
		if got := tracecontext.Of(tracecontext.With(t.Context(), given)); got != want {
			t.Errorf("%q becomes %q, want %q", given, got, want)
		}
	}
}

// What an append pays where there are no traces.
func BenchmarkOff(b *testing.B) {
	ctx := b.Context()
	for b.Loop() {
		ctx, end := tracecontext.Start(tracecontext.With(ctx, ""), nil, "append", trace.SpanKindProducer)
		if tracecontext.Of(ctx) != "" {
			b.Fatal("a trace out of nothing")
		}
		end(nil)
	}
}
