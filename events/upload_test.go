package events

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const (
	testUpload = "019aba40-0000-7000-8000-000000000001"
	laterID    = "019aba41-0000-7000-8000-000000000002"
	digestA    = Digest("sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa")
	digestB    = Digest("sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb")
)

var testTime = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

func testSession() Upload {
	return Upload{
		ID: testUpload, Image: "debian-bookworm", Version: "12.5.0", OS: "debian", Release: "bookworm", Visibility: Public,
		Aliases: []string{"latest"}, InitiatedAt: testTime, InitiatedBy: "admin",
		Variants: []UploadVariant{{
			Variant:  Variant{"amd64", VirtualMachine, "default"},
			Files:    []UploadFile{{Format: "disk.qcow2", Size: 100, State: FilePending}, {Format: "notes.txt", Size: 5, State: FilePending}},
			Metadata: &MadeFile{Format: FormatMetadata, Digest: digestB, Data: []byte("metadata")},
		}},
	}
}

func attached(names ...string) (files []UploadFile) {
	for _, name := range names {
		files = append(files, UploadFile{Format: name, Size: 1, State: FilePending})
	}
	return files
}

func manyAttached(n int) (files []UploadFile) {
	for i := range n {
		files = append(files, attached(fmt.Sprint("a", i))...)
	}
	return files
}

// names are n different ones.
func names(n int) (names []string) {
	for i := range n {
		names = append(names, fmt.Sprint("n", i))
	}
	return names
}

func noArchitecture(string) bool { return false }

func initiate(u Upload) ([]Change, error) {
	present := map[Digest]Current[Blob]{}
	for _, f := range u.Files() {
		if f.State == FilePresent {
			present[f.Digest] = Current[Blob]{State: Blob{Digest: f.Digest, Size: f.Size}, Sequence: 3}
		}
	}
	return Initiate(InitiateUpload{Session: u, Present: present, IsArchitecture: noArchitecture})
}

// after gives the state that a list of changes leaves of one kind of entity.
func after[S any](t *testing.T, changes []Change) Current[S] {
	t.Helper()
	var current Current[S]
	for i, change := range changes {
		next := Fold(current.State, change.Fact)
		if !cmp.Equal(next, current.State) {
			current.State, current.Sequence = next, Sequence(i+1)
		}
	}
	return current
}

func TestASessionReservesItsVersion(t *testing.T) {
	t.Parallel()
	changes, err := initiate(testSession())
	if err != nil {
		t.Fatal(err)
	}
	upload, version := after[Upload](t, changes), after[Version](t, changes)
	if upload.State.State != SessionOpen || upload.State.Complete || upload.State.JobID != JobIDFor(testUpload) {
		t.Errorf("session %+v, want open, incomplete, with its job's id", upload.State)
	}
	want := Version{Image: "debian-bookworm", Version: "12.5.0", State: StateReserved, UploadID: testUpload}
	if diff := cmp.Diff(want, version.State); diff != "" {
		t.Errorf("version (-want +got):\n%s", diff)
	}
	for _, c := range changes {
		if c.Expect != 0 {
			t.Errorf("%s expects sequence %d of a new entity", c.Fact.Type(), c.Expect)
		}
	}
}

