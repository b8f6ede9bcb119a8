package events

import (
	"strconv"
	"strings"
)

// SubjectPrefix begins every subject of the stream; SubjectAll is the wildcard over all of them.
const (
	SubjectPrefix = "imgsrv.events."
	SubjectAll    = SubjectPrefix + ">"
)

// Kinds of entity; each is the token after the prefix.
const (
	KindUpload  = "upload"
	KindJob     = "job"
	KindBlob    = "blob"
	KindVersion = "version"
	KindImage   = "image"
	KindAlias   = "alias"
	KindDerived = "derived"

	KindProjection = "projection"

	KindPrincipal = "principal"
	KindToken     = "token"
	KindTrust     = "trust"

	KindWebhook    = "webhook"
	KindDelivery   = "delivery"
	KindSubscriber = "subscriber"
	KindMirror     = "mirror"
)

// Entity names what a fact is about. All facts of one entity share one subject.
type Entity struct {
	Kind string
	ID   string // for people: parts joined by '/', such as debian-bookworm/12.5.0
}

// UploadEntity names an upload session.
func UploadEntity(id string) Entity { return Entity{KindUpload, id} }

// JobEntity names a publication job.
func JobEntity(id string) Entity { return Entity{KindJob, id} }

// BlobEntity names a blob.
func BlobEntity(d Digest) Entity { return Entity{KindBlob, string(d)} }

// VersionEntity names a version of an image.
func VersionEntity(image, version string) Entity { return Entity{KindVersion, image + "/" + version} }

// ImageEntity names an image.
func ImageEntity(image string) Entity { return Entity{KindImage, image} }

// AliasEntity names an alias of an image.
func AliasEntity(image, alias string) Entity { return Entity{KindAlias, image + "/" + alias} }

// DerivedEntity names a file derived from a published version's.
func DerivedEntity(image, version, variant, format string) Entity {
	return Entity{KindDerived, image + "/" + version + "/" + variant + "/" + format}
}

// ProjectionEntity names a projection.
func ProjectionEntity(name string) Entity { return Entity{KindProjection, name} }

// WebhookEntity names a webhook.
func WebhookEntity(id string) Entity { return Entity{KindWebhook, id} }

// DeliveryEntity names the delivery of one event to one webhook.
func DeliveryEntity(webhook string, s Sequence) Entity {
	return Entity{KindDelivery, webhook + "/" + strconv.FormatUint(uint64(s), 10)}
}

// SubscriberEntity names a subscriber.
func SubscriberEntity(name string) Entity { return Entity{KindSubscriber, name} }

// MirrorEntity names a mirror.
func MirrorEntity(name string) Entity { return Entity{KindMirror, name} }

// PrincipalEntity names a principal.
func PrincipalEntity(name string) Entity { return Entity{KindPrincipal, name} }

// TokenEntity names a token.
func TokenEntity(id string) Entity { return Entity{KindToken, id} }

// TrustEntity names a trust rule.
func TrustEntity(id string) Entity { return Entity{KindTrust, id} }

// Subject is the entity's NATS subject: each part of the id is one token, escaped.
func (e Entity) Subject() string {
	parts := strings.Split(e.ID, "/")
	for i, part := range parts {
		parts[i] = EscapeToken(part)
	}
	return SubjectPrefix + e.Kind + "." + strings.Join(parts, ".")
}

// SubjectOfKind is the wildcard over all entities of a kind.
func SubjectOfKind(kind string) string { return SubjectPrefix + kind + ".>" }

// SubjectOfVersions is the wildcard over all versions of an image.
func SubjectOfVersions(image string) string {
	return SubjectPrefix + KindVersion + "." + EscapeToken(image) + ".*"
}

// SubjectOfDerived is the wildcard over all derived files of a version.
func SubjectOfDerived(image, version string) string {
	return SubjectPrefix + KindDerived + "." + EscapeToken(image) + "." + EscapeToken(version) + ".>"
}

// SubjectOfDeliveries is the wildcard over all deliveries to a webhook.
func SubjectOfDeliveries(webhook string) string {
	return SubjectPrefix + KindDelivery + "." + EscapeToken(webhook) + ".*"
}

// EscapeToken makes one subject token of a name: what NATS gives a meaning ('.', '*', '>', space), and control
// characters, which would end a line of its protocol, are percent-encoded, so that a version such as 12.5.0
// stays a single token. Nothing at all, which no rule lets through as a name, becomes a lone '%'.
func EscapeToken(s string) string {
	if s == "" {
		return "%"
	}
	const digits = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(s) {
		switch c := s[i]; {
		case c <= ' ', c == '%', c == '.', c == '*', c == '>', c == 0x7f:
			b.WriteByte('%')
			b.WriteByte(digits[c>>4])
			b.WriteByte(digits[c&15])
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}
