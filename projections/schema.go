package projections

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/internal/pause"
	"github.com/imgsrv/imgsrv/migrations"
)

// bench is a connection that derives into a schema beside the live one.
type bench struct {
	pool   *pgxpool.Pool
	conn   *pgx.Conn
	schema string
}

const workLock = `SELECT pg_try_advisory_lock(hashtextextended('imgsrv rebuild ' || $1::text, 0))`

// openBench connects and takes the one lock under which schemas beside a projection's live one are made. ErrRebuilding when
// somebody has it. It ends with the connection: see close.
func openBench(ctx context.Context, pool *pgxpool.Pool, projection, schema string) (*bench, error) {
	cfg := pool.Config().ConnConfig
	cfg.RuntimeParams["search_path"] = pgx.Identifier{schema}.Sanitize()
	cfg.RuntimeParams["application_name"] = "imgsrv " + schema + " " + nodeName()
	// What a power cut takes of these tables is derived again. The transaction that makes them live waits for the disk.
	cfg.RuntimeParams["synchronous_commit"] = "off"
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("connect to PostgreSQL: %w", err)
	}
	b := &bench{pool: pool, conn: conn, schema: schema}
	var got bool
	err = conn.QueryRow(ctx, workLock, projection).Scan(&got)
	if err == nil && !got {
		err = ErrRebuilding
	}
	if err != nil {
		b.close(ctx)
		return nil, fmt.Errorf("ask for the lock of projection %s: %w", projection, err)
	}
	return b, nil
}

func (b *bench) close(ctx context.Context) { disconnect(ctx, b.conn) }

// prepare makes the schema. One that was made with the same mark is kept, and the answer is where it is.
func (b *bench) prepare(ctx context.Context, files fs.FS, mark, stream string) (events.Sequence, error) {
	var found *string
	err := b.conn.QueryRow(ctx, `SELECT obj_description(oid, 'pg_namespace') FROM pg_namespace WHERE nspname = $1`, b.schema).Scan(&found)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return 0, fmt.Errorf("look for schema %s: %w", b.schema, err)
	}
	if found == nil || *found != mark {
		if err := b.drop(ctx, b.schema); err != nil {
			return 0, err
		}
		if err := migrations.Apply(ctx, b.pool, b.schema, files); err != nil {
			return 0, err
		}
		if _, err := b.conn.Exec(ctx, `INSERT INTO position (sequence, stream, updated_at) VALUES (0, $1, now())`, stream); err != nil {
			return 0, fmt.Errorf("prepare schema %s: %w", b.schema, err)
		}
		// Last: a schema with its mark is whole. The mark is hexadecimal, and a COMMENT takes no parameters.
		if _, err := b.conn.Exec(ctx, `COMMENT ON SCHEMA `+quoted(b.schema)+` IS '`+mark+`'`); err != nil {
			return 0, fmt.Errorf("mark schema %s: %w", b.schema, err)
		}
	}
	position, of, err := readPosition(ctx, b.conn, selectPosition)
	if err == nil && of != stream {
		err = fmt.Errorf("schema %s was made from stream %q", b.schema, of)
	}
	return position, err
}

func quoted(schema string) string { return pgx.Identifier{schema}.Sanitize() }

const (
	dropTimeout  = "2s" // for the locks of a schema's tables: whoever still reads them goes first
	dropAttempts = 15
)

// drop removes a schema, where there is one. Queries that began on its tables are waited for, half a minute.
func (b *bench) drop(ctx context.Context, schema string) error {
	var err error
	for attempt := range dropAttempts {
		if attempt > 0 {
			if pause.For(ctx, 100*time.Millisecond) != nil {
				return ctx.Err()
			}
		}
		err = transact(ctx, b.conn, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, `SET LOCAL lock_timeout = '`+dropTimeout+`'`); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, `DROP SCHEMA IF EXISTS `+quoted(schema)+` CASCADE`)
			return err
		})
		if err == nil || ctx.Err() != nil || b.conn.IsClosed() {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("drop schema %s: %w", schema, err)
	}
	return nil
}

// markOf says what a half-filled schema must have been made with to be gone on with.
func markOf(stream, version string, files fs.FS, skipped events.Projection) (string, error) {
	sum := sha256.New()
	encoded, err := json.Marshal([]any{stream, version, skipped.Skipped})
	if err != nil {
		return "", err
	}
	sum.Write(encoded)
	err = fs.WalkDir(files, ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		data, err := fs.ReadFile(files, path)
		fmt.Fprintf(sum, "\n%s %d\n", path, len(data)) //nolint:errcheck // a hash takes everything
		sum.Write(data)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("read the migrations: %w", err)
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}
