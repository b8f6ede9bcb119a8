package events

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
)

// ErrUnknownType says that a fact's type is not of this release: a newer one has written it. Whoever
// derives state from facts must stop at it, not skip it.
var ErrUnknownType = errors.New("unknown event type")

// codec reads one stored type into its current Go type; payload is the Go type of what is stored.
type codec struct {
	payload reflect.Type
	decode  func(data []byte) (Fact, error)
}

func into[F Fact]() codec {
	return codec{payload: reflect.TypeFor[F](), decode: func(data []byte) (Fact, error) {
		var fact F
		if err := json.Unmarshal(data, &fact); err != nil {
			return nil, err
		}
		return fact, nil
	}}
}

// registry ties each type's name, old versions too, to what decodes it into the current Go type.
var registry = map[Type]codec{
	"imgsrv.upload.initiated.v1":         into[UploadInitiated](),
	"imgsrv.upload.file_completed.v1":    into[UploadFileCompleted](),
	"imgsrv.upload.completed.v1":         into[UploadCompleted](),
	"imgsrv.upload.aborted.v1":           into[UploadAborted](),
	"imgsrv.upload.expired.v1":           into[UploadExpired](),
	"imgsrv.job.queued.v1":               into[JobQueued](),
	"imgsrv.job.step_started.v1":         into[JobStepStarted](),
	"imgsrv.job.step_completed.v1":       into[JobStepCompleted](),
	"imgsrv.job.step_failed.v1":          into[JobStepFailed](),
	"imgsrv.job.succeeded.v1":            into[JobSucceeded](),
	"imgsrv.job.cancelled.v1":            into[JobCancelled](),
	"imgsrv.job.failed.v1":               into[JobFailed](),
	"imgsrv.job.retried.v1":              into[JobRetried](),
	"imgsrv.blob.promoted.v1":            into[BlobPromoted](),
	"imgsrv.blob.damaged.v1":             into[BlobDamaged](),
	"imgsrv.blob.repaired.v1":            into[BlobRepaired](),
	"imgsrv.blob.retained.v1":            into[BlobRetained](),
	"imgsrv.blob.collecting.v1":          into[BlobCollecting](),
	"imgsrv.blob.collected.v1":           into[BlobCollected](),
	"imgsrv.version.reserved.v1":         into[VersionReserved](),
	"imgsrv.version.released.v1":         into[VersionReleased](),
	"imgsrv.version.published.v1":        into[VersionPublished](),
	"imgsrv.version.named.v1":            into[VersionNamed](),
	"imgsrv.version.withdrawn.v1":        into[VersionWithdrawn](),
	"imgsrv.version.restored.v1":         into[VersionRestored](),
	"imgsrv.version.collected.v1":        into[VersionCollected](),
	"imgsrv.image.policy_set.v1":         into[ImagePolicySet](),
	"imgsrv.image.visibility_changed.v1": into[ImageVisibilityChanged](),
	"imgsrv.image.described.v1":          into[ImageDescribed](),
	"imgsrv.alias.moved.v1":              from(aliasMovedV1.upcast),
	"imgsrv.alias.moved.v2":              into[AliasMoved](),
	"imgsrv.alias.removed.v1":            into[AliasRemoved](),
	"imgsrv.derived.requested.v1":        into[DerivedRequested](),
	"imgsrv.derived.made.v1":             into[DerivedMade](),
	"imgsrv.derived.failed.v1":           into[DerivedFailed](),
	"imgsrv.derived.skipped.v1":          into[DerivedSkipped](),
	"imgsrv.derived.removed.v1":          into[DerivedRemoved](),
	"imgsrv.projection.event_skipped.v1": into[ProjectionEventSkipped](),

	"imgsrv.principal.created.v1":      into[PrincipalCreated](),
	"imgsrv.principal.role_granted.v1": into[PrincipalRoleGranted](),
	"imgsrv.principal.role_revoked.v1": into[PrincipalRoleRevoked](),
	"imgsrv.principal.removed.v1":      into[PrincipalRemoved](),
	"imgsrv.token.issued.v1":           into[TokenIssued](),
	"imgsrv.token.used.v1":             into[TokenUsed](),
	"imgsrv.token.revoked.v1":          into[TokenRevoked](),

	"imgsrv.trust.added.v1":   into[TrustAdded](),
	"imgsrv.trust.removed.v1": into[TrustRemoved](),

	"imgsrv.webhook.added.v1":           into[WebhookAdded](),
	"imgsrv.webhook.removed.v1":         into[WebhookRemoved](),
	"imgsrv.delivery.attempt_failed.v1": into[DeliveryAttemptFailed](),
	"imgsrv.delivery.dead_lettered.v1":  into[DeliveryDeadLettered](),
	"imgsrv.delivery.succeeded.v1":      into[DeliverySucceeded](),
	"imgsrv.delivery.requested.v1":      into[DeliveryRequested](),
	"imgsrv.delivery.redelivered.v1":    into[DeliveryRedelivered](),

	"imgsrv.mirror.added.v1":          into[MirrorAdded](),
	"imgsrv.mirror.sync_requested.v1": into[MirrorSyncRequested](),
	"imgsrv.mirror.synced.v1":         into[MirrorSynced](),
	"imgsrv.mirror.removed.v1":        into[MirrorRemoved](),

	"imgsrv.subscriber.added.v1":   into[SubscriberAdded](),
	"imgsrv.subscriber.removed.v1": into[SubscriberRemoved](),
}

// Decode reads a fact as it is stored, upcasting old versions. The error wraps ErrUnknownType for a type
// that this release doesn't know.
func Decode(t Type, data []byte) (Fact, error) {
	c, ok := registry[t]
	if !ok {
		return nil, fmt.Errorf("%w %q: a newer release wrote it", ErrUnknownType, t)
	}
	fact, err := c.decode(data)
	if err != nil {
		return nil, fmt.Errorf("decode %s: %w", t, err)
	}
	return fact, nil
}

// Types lists every type that [Decode] reads, sorted.
func Types() []Type { return slices.Sorted(maps.Keys(registry)) }
