package events

import (
	"encoding/json"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestAnUpcastAliasTellsWhoMovedIt(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		stored string
		want   AliasMoved
	}{
		"a publication": {`{"image":"debian","alias":"latest","version":"12","upload_id":"u","job_id":"j"}`,
			AliasMoved{Alias: Alias{Image: "debian", Alias: "latest", Version: "12", UploadID: "u", JobID: "j"}, MovedBy: MovedByPublication}},
		"somebody by hand": {`{"image":"debian","alias":"latest","version":"12","upload_id":"u"}`,
			AliasMoved{Alias: Alias{Image: "debian", Alias: "latest", Version: "12", UploadID: "u"}, MovedBy: MovedByHand}},
	} {
		fact, err := Decode("imgsrv.alias.moved.v1", []byte(test.stored))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(Fact(test.want), fact); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestAMovedAliasTellsWhereItWasAndWhoMovedIt(t *testing.T) {
	t.Parallel()
	target := Current[Version]{State: Version{Image: "debian", Version: "12", State: StatePublished, UploadID: testUpload}, Sequence: 1}
	img := Current[Image]{State: Image{Name: "debian"}, Sequence: 2}
	for previous, current := range map[string]Current[Alias]{
		"":   {}, // new
		"11": {State: Alias{Image: "debian", Alias: "stable", Version: "11"}, Sequence: 7},
	} {
		changes, err := MoveAlias("debian", "stable", "12", target, img, Current[Version]{}, false, current)
		if err != nil {
			t.Fatal(err)
		}
		byPublication := moveAtPublication(current, "stable", Upload{ID: testUpload, JobID: "job", Image: "debian", Version: "12"})
		next := Alias{Image: "debian", Alias: "stable", Version: "12", UploadID: testUpload}
		published := next
		published.JobID = "job"
		want := []Change{
			{Fact: VersionNamed{target.State}, Expect: target.Sequence},
			{Fact: AliasMoved{Alias: next, Previous: previous, MovedBy: MovedByHand}, Expect: current.Sequence},
			{Fact: AliasMoved{Alias: published, Previous: previous, MovedBy: MovedByPublication}, Expect: current.Sequence},
		}
		if diff := cmp.Diff(want, append(changes, byPublication...)); diff != "" {
			t.Errorf("from %q (-want +got):\n%s", previous, diff)
		}
	}
}

// A state that was read from an old version, and written as today's, is read as the same state: an upcast
// said all that there was to say.
func TestUpcastingIsDoneOnce(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		word := rapid.SampledFrom([]string{"", "debian", "12.5.0", "ü \x00", "a.b/*>"})
		data, err := json.Marshal(aliasMovedV1{Image: word.Draw(t, "image"), Alias: word.Draw(t, "alias"), Version: word.Draw(t, "version"),
			UploadID: word.Draw(t, "upload"), JobID: word.Draw(t, "job")})
		if err != nil {
			t.Fatal(err)
		}
		once, err := Decode("imgsrv.alias.moved.v1", data)
		if err != nil {
			t.Fatal(err)
		}
		encoded, err := json.Marshal(once)
		if err != nil {
			t.Fatal(err)
		}
		again, err := Decode(once.Type(), encoded)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(once, again); diff != "" {
			t.Errorf("(-upcast +read again):\n%s", diff)
		}
		// A v1 reader's view of the v2 payload, whose properties are all still there, is upcast to the same but for the past.
		viaOld, err := Decode("imgsrv.alias.moved.v1", encoded)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(once, viaOld); diff != "" {
			t.Errorf("(-upcast +upcast again):\n%s", diff)
		}
	})
}

// Both versions of a moved alias are read without a panic, whatever is stored, and to one state.
func FuzzDecodeAliasMoved(f *testing.F) {
	for _, name := range []string{"alias_moved.v1.json", "alias_moved.v1.current.json", "alias_moved.v2.json"} {
		data, err := os.ReadFile("testdata/" + name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte(`{"image":1}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, data []byte) {
		old, errOld := Decode("imgsrv.alias.moved.v1", data)
		now, errNow := Decode("imgsrv.alias.moved.v2", data)
		if errNow == nil && errOld != nil {
			t.Fatalf("v2 reads what v1 refuses: %v", errOld) // v2 only added properties
		}
		if errNow != nil {
			return
		}
		if diff := cmp.Diff(Fold(Alias{}, old), Fold(Alias{}, now)); diff != "" {
			t.Errorf("the alias after v1 and after v2 (-v1 +v2):\n%s", diff)
		}
		if by := old.(AliasMoved).MovedBy; by != MovedByHand && by != MovedByPublication {
			t.Errorf("moved by %q", by)
		}
		old.Entity().Subject()
	})
}
