package events

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var withdrawnAt = time.Date(2026, 11, 25, 9, 0, 0, 0, time.UTC)

func someVersion(name string, state VersionState) Current[Version] {
	return Current[Version]{State: Version{Image: "a", Version: name, State: state, UploadID: "upload of " + name}, Sequence: 7}
}

func someAlias(name, version string, sequence Sequence) Current[Alias] {
	return Current[Alias]{State: Alias{Image: "a", Alias: name, Version: version}, Sequence: sequence}
}

func TestAWithdrawalTakesTheAliasesAlong(t *testing.T) {
	t.Parallel()
	command := WithdrawVersion{Withdrawal: Withdrawal{Reason: "CVE", By: "admin", At: withdrawnAt}, Version: someVersion("2", StatePublished),
		Aliases: []Current[Alias]{someAlias("stable", "2", 11), someAlias("old", "1", 12), someAlias("edge", "2", 13), {State: Alias{Image: "b", Alias: "x", Version: "2"}}}}
	withdrawn := command.Version.State
	withdrawn.State, withdrawn.Withdrawal = StateWithdrawn, &command.Withdrawal
	last := Change{Fact: VersionWithdrawn{withdrawn}, Expect: 7}

	_, err := Withdraw(command)
	if !IsCode(err, CodeAliasInUse) || err.Error() != "version 2 of image a is named by edge, stable: move what names it to another version, or remove it, in the same request" {
		t.Errorf("with aliases: %v", err)
	}
	moving := command
	moving.MoveTo, moving.Target = "1", Current[Version]{State: someVersion("1", StatePublished).State, Sequence: 3}
	changes, err := Withdraw(moving)
	want := []Change{
		{Fact: AliasMoved{Alias: Alias{Image: "a", Alias: "stable", Version: "1", UploadID: "upload of 1"}, Previous: "2", MovedBy: MovedByHand}, Expect: 11},
		{Fact: AliasMoved{Alias: Alias{Image: "a", Alias: "edge", Version: "1", UploadID: "upload of 1"}, Previous: "2", MovedBy: MovedByHand}, Expect: 13},
		{Fact: VersionNamed{moving.Target.State}, Expect: 3}, last,
	}
	if diff := cmp.Diff(want, changes); err != nil || diff != "" {
		t.Errorf("moving: %v (-want +got):\n%s", err, diff)
	}
	removing := command
	removing.RemoveAliases = true
	changes, err = Withdraw(removing)
	want = []Change{
		{Fact: AliasRemoved{Alias{Image: "a", Alias: "stable"}}, Expect: 11},
		{Fact: AliasRemoved{Alias{Image: "a", Alias: "edge"}}, Expect: 13}, last,
	}
	if diff := cmp.Diff(want, changes); err != nil || diff != "" {
		t.Errorf("removing: %v (-want +got):\n%s", err, diff)
	}
	unnamed := command
	unnamed.Aliases = nil
	changes, err = Withdraw(unnamed)
	if diff := cmp.Diff([]Change{last}, changes); err != nil || diff != "" {
		t.Errorf("unnamed: %v (-want +got):\n%s", err, diff)
	}
}

func TestWhatCannotBeWithdrawn(t *testing.T) {
	t.Parallel()
	good := WithdrawVersion{Withdrawal: Withdrawal{Reason: "CVE"}, Version: someVersion("2", StatePublished), Target: someVersion("1", StatePublished)}
	for name, test := range map[string]struct {
		change func(*WithdrawVersion)
		want   Code
	}{
		"free":               {func(c *WithdrawVersion) { c.Version = Current[Version]{} }, CodeNotFound},
		"reserved":           {func(c *WithdrawVersion) { c.Version.State.State = StateReserved }, CodeNotFound},
		"released":           {func(c *WithdrawVersion) { c.Version.State.State = StateReleased }, CodeNotFound},
		"no reason":          {func(c *WithdrawVersion) { c.Reason = " \n" }, CodeInvalid},
		"a terminal's":       {func(c *WithdrawVersion) { c.Reason = "\x1b[2J" }, CodeInvalid},
		"a long one":         {func(c *WithdrawVersion) { c.Reason = fmt.Sprintf("%*s", MaxReasonBytes+1, "x") }, CodeInvalid},
		"to itself":          {func(c *WithdrawVersion) { c.MoveTo = "2" }, CodeInvalid},
		"both ways":          {func(c *WithdrawVersion) { c.MoveTo, c.RemoveAliases = "1", true }, CodeInvalid},
		"to none":            {func(c *WithdrawVersion) { c.MoveTo, c.Target = "9", Current[Version]{} }, CodeNotFound},
		"to a withdrawn one": {func(c *WithdrawVersion) { c.MoveTo, c.Target.State.State = "1", StateWithdrawn }, CodeNotFound},
	} {
		command := good
		test.change(&command)
		if changes, err := Withdraw(command); !IsCode(err, test.want) || changes != nil {
			t.Errorf("%s: %v, %v, want %s", name, changes, err, test.want)
		}
	}
	again := good
	again.Version.State.State = StateWithdrawn
	if changes, err := Withdraw(again); err != nil || changes != nil {
		t.Errorf("a second time: %v, %v", changes, err)
	}
}