func TestNamesAreCheckedAllAtOnce(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		change func(*Upload)
		fields []string
	}{
		"path in the image":       {func(u *Upload) { u.Image = "../etc" }, []string{"image"}},
		"upper-case image":        {func(u *Upload) { u.Image = "Debian" }, []string{"image"}},
		"empty version":           {func(u *Upload) { u.Version = "" }, []string{"version"}},
		"dots in the version":     {func(u *Upload) { u.Version = "1..2" }, []string{"version"}},
		"slash in the alias":      {func(u *Upload) { u.Aliases = []string{"a/b"} }, []string{"aliases[0]"}},
		"alias twice":             {func(u *Upload) { u.Aliases = []string{"a", "a"} }, []string{"aliases[1]"}},
		"alias is the version":    {func(u *Upload) { u.Aliases = []string{"12.5.0"} }, []string{"aliases[0]"}},
		"alias is a flavour":      {func(u *Upload) { u.Aliases = []string{"default"} }, []string{"variants[0].flavour"}},
		"no variants":             {func(u *Upload) { u.Variants = nil }, []string{"variants"}},
		"no files":                {func(u *Upload) { u.Variants[0].Files = nil }, []string{"variants[0].files"}},
		"variant twice":           {func(u *Upload) { u.Variants = append(u.Variants, u.Variants[0]) }, []string{"variants[1]"}},
		"format twice":            {func(u *Upload) { u.Variants[0].Files[1].Format = "disk.qcow2" }, []string{"variants[0].files[1].format"}},
		"hidden format":           {func(u *Upload) { u.Variants[0].Files[0].Format = ".htaccess" }, []string{"variants[0].files[0].format"}},
		"no size":                 {func(u *Upload) { u.Variants[0].Files[0].Size = 0 }, []string{"variants[0].files[0].size"}},
		"negative size":           {func(u *Upload) { u.Variants[0].Files[0].Size = -1 }, []string{"variants[0].files[0].size"}},
		"unknown type":            {func(u *Upload) { u.Variants[0].Type = "vm" }, []string{"variants[0].type"}},
		"dotted flavour":          {func(u *Upload) { u.Variants[0].Flavour = "a.b" }, []string{"variants[0].flavour"}},
		"unknown visibility":      {func(u *Upload) { u.Visibility = "secret" }, []string{"visibility"}},
		"escape in description":   {func(u *Upload) { u.Description = "a\x1b[2J" }, []string{"description"}},
		"broken text":             {func(u *Upload) { u.OS = "\xff" }, []string{"os"}},
		"path as an attachment":   {func(u *Upload) { u.Attachments = attached("../x") }, []string{"attachments[0].name"}},
		"attachment twice":        {func(u *Upload) { u.Attachments = attached("a", "b", "a") }, []string{"attachments[2].name"}},
		"checksums attached":      {func(u *Upload) { u.Attachments = attached("sha256sums.minisig") }, []string{"attachments[0].name"}},
		"empty attachment":        {func(u *Upload) { u.Attachments = []UploadFile{{Format: "a"}} }, []string{"attachments[0].size"}},
		"too many attachments":    {func(u *Upload) { u.Attachments = manyAttached(MaxFiles - 1) }, []string{"variants"}},
		"too many aliases":        {func(u *Upload) { u.Aliases = names(MaxAliases + 1) }, []string{"aliases"}},
		"too much to derive":      {func(u *Upload) { u.Derive = names(MaxDerive + 1) }, []string{"derive"}},
		"derived twice":           {func(u *Upload) { u.Derive = []string{"disk.vmdk", "disk.vmdk"} }, []string{"derive[1]"}},
		"several rules at a time": {func(u *Upload) { u.Image, u.Version = "", "" }, []string{"image", "version"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := testSession().clone()
			test.change(&u)
			_, err := initiate(u)
			var refusal *Error
			if !errors.As(err, &refusal) || refusal.Code != CodeInvalid {
				t.Fatalf("error %v, want %s", err, CodeInvalid)
			}
			var fields []string
			for _, f := range refusal.Fields {
				fields = append(fields, f.Field)
				if f.Text == "" {
					t.Errorf("field %s names no rule", f.Field)
				}
			}
			if diff := cmp.Diff(test.fields, fields); diff != "" {
				t.Errorf("fields (-want +got):\n%s", diff)
			}
		})
	}
}

func TestARefusalIsBounded(t *testing.T) {
	t.Parallel()
	u := testSession().clone()
	u.Attachments = attached(slices.Repeat([]string{".."}, MaxFiles)...)
	_, err := initiate(u)
	var refusal *Error
	if !errors.As(err, &refusal) || len(refusal.Fields) != MaxFieldErrors || !strings.Contains(refusal.Text, "rules") {
		t.Errorf("%d rules are named by %v", len(refusal.Fields), err)
	}
}

func TestAVersionBelongsToOneSession(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		version Version
		want    Code
	}{
		"published":  {Version{State: StatePublished, UploadID: "other"}, CodeVersionExists},
		"withdrawn":  {Version{State: StateWithdrawn, UploadID: "other"}, CodeVersionExists},
		"in the way": {Version{State: StateReserved, UploadID: "other"}, CodeVersionInProgress},
		"free again": {Version{State: StateReleased, UploadID: "other"}, ""},
	} {
		changes, err := Initiate(InitiateUpload{Session: testSession(), Version: Current[Version]{State: test.version, Sequence: 7}, IsArchitecture: noArchitecture})
		var refusal *Error
		switch {
		case test.want == "" && (err != nil || changes[1].Expect != 7):
			t.Errorf("%s: %v %v, want a reservation after sequence 7", name, changes, err)
		case test.want != "" && (!errors.As(err, &refusal) || refusal.Code != test.want || refusal.Upload != "other"):
			t.Errorf("%s: error %v, want %s that names the other session", name, err, test.want)
		}
	}
}

