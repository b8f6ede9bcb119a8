package catalog_test

import (
	"testing"
	"time"

	"github.com/imgsrv/imgsrv/internal/eventstest"
	"github.com/imgsrv/imgsrv/store/catalog"
)

// A read and the emptying of its tables may take the same locks in opposite orders, and PostgreSQL then ends one of
// them. The read is made again.
func TestAReadGivesWayToTheEmptyingOfItsTables(t *testing.T) {
	t.Parallel()
	h := eventstest.New()
	h.Publish(t, eventstest.Session("debian", "1"))
	c, pool := poolFromHistory(t, h)
	for _, order := range [][2]string{{"versions", "images"}, {"images", "versions"}, {"aliases", "images"}, {"images", "aliases"}} {
		tx, err := pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec(t.Context(), "LOCK TABLE catalog."+order[0]+" IN ACCESS EXCLUSIVE MODE"); err != nil {
			t.Fatal(err)
		}
		read := make(chan error, 1)
		go func() {
			_, _, err := c.Images(t.Context(), catalog.ImageFilter{})
			read <- err
		}()
		for waiting := 0; waiting == 0; time.Sleep(time.Millisecond) { // a poll
			if err := pool.QueryRow(t.Context(), "SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database WHERE NOT granted AND datname = current_database()").Scan(&waiting); err != nil {
				t.Fatal(err)
			}
		}
		// Whichever of the two PostgreSQL ends, the read has to come through.
		_, _ = tx.Exec(t.Context(), "LOCK TABLE catalog."+order[1]+" IN ACCESS EXCLUSIVE MODE")
		if err := tx.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := <-read; err != nil {
			t.Errorf("with %v: %v", order, err)
		}
	}
}