func TestARestoredVersionIsAsBefore(t *testing.T) {
	t.Parallel()
	before := someVersion("2", StatePublished)
	changes, err := Withdraw(WithdrawVersion{Withdrawal: Withdrawal{Reason: "CVE", By: "admin", At: withdrawnAt}, Version: before})
	if err != nil {
		t.Fatal(err)
	}
	withdrawn := Current[Version]{State: Fold(before.State, changes[0].Fact), Sequence: 8}
	changes, err = Restore(withdrawn, "boss", withdrawnAt)
	want := before.State
	want.Restoration = &Restoration{By: "boss", At: withdrawnAt}
	if diff := cmp.Diff([]Change{{Fact: VersionRestored{want}, Expect: 8}}, changes); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	if changes, err := Restore(before, "boss", withdrawnAt); err != nil || changes != nil {
		t.Errorf("a published one: %v, %v", changes, err)
	}
	for _, state := range []VersionState{StateFree, StateReserved, StateReleased} {
		if _, err := Restore(someVersion("2", state), "boss", withdrawnAt); !IsCode(err, CodeNotFound) {
			t.Errorf("one that is %q: %v", state, err)
		}
	}
}

func TestRetentionKeepsWhatItSays(t *testing.T) {
	t.Parallel()
	now := withdrawnAt
	var versions []Version
	for age := range 6 { // days; v0 is the newest
		v := someVersion(fmt.Sprintf("v%d", age), StatePublished).State
		v.Manifest = &Manifest{PublishedAt: now.Add(-time.Duration(age)*24*time.Hour - time.Minute)}
		versions = append(versions, v)
	}
	state := func(i int, state VersionState) func([]Version) { return func(v []Version) { v[i].State = state } }
	for name, test := range map[string]struct {
		Retention
		aliases []Alias
		change  func([]Version)
		want    []string
	}{
		"all":               {},
		"the last two":      {Retention: Retention{KeepLast: 2}, want: []string{"v5", "v4", "v3", "v2"}},
		"more than are":     {Retention: Retention{KeepLast: 9}},
		"three days":        {Retention: Retention{KeepDays: 3}, want: []string{"v5", "v4", "v3"}},
		"either":            {Retention: Retention{KeepLast: 2, KeepDays: 4}, want: []string{"v5", "v4"}},
		"the newest":        {Retention: Retention{KeepDays: 1}, change: state(0, StateWithdrawn), want: []string{"v5", "v4", "v3", "v2"}},
		"withdrawn":         {Retention: Retention{KeepLast: 2}, change: state(1, StateWithdrawn), want: []string{"v5", "v4", "v3"}},
		"reserved":          {Retention: Retention{KeepLast: 4}, change: state(5, StateReserved), want: []string{"v4"}},
		"what aliases name": {Retention: Retention{KeepLast: 1}, aliases: []Alias{{Alias: "x", Version: "v4"}, {Alias: "gone"}}, want: []string{"v5", "v3", "v2", "v1"}},
		"what came back":    {Retention: Retention{KeepLast: 4}, change: func(v []Version) { v[5].Restoration = &Restoration{} }, want: []string{"v4"}},
	} {
		all := append([]Version(nil), versions[3:]...)
		all = append(all, versions[:3]...)
		if test.change != nil {
			ordered := append([]Version(nil), versions...)
			test.change(ordered)
			all = ordered
		}
		var got []string
		for _, v := range test.Unkept(all, test.aliases, now) {
			got = append(got, v.Version)
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestAPolicyIsOfAnImageAndItsFormIsChecked(t *testing.T) {
	t.Parallel()
	image := Current[Image]{State: Image{Name: "a", Visibility: Public, Flavours: []string{"default"}}, Sequence: 4}
	two, many := 2, MaxDeltas+1
	policy := Policy{Formats: []PolicyFormat{{Format: "disk.raw.zst", Required: true}}, Deltas: &two, Retention: Retention{KeepLast: 3}}
	changes, err := SetPolicy(image, policy)
	want := image.State
	want.Policy = &policy
	if diff := cmp.Diff([]Change{{Fact: ImagePolicySet{want}, Expect: 4}}, changes); err != nil || diff != "" {
		t.Fatalf("%v (-want +got):\n%s", err, diff)
	}
	set := Current[Image]{State: Fold(image.State, changes[0].Fact), Sequence: 5}
	if changes, err := SetPolicy(set, policy); err != nil || changes != nil {
		t.Errorf("the same again: %v, %v", changes, err)
	}
	if _, err := SetPolicy(Current[Image]{}, policy); !IsCode(err, CodeNotFound) {
		t.Errorf("of no image: %v", err)
	}
	for name, bad := range map[string]Policy{
		"format": {Formats: []PolicyFormat{{Format: "../x"}}}, "twice": {Formats: []PolicyFormat{{Format: "x"}, {Format: "x"}}},
		"many": {Formats: make([]PolicyFormat, MaxPolicyFormats+1)}, "deltas": {Deltas: &many},
		"last": {Retention: Retention{KeepLast: -1}}, "days": {Retention: Retention{KeepDays: maxKeep + 1}},
	} {
		if _, err := SetPolicy(set, bad); !IsCode(err, CodeInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A publication that says something new leaves the policy alone, and the visibility that was changed.
	changes, err = ChangeVisibility(set, Private)
	if err != nil || len(changes) != 1 {
		t.Fatalf("change visibility: %v, %v", changes, err)
	}
	hidden := Current[Image]{State: Fold(set.State, changes[0].Fact), Sequence: 6}
	described := Fold(hidden.State, describe(hidden, Upload{Image: "a", OS: "debian", Visibility: Public})[0].Fact)
	if described.Visibility != Private || described.Policy == nil || described.OS != "debian" {
		t.Errorf("described as %+v", described)
	}
	if changes, err := ChangeVisibility(hidden, Private); err != nil || changes != nil {
		t.Errorf("the same visibility: %v, %v", changes, err)
	}
	if _, err := ChangeVisibility(hidden, "secret"); !IsCode(err, CodeInvalid) {
		t.Errorf("an unknown visibility: %v", err)
	}
	if _, err := ChangeVisibility(Current[Image]{}, Public); !IsCode(err, CodeNotFound) {
		t.Errorf("of no image: %v", err)
	}
}