func TestAPublicationDoesNotChangeWhoMaySeeAnImage(t *testing.T) {
	t.Parallel()
	cmd := InitiateUpload{Session: testSession(), IsArchitecture: noArchitecture, Image: Current[Image]{State: Image{Visibility: Private}, Sequence: 3}}
	if _, err := Initiate(cmd); !IsCode(err, CodeVisibility) {
		t.Errorf("a public session of a private image: %v, want %s", err, CodeVisibility)
	}
	cmd.Session.Visibility = Private
	if _, err := Initiate(cmd); err != nil {
		t.Errorf("a private session of a private image: %v", err)
	}
}

func TestAnAliasShadowsNothing(t *testing.T) {
	t.Parallel()
	base := InitiateUpload{Session: testSession(), IsArchitecture: noArchitecture}
	base.Session.Aliases = []string{"edge"}
	for name, change := range map[string]func(*InitiateUpload){
		"the new version is an alias": func(c *InitiateUpload) { c.AliasOfVersionName.State = Alias{Version: "1"} },
		"a flavour is an alias": func(c *InitiateUpload) {
			c.AliasOfFlavour = map[string]Current[Alias]{"default": {State: Alias{Version: "1"}}}
		},
		"the alias is a version": func(c *InitiateUpload) {
			c.VersionOfAliasName = map[string]Current[Version]{"edge": {State: Version{State: StatePublished}}}
		},
		"the alias is a flavour":       func(c *InitiateUpload) { c.Image.State.Flavours = []string{"edge"} },
		"the alias is an architecture": func(c *InitiateUpload) { c.IsArchitecture = func(s string) bool { return s == "edge" } },
	} {
		cmd := base
		change(&cmd)
		if _, err := Initiate(cmd); !IsCode(err, CodeAliasClash) {
			t.Errorf("%s: %v, want %s", name, err, CodeAliasClash)
		}
	}
	if _, err := Initiate(base); err != nil {
		t.Errorf("a free alias: %v", err)
	}
}

func TestTheLastFileCompletesTheSession(t *testing.T) {
	t.Parallel()
	changes, err := initiate(testSession())
	if err != nil {
		t.Fatal(err)
	}
	upload := after[Upload](t, changes)
	complete := func(format string, size int64) error {
		changes, err := Complete(CompleteFile{File: FileRef{"amd64.virtual-machine.default", format}, Size: size, Digest: digestA, Ingress: format, At: testTime}, upload)
		if err == nil {
			upload.State = Fold(upload.State, changes[0].Fact)
		}
		return err
	}
	if err := complete("disk.qcow2", 99); !IsCode(err, CodeFileMismatch) {
		t.Errorf("a wrong size: %v", err)
	}
	if err := complete("other", 1); !IsCode(err, CodeNotFound) {
		t.Errorf("an undeclared file: %v", err)
	}
	if err := complete("disk.qcow2", 100); err != nil || upload.State.Complete {
		t.Fatalf("first file: complete %v, error %v", upload.State.Complete, err)
	}
	if err := complete("disk.qcow2", 100); !IsCode(err, CodeFileComplete) {
		t.Errorf("the same file again: %v", err)
	}
	if _, err := CompleteUpload(upload, testTime); !IsCode(err, CodeSessionClosed) {
		t.Errorf("handing over with a file missing: %v", err)
	}
	if err := complete("notes.txt", 5); err != nil || !upload.State.Complete {
		t.Fatalf("last file: complete %v, error %v", upload.State.Complete, err)
	}
	if _, err := AbortUpload(upload, Current[Version]{}, ""); !IsCode(err, CodePublishing) {
		t.Errorf("abort of a complete session: %v", err)
	}
	changes, err = CompleteUpload(upload, testTime)
	if err != nil {
		t.Fatal(err)
	}
	job := after[Job](t, changes)
	if next, ok := job.State.Next(); !ok || next != StepVerify || len(job.State.Files) != 2 {
		t.Errorf("job %+v, want two files and verify next", job.State)
	}
}

