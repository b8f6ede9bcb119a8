package events

import "strings"

// ImageOf is the image that a fact is about: its entity's, or the one that a session or job publishes to.
// "" for facts that are about no image.
func ImageOf(fact Fact) string {
	switch f := fact.(type) {
	case UploadFact:
		return f.After().Image
	case JobFact:
		return f.After().Image
	case VersionFact:
		return f.After().Image
	case ImageFact:
		return f.After().Name
	case AliasFact:
		return f.After().Image
	case DerivedFact:
		return f.After().Image
	}
	return ""
}

// KindOf is the kind of entity that a type of fact is about: its second part, version for
// imgsrv.version.published.v1. "" for what is no such name.
func KindOf(t Type) string {
	parts := strings.Split(string(t), ".")
	if len(parts) < 3 || parts[0] != "imgsrv" {
		return ""
	}
	return parts[1]
}

// SubjectsAbout are the subjects under which all facts of a kind about these images stand; no images mean
// all. Only the subjects of versions, images, aliases and derived files name an image, so that for other kinds
// the answer is all of the kind, and [ImageOf] has to sort them.
func SubjectsAbout(kind string, images ...string) []string {
	if len(images) == 0 {
		return []string{SubjectOfKind(kind)}
	}
	var subjects []string
	for _, image := range images {
		switch kind {
		case KindVersion, KindAlias:
			subjects = append(subjects, SubjectPrefix+kind+"."+EscapeToken(image)+".*")
		case KindDerived:
			subjects = append(subjects, SubjectPrefix+kind+"."+EscapeToken(image)+".>")
		case KindImage:
			subjects = append(subjects, ImageEntity(image).Subject())
		default:
			return []string{SubjectOfKind(kind)}
		}
	}
	return subjects
}

// IsAboutAccess says whether facts of a kind tell who may do what: only administrators see them.
func IsAboutAccess(kind string) bool {
	return kind == KindPrincipal || kind == KindToken || kind == KindTrust || kind == KindSubscriber
}
