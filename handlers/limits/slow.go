package limits

import (
	"net/http"
	"time"
)

// drainPatience is how long the rest of a body may take that no handler wanted. net/http reads up to 256 KiB of it, so
// that the connection can be used again, and would wait for ever for bytes that don't come.
const drainPatience = 5 * time.Second

// DrainBodies bounds the wait for bytes that a handler left in a request's body.
func DrainBodies(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		next.ServeHTTP(w, r)
		if r.ContentLength != 0 {
			// After a body that was read to its end the server sets the deadline of the next request itself. A writer
			// that knows no deadlines, as in some tests, goes without.
			_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(drainPatience))
		}
	})
}