func TestAnEndedSessionFreesItsVersionAndTakesNothing(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(Current[Upload], Current[Version]) ([]Change, error){
		"abort": func(u Current[Upload], v Current[Version]) ([]Change, error) {
			return AbortUpload(u, v, "changed my mind")
		},
		"expire": ExpireUpload,
	} {
		changes, err := initiate(testSession())
		if err != nil {
			t.Fatal(err)
		}
		upload, version := after[Upload](t, changes), after[Version](t, changes)
		changes, err = end(upload, version)
		if err != nil || len(changes) != 2 || changes[0].Expect != upload.Sequence || changes[1].Expect != version.Sequence {
			t.Fatalf("%s: %v %v", name, changes, err)
		}
		if got := Fold(version.State, changes[1].Fact); got.State != StateReleased {
			t.Errorf("%s: version is %s", name, got.State)
		}
		upload.State = Fold(upload.State, changes[0].Fact)
		if _, err := Complete(CompleteFile{File: FileRef{"amd64.virtual-machine.default", "disk.qcow2"}, Size: 100, Digest: digestA}, upload); !IsCode(err, CodeSessionClosed) {
			t.Errorf("%s: a file afterwards: %v", name, err)
		}
		if _, err := end(upload, version); !IsCode(err, CodeSessionClosed) {
			t.Errorf("%s: twice: %v", name, err)
		}
		// Someone else's reservation stays.
		version.State.UploadID = "other"
		upload.State.State = SessionOpen
		if changes, err := end(upload, version); err != nil || len(changes) != 1 {
			t.Errorf("%s with a foreign reservation: %v %v", name, changes, err)
		}
	}
}

func TestFilesAreNumberedOverAllVariants(t *testing.T) {
	t.Parallel()
	u := testSession()
	u.Variants = append(u.Variants, UploadVariant{Variant: Variant{"arm64", Container, "cloud"}, Files: []UploadFile{{Format: "rootfs.squashfs"}}})
	u.Attachments = []UploadFile{{Format: "sbom.spdx.json"}, {Format: "rootfs.squashfs"}}
	var seen []string
	for n := 0; ; n++ {
		ref, file, ok := u.FileAt(n)
		if !ok {
			break
		}
		seen = append(seen, ref.Variant+"/"+file.Format)
		if same, ok := u.File(ref.Variant, ref.Format); !ok || same != file {
			t.Errorf("%s is another file than number %d", ref, n)
		}
		if back, ok := u.Index(ref.Variant, file.Format); !ok || back != n {
			t.Errorf("Index of file %d gives %d", n, back)
		}
	}
	want := []string{"amd64.virtual-machine.default/disk.qcow2", "amd64.virtual-machine.default/notes.txt", "arm64.container.cloud/rootfs.squashfs",
		"attachments/sbom.spdx.json", "attachments/rootfs.squashfs"}
	if diff := cmp.Diff(want, seen); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	for _, n := range []int{-1, 5, 1 << 30} {
		if _, _, ok := u.FileAt(n); ok {
			t.Errorf("there is a file %d", n)
		}
	}
}

func TestSubjectsKeepNamesApart(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		entity Entity
		want   string
	}{
		{VersionEntity("debian-bookworm", "12.5.0"), "imgsrv.events.version.debian-bookworm.12%2E5%2E0"},
		{VersionEntity("a.b", "c"), "imgsrv.events.version.a%2Eb.c"},
		{VersionEntity("a", "b.c"), "imgsrv.events.version.a.b%2Ec"},
		{BlobEntity(digestA), "imgsrv.events.blob." + string(digestA)},
		{AliasEntity("a", "*>% "), "imgsrv.events.alias.a.%2A%3E%25%20"},
	} {
		if got := test.entity.Subject(); got != test.want {
			t.Errorf("%v: %s, want %s", test.entity, got, test.want)
		}
	}
}

func ExampleVariant_Name() {
	fmt.Println(Variant{Architecture: "amd64", Type: VirtualMachine, Flavour: DefaultFlavour}.Name())
	// Output: amd64.virtual-machine.default
}
