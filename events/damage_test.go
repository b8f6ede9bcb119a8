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
	collected := bad
	collected.State = BlobIsCollected
	for _, test := range []struct {
		name    string
		current Current[Blob]
		want    []Change
	}{
		{"new bytes", Current[Blob]{}, []Change{{Fact: BlobPromoted{b}}}},
		{"bytes that are there", good, []Change{{Fact: BlobRetained{b}, Expect: 7}}},
		{"bytes in place of bad ones", rotten, []Change{{Fact: BlobRepaired{b}, Expect: 8}}},
		{"bytes that were damaged, and then garbage", Current[Blob]{State: collected, Sequence: 9}, []Change{{Fact: BlobPromoted{b}, Expect: 9}}},
	} {
		if diff := cmp.Diff(test.want, PromoteBlob(b, test.current)); diff != "" {
			t.Errorf("promote %s (-want +got):\n%s", test.name, diff)
		}
	}
	if changes := DamageBlob(b, Current[Blob]{State: Blob{Digest: b.Digest, State: BlobIsCollecting}, Sequence: 9}, damage); len(changes) != 0 {
		t.Errorf("garbage is damaged: %v", changes)
	}
}
