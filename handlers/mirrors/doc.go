// Package mirrors follows other simplestreams servers and publishes here what matches, through the same front door as any
// publisher: it opens upload sessions, streams the files into them, and waits for their jobs. It knows HTTP on both sides, and
// the facts of mirrors; it must not know how bytes are stored, nor how versions are listed.
//
// # One run at a time
//
// A run is wanted by a fact (added, sync_requested) and ended by another (synced). The facts that want one are a queue: a durable
// consumer gives each to one node, which keeps it by heartbeats while the run lasts; where the node dies another gets it within
// seconds. Every node asks for runs that are due; the appends expect the mirror's last fact, so that one of them succeeds.
// Should two nodes work on one mirror after all, because a heartbeat was late, nothing breaks: sessions are opened under an
// Idempotency-Key that is derived from what is to be published, so that both work on one, and tus lets one write at a time.
//
// # Resuming
//
// A file is streamed from upstream into its tus upload, which is on disk and hashed as it comes. After a break, or in the next
// run, or on another node that shares the storage, the same session is found by its key, and upstream is asked for the rest.
// There are no partial files beside those of the uploads, and promotion is a rename as always.
//
// # What is verified
//
// Each file is declared with the sha256 that upstream lists, and each variant with the combined digest, its fingerprint: the
// publication's own steps refuse what differs, before anything is visible. A version that was refused isn't tried again until
// upstream says something else of it.
//
// # Names
//
// A published version never changes, so what appears at different times upstream must not be one version here. Other servers
// build each architecture and variant by itself: by default each gives an image of its own,
// {os}-{release}-{variant}-{arch}, whose versions are upstream's. Another imgsrv publishes a version whole: there image,
// version, flavours and aliases stay as they are.
package mirrors
