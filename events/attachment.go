package events

import (
	"fmt"
	"iter"
	"strings"
)

// AttachmentVariant stands where a file's variant is named, for a file of the version as a whole: an SBOM, a
// signature, release notes. The name of a variant has two dots, so none is called this.
const AttachmentVariant = "attachments"

// checksumsName begins the names that the version's own checksums and their signatures have.
const checksumsName = "SHA256SUMS"

// CheckAttachmentName is as [CheckImageName]. The name is one segment of the attachment's URL, and no file of
// checksums.
func CheckAttachmentName(s string) error {
	if !segmentPattern.MatchString(s) || !clean(s) {
		return fmt.Errorf("an attachment's name has %s, no '..' and no '.' at its end", segmentRule)
	}
	if len(s) >= len(checksumsName) && strings.EqualFold(s[:len(checksumsName)], checksumsName) {
		return fmt.Errorf("an attachment isn't called %s or by a name that begins so: that is for the version's own checksums", checksumsName)
	}
	return nil
}

// ManifestAttachment is a file of a published version as a whole. Its content is not looked at.
type ManifestAttachment struct {
	Name      string `json:"name"`
	Digest    Digest `json:"digest"`
	Size      int64  `json:"size"` // bytes
	MediaType string `json:"media_type"`
}

// FileRef names a file of a session.
type FileRef struct {
	Variant string `json:"variant"` // AttachmentVariant for an attachment
	Format  string `json:"format"`  // an attachment's name
}

// IsAttachment tells whether the file is one of the version as a whole.
func (r FileRef) IsAttachment() bool { return r.Variant == AttachmentVariant }

// String says which file it is, in a sentence: "file disk.qcow2 of variant amd64.virtual-machine.default".
func (r FileRef) String() string {
	if r.IsAttachment() {
		return "attachment " + r.Format
	}
	return "file " + r.Format + " of variant " + r.Variant
}

// Ref names the file.
func (f *JobFile) Ref() FileRef { return FileRef{Variant: f.Variant, Format: f.Format} }

// Files goes over all declared files in the order of their numbers: those of the variants, then the attachments.
// The pointers are into the session's own slices.
func (u *Upload) Files() iter.Seq2[FileRef, *UploadFile] {
	return func(yield func(FileRef, *UploadFile) bool) {
		for i := range u.Variants {
			v := &u.Variants[i]
			for k := range v.Files {
				if !yield(FileRef{v.Name(), v.Files[k].Format}, &v.Files[k]) {
					return
				}
			}
		}
		for i := range u.Attachments {
			if !yield(FileRef{AttachmentVariant, u.Attachments[i].Format}, &u.Attachments[i]) {
				return
			}
		}
	}
}

func (c *checker) attachments(u *Upload) (files int) {
	names := map[string]bool{}
	for i, a := range u.Attachments {
		field := fmt.Sprintf("attachments[%d]", i)
		c.name(field+".name", a.Format, CheckAttachmentName)
		if names[a.Format] {
			c.fail(field+".name", a.Format, "an attachment is named once")
		}
		names[a.Format] = true
		c.size(field+".size", a.Size)
	}
	return len(u.Attachments)
}

func (c *checker) size(field string, bytes int64) {
	if bytes <= 0 || bytes > MaxFileBytes {
		c.fail(field, fmt.Sprint(bytes), "a size is the file's length in bytes, from 1")
	}
}
