package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
)

// FuzzImport reads lines of an import. What passes is exported as a line that passes too, with the same bytes.
func FuzzImport(f *testing.F) {
	data, err := os.ReadFile("../../events/testdata/alias_moved.v1.json")
	if err != nil {
		f.Fatal(err)
	}
	fact, err := events.Decode("imgsrv.alias.moved.v1", data)
	if err != nil {
		f.Fatal(err)
	}
	record := jetstream.Record{Sequence: 1, Subject: fact.Entity().Subject(), Data: data, Headers: map[string][]string{
		"ce-id": {"1"}, "ce-type": {"imgsrv.alias.moved.v1"}, "ce-time": {"2026-01-01T00:00:00Z"}}}
	line, err := json.Marshal(record)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(line, false)
	record.Data, record.Base64 = nil, data
	packed, err := json.Marshal(record)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(bytes.Join([][]byte{packed, line, []byte("{")}, []byte("\n")), true)
	f.Add([]byte(strings.Repeat("[", 10_050)), false)
	f.Add([]byte("\n\n"), false)
	f.Fuzz(func(t *testing.T, body []byte, breaks bool) {
		reader := bytes.NewReader(body)
		left, ended := bytes.Count(body, []byte("\n"))+1, false
		lines := left
		source := recordsOf(reader, func() {})
		if breaks {
			source = recordsOf(iotest.TimeoutReader(iotest.OneByteReader(reader)), func() {})
		}
		for record, err := range source {
			if ended {
				t.Fatal("records come after an error")
			}
			var bad *jetstream.BadRecord
			if err != nil {
				if ended = true; !errors.As(err, &bad) && !errors.Is(err, errBrokenBody) || bad != nil && (bad.Line < 1 || bad.Line > lines) {
					t.Fatalf("error %v", err)
				}
				continue
			}
			if left--; left < 0 {
				t.Fatal("more records than lines")
			}
			if record.Check(record.Sequence) != nil {
				continue
			}
			if !strings.HasPrefix(record.Subject, events.SubjectPrefix) || strings.ContainsAny(record.Subject, "*> \r\n\t") {
				t.Fatalf("an event may stand under %q", record.Subject)
			}
			again, err := json.Marshal(record)
			if err != nil {
				t.Fatalf("a record that can't be exported: %v", err)
			}
			var back jetstream.Record
			if err := json.Unmarshal(again, &back); err != nil {
				t.Fatal(err)
			}
			if err := back.Check(record.Sequence); err != nil {
				t.Fatalf("after an export: %v", err)
			}
		}
	})
}
