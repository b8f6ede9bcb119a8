package streams

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/imgsrv/imgsrv/events"
)

// Kinds implements projections.Bulk.
func (*Projector) Kinds() []string {
	return []string{events.KindVersion, events.KindImage, events.KindAlias}
}

// LastOnly implements projections.Bulk: a version's key depends on the versions before it, a row's change on what it was.
func (*Projector) LastOnly() bool { return false }

// Load implements projections.Bulk. A row's value depends on the one before it, and PostgreSQL decides that, so the statements
// are those of Apply, sent without waiting for each. The documents hold everything that is published: they wait for Finish.
func (*Projector) Load(ctx context.Context, tx pgx.Tx, batch []events.Event) error {
	_, err := change(ctx, tx, batch)
	return err
}

// Finish implements projections.Bulk: the documents, where there is anything to show or to hide.
func (*Projector) Finish(ctx context.Context, tx pgx.Tx) error {
	var any bool
	if err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM images) OR EXISTS (SELECT FROM aliases)`).Scan(&any); err != nil {
		return fmt.Errorf("look for publications: %w", err)
	}
	if !any { // as Apply, which makes none before the first fact that bears on them
		return nil
	}
	return derive(ctx, tx)
}
