package projections

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
)

// Replayed is one event of a [Replay] and the rows that applying it changes.
type Replayed struct {
	Sequence events.Sequence
	Type     events.Type
	Subject  string
	Time     time.Time
	Skipped  bool   // by an operator's decision
	Error    string // why it can't be applied; the replay ends with it
	Changes  []RowChange
}

// RowChange is what happens to one row.
type RowChange struct {
	Op    string // insert, update or delete
	Table string
	Row   string // JSON object: as it is afterwards, or was before a delete
}

// recordChanges notes each change of a row in the order in which they come. The trigger sees an update that changes nothing too; it is
// left out.
const recordChanges = `
CREATE TEMPORARY TABLE replay_changes (n bigserial, op text, tab text, line text);
CREATE FUNCTION pg_temp.replay_note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        INSERT INTO pg_temp.replay_changes (op, tab, line) VALUES ('delete', TG_TABLE_NAME, to_jsonb(OLD)::text);
    ELSIF TG_OP = 'INSERT' THEN
        INSERT INTO pg_temp.replay_changes (op, tab, line) VALUES ('insert', TG_TABLE_NAME, to_jsonb(NEW)::text);
    ELSIF to_jsonb(OLD) <> to_jsonb(NEW) THEN
        INSERT INTO pg_temp.replay_changes (op, tab, line) VALUES ('update', TG_TABLE_NAME, to_jsonb(NEW)::text);
    END IF;
    RETURN NULL;
END $$`

// Replay tells, event by event, what applying the events from from to to does to the tables, without touching these: they are
// derived up to from in a schema beside the live one, which is removed afterwards. each is called in order; its error ends it. from is at
// least 1; to beyond the log's head means the head. ErrRebuilding when a rebuild or a comparison runs.
func Replay(ctx context.Context, pool *pgxpool.Pool, log *jetstream.Log, p Projector, from, to events.Sequence, cfg VerifyConfig, each func(Replayed) error) error {
	fail := func(err error) error { return fmt.Errorf("replay projection %s: %w", p.Name(), err) }
	head, err := log.Head(ctx)
	if err != nil {
		return fail(err)
	}
	to = min(to, head)
	if from == 0 || from > to {
		return fail(events.Refuse(events.CodeInvalid, "from %d to %d is no part of the log, which goes from 1 to %d", from, to, head))
	}
	work, err := openBench(ctx, pool, p.Name(), p.Name()+"_replay")
	if err != nil {
		return fail(err)
	}
	defer work.close(ctx)
	if err := derive(ctx, work, log, p, from-1, cfg); err != nil {
		return fail(err)
	}
	err = replay(ctx, work, log, p, from, to, cfg, each)
	if dropErr := work.drop(context.WithoutCancel(ctx), work.schema); err == nil {
		err = dropErr
	}
	if err != nil {
		return fail(err)
	}
	return nil
}

func replay(ctx context.Context, work *bench, log *jetstream.Log, p Projector, from, to events.Sequence, cfg VerifyConfig, each func(Replayed) error) error {
	if err := watchTables(ctx, work); err != nil {
		return fmt.Errorf("watch the tables: %w", err)
	}
	skipped, err := log.Projection(ctx, p.Name())
	if err != nil {
		return fmt.Errorf("read which events are skipped: %w", err)
	}
	tail, err := log.Tail(ctx, from-1)
	if err != nil {
		return err
	}
	defer tail.Close()
	for {
		raws, err := tail.NextRaw(ctx, nil, 500)
		if err != nil {
			return err
		}
		for _, raw := range raws {
			if raw.Sequence > to {
				return nil
			}
			line := Replayed{Sequence: raw.Sequence, Type: raw.Type(), Subject: raw.Subject, Time: raw.Time(), Skipped: skipped.State.Skips(raw.Sequence)}
			if !line.Skipped {
				if line.Changes, err = replayOne(ctx, work.conn, p, raw, cfg); err != nil {
					if !blamesEvents(ctx, work.conn, err) {
						return err
					}
					line.Error = err.Error()
				}
			}
			if err := each(line); err != nil {
				return err
			}
			if line.Error != "" {
				return &EventError{Sequence: line.Sequence, Type: line.Type, Err: errors.New(line.Error)}
			}
			if raw.Sequence == to {
				return nil
			}
		}
	}
}

func watchTables(ctx context.Context, work *bench) error {
	if _, err := work.conn.Exec(ctx, recordChanges); err != nil {
		return err
	}
	return transact(ctx, work.conn, func(tx pgx.Tx) error {
		tables, err := lockTables(ctx, tx, work.schema)
		if err != nil {
			return err
		}
		var statements strings.Builder
		for _, table := range tables {
			fmt.Fprintf(&statements, "CREATE TRIGGER replay_note AFTER INSERT OR UPDATE OR DELETE ON %s FOR EACH ROW EXECUTE FUNCTION pg_temp.replay_note();\n",
				pgx.Identifier{work.schema, table}.Sanitize())
		}
		_, err = tx.Exec(ctx, statements.String())
		return err
	})
}

func replayOne(ctx context.Context, conn *pgx.Conn, p Projector, raw jetstream.Raw, cfg VerifyConfig) ([]RowChange, error) {
	event, err := raw.Decode()
	if err != nil {
		return nil, err
	}
	var changes []RowChange
	err = transact(ctx, conn, func(tx pgx.Tx) error {
		err := guarded(ctx, cfg.Log, func(ctx context.Context) error { return p.Apply(ctx, tx, []events.Event{event}) })
		if err != nil {
			return err
		}
		noted, err := tx.Query(ctx, `WITH noted AS (DELETE FROM pg_temp.replay_changes RETURNING n, op, tab, line) SELECT op, tab, line FROM noted ORDER BY n`)
		if err != nil {
			return err
		}
		changes, err = pgx.CollectRows(noted, pgx.RowToStructByPos[RowChange])
		return err
	})
	return changes, err
}
