// Package projections keeps tables in PostgreSQL in step with the event log: a [Runner] brings the facts of
// the log, in order and once, to a [Projector], which turns them into rows. It must not know what the facts
// mean, nor who reads the rows.
//
// # States
//
// Each projection (catalog, jobs, streams) has a schema of its own, with one row in the table position: the
// sequence of the last event applied, and the identity of the stream in which that sequence counts. On each
// node a Runner per projection is in one of these states:
//
//	waiting   not connected: PostgreSQL or the log is away, or an event can't be applied; pauses, then stands by
//	standby   connected, but another node's Runner has the projection's advisory lock; asks again each second
//	active    has the lock; reads the log after the position and applies batches
//
// Run moves waiting -> standby -> active, and any error moves it back to waiting with a growing pause. The
// lock lives and dies with the one connection that also runs the transactions. So a Runner that lost its
// lock has lost its transactions too, and the lock of a dead node frees itself as soon as the server notices
// that its connection is gone.
//
// # Who is right
//
//   - The log and the tables disagree: the log is. Tables can be derived again at any time.
//   - The Runner's memory and the position row disagree: the row is. It moves in the transaction of the rows
//     that it stands for, and only from the value the Runner believes it has (UPDATE … WHERE sequence = previous).
//     No row updated means that somebody else moved it: the Runner drops everything and reads it again.
//   - The row and the stream disagree, because the row counts in another stream or lies beyond the stream's head
//     (the log was restored or imported): the stream is. The Runner says so in its log, empties the tables and
//     begins again with event 1, in place; until it has caught up, readers see less than there is. A log restored
//     to an earlier state of the same stream that then grew past the position before this node looked can't be told
//     from its original: after restoring a log, empty the schemas.
//
// Positions advance over facts that a projection ignores: what waits for a sequence need not know whom it concerns. Over such facts alone
// the row follows the Runner's memory within some hundredths of a second: of the facts of a publication most concern one projection only,
// and a transaction for each would cost PostgreSQL more than the rows. What a restart reads again then changes nothing.
//
// # Failures
//
//   - PostgreSQL goes away: the transaction under way is undone, or was done; the position row tells which. The
//     Runner reconnects. Appends to the log go on meanwhile; [Runner.WaitFor] waits.
//   - The log goes away: the Runner gives the lock up and tries again.
//   - An event can't be decoded (a newer release wrote it) or applied: the batch is undone and applied one by one, so
//     that everything before the event is done and the event has a name: [Status] and the log show its sequence. The
//     projection stops there: skipping would make rows that no rebuild reproduces. The Runner gives the lock up and
//     tries again every few seconds, so a node of a release that knows the event, or a repaired database, goes on
//     without further help. The other projections don't notice.
//   - A projector panics: the same.
//   - The process is killed: the server ends the transaction and frees the lock; a standby Runner or the next start
//     goes on after the position.
//
// # Rebuilds
//
// A [Rebuilder] fills the schema NAME_next from the log, in transactions that move its own position, and then, in one
// transaction, locks the live position, applies what is still missing, and renames the schemas. Who is right:
//
//   - The live position's row is the lock between the two. A Runner moves it first in each of its transactions, so that the rows of
//     a transaction are all in the schema whose position it moves; the swap gives the old row another stream, so that a Runner that
//     waited for it finds nothing to move, and reads where the projection is.
//   - The new position is never behind the old one: readers with a minimum sequence are never told less than before.
//   - Half a rebuild is a schema with a mark (log, release, migrations, skipped events); it is gone on with only if the mark is the same.
//   - Whoever holds the advisory lock "imgsrv rebuild NAME" may make schemas beside the live one: one rebuild, [Verify] or [Replay] at
//     a time, on all nodes together.
//
// Events that an operator skipped (imgsrv.projection.event_skipped) are left out by the Runner, by rebuilds and by comparisons alike.
package projections
