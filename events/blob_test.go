package events

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// Whoever needs a blob has a fact of it in each state, on top of the one that was read: so garbage collection, whose
// facts are on top of what it read, can't be right at the same time.
func TestABlobIsNeededAndCollectedByFactsOnTopOfWhatWasRead(t *testing.T) {
	t.Parallel()
	is := func(state BlobState) Blob {
		return Blob{Digest: digestA, Size: 7, MediaType: "text/plain", State: state}
	}
	at := func(state BlobState) Current[Blob] { return Current[Blob]{State: is(state), Sequence: 4} }
	for name, test := range map[string]struct {
		current                Current[Blob]
		promote, begin, finish []Change
	}{
		"unknown": {Current[Blob]{}, []Change{{Fact: BlobPromoted{is("")}}}, []Change{{Fact: BlobCollecting{is(BlobIsCollecting)}}}, nil},
		"present": {at(""), []Change{{Fact: BlobRetained{is("")}, Expect: 4}}, []Change{{Fact: BlobCollecting{is(BlobIsCollecting)}, Expect: 4}}, nil},
		"collecting": {at(BlobIsCollecting), []Change{{Fact: BlobPromoted{is("")}, Expect: 4}}, nil,
			[]Change{{Fact: BlobCollected{is(BlobIsCollected)}, Expect: 4}}},
		"collected": {at(BlobIsCollected), []Change{{Fact: BlobPromoted{is("")}, Expect: 4}}, []Change{{Fact: BlobCollecting{is(BlobIsCollecting)}, Expect: 4}}, nil},
	} {
		got := [][]Change{PromoteBlob(is(""), test.current), BeginCollecting(is(""), test.current), EndCollecting(test.current)}
		if diff := cmp.Diff([][]Change{test.promote, test.begin, test.finish}, got); diff != "" {
			t.Errorf("%s: promote, begin, finish (-want +got):\n%s", name, diff)
		}
	}
}

// A session holds what it is told of: each blob once, before the reservation, on top of what was read.
func TestASessionHoldsTheBlobsThatItIsToldOf(t *testing.T) {
	t.Parallel()
	u := testSession()
	for i := range u.Variants[0].Files {
		u.Variants[0].Files[i].State, u.Variants[0].Files[i].Digest = FilePresent, digestB
	}
	changes, err := initiate(u)
	if err != nil {
		t.Fatal(err)
	}
	held := 0
	for i, c := range changes {
		if fact, ok := c.Fact.(BlobRetained); ok && fact.Digest == digestB && c.Expect == 3 && i < len(changes)-1 {
			held++
		}
	}
	if held != 1 {
		t.Errorf("%d facts hold the blob: %+v", held, changes)
	}
	for _, state := range []BlobState{BlobIsCollecting, BlobIsCollected} {
		cmd := InitiateUpload{Session: u, IsArchitecture: noArchitecture,
			Present: map[Digest]Current[Blob]{digestB: {State: Blob{Digest: digestB, State: state}, Sequence: 3}}}
		if _, err := Initiate(cmd); err == nil {
			t.Errorf("a session is told that a blob is there that is %s", state)
		}
	}
}

// A version that was withdrawn for long needs its bytes no more, and then nobody can restore it.
func TestACollectedVersionCantBeRestored(t *testing.T) {
	t.Parallel()
	changes, err := Withdraw(WithdrawVersion{Withdrawal: Withdrawal{Reason: "CVE", By: "admin", At: withdrawnAt}, Version: someVersion("2", StatePublished)})
	if err != nil {
		t.Fatal(err)
	}
	withdrawn := Current[Version]{State: Fold(Version{}, changes[0].Fact), Sequence: 8}
	changes = CollectVersion(withdrawn, withdrawnAt.Add(time.Hour))
	if len(changes) != 1 || changes[0].Expect != 8 {
		t.Fatalf("%+v", changes)
	}
	collected := Current[Version]{State: Fold(Version{}, changes[0].Fact), Sequence: 9}
	if w := collected.State.Withdrawal; collected.State.State != StateWithdrawn || !w.CollectedAt.Equal(withdrawnAt.Add(time.Hour)) || w.Reason != "CVE" {
		t.Errorf("collected: %+v", collected.State)
	}
	if withdrawn.State.Withdrawal.CollectedAt != (time.Time{}) {
		t.Error("the state before was changed")
	}
	if _, err := Restore(collected, "boss", withdrawnAt); !IsCode(err, CodeCollected) {
		t.Errorf("restored: %v", err)
	}
	for name, v := range map[string]Current[Version]{"again": collected, "published": someVersion("2", StatePublished)} {
		if changes := CollectVersion(v, withdrawnAt); changes != nil {
			t.Errorf("%s: %+v", name, changes)
		}
	}
}
