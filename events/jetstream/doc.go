// Package jetstream keeps the facts of package events in a NATS JetStream stream: it appends them under
// optimistic concurrency, reads them back, follows them, and runs the embedded server where no other is
// given. It decides nothing, and knows no handler, projection or store.
//
// One stream, IMGSRV_EVENTS, holds all subjects imgsrv.events.>. An append states for each fact the last
// sequence of its subject (NATS: Nats-Expected-Last-Subject-Sequence); several facts go as one atomic
// batch (NATS ADR-50), all or nothing. When an acknowledgement is lost, the subject's last fact tells
// whether the append took place: its id is ours or it isn't.
package jetstream
