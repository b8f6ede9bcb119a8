package events

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestBlobsAreDamagedOnceAndRepairedByWhoKnewOfIt(t *testing.T) {
	t.Parallel()
	b := Blob{Digest: "sha256:aa", Size: 3, MediaType: "text/plain"}
	damage := Damage{FoundAt: time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC), Reason: DamageDigest}
	bad := b
	bad.Damage = &damage
	good, rotten := Current[Blob]{State: b, Sequence: 7}, Current[Blob]{State: bad, Sequence: 8}
	for _, test := range []struct {
		name string
		got  []Change
		want []Change
	}{
		{"a recorded blob is damaged", DamageBlob(Blob{Digest: b.Digest}, good, damage), []Change{{Fact: BlobDamaged{bad}, Expect: 7}}},
		{"one that only a manifest knows too", DamageBlob(b, Current[Blob]{}, damage), []Change{{Fact: BlobDamaged{bad}}}},
		{"the first finding stands", DamageBlob(b, rotten, Damage{Reason: DamageMissing}), nil},
		{"a damaged one is repaired", RepairBlob(rotten), []Change{{Fact: BlobRepaired{b}, Expect: 8}}},
		{"a good one needs no repair", RepairBlob(good), nil},
	} {
		if diff := cmp.Diff(test.want, test.got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.name, diff)
		}
	}
	for _, test := range []struct {
		name    string
		current Current[Blob]
		seen    Sequence
		want    []Change
		code    Code
	}{
		{"new bytes", Current[Blob]{}, 0, []Change{{Fact: BlobPromoted{b}}}, ""},
		{"bytes that are there", good, 7, nil, ""},
		{"bytes in place of bad ones", rotten, 8, []Change{{Fact: BlobRepaired{b}, Expect: 8}}, ""},
		{"bytes that were left out for bad ones", rotten, 7, nil, CodeDamagedMeanwhile},
		{"as before, of an unknown blob", rotten, 0, nil, CodeDamagedMeanwhile},
	} {
		got, err := PromoteBlob(b, test.current, test.seen)
		if diff := cmp.Diff(test.want, got); diff != "" || (err != nil) != (test.code != "") || err != nil && !IsCode(err, test.code) {
			t.Errorf("promote %s: %v (-want +got):\n%s", test.name, err, diff)
		}
	}
}
