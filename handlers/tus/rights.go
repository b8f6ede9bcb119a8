package tus

import (
	"net/http"
	"strings"
	"sync"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/access"
	"github.com/imgsrv/imgsrv/internal/tusname"
)

// imageOf remembers the image of each session, which never changes: so uploads go on while the event log is
// away. It holds one short entry for a session that was touched since the start.
type imageOf struct{ m sync.Map }

// mayTouch refuses the upload of an image that the principal may not publish to. What the creation of an upload
// is for stands in its metadata: beforeCreate looks at it.
func (h *Handler) mayTouch(r *http.Request, p access.Principal) error {
	id := strings.TrimPrefix(r.URL.Path, tusname.BasePath)
	if id == "" || p.MayServer(events.RolePublisher) {
		return nil
	}
	gone := events.Refuse(events.CodeNotFound, "there is no such upload")
	session, _, ok := parseUploadID(id)
	if !ok {
		return gone
	}
	image, known := h.images.m.Load(session)
	if !known {
		upload, err := h.log.Upload(r.Context(), session)
		if err != nil {
			return err
		}
		if upload.Sequence == 0 {
			return gone
		}
		image = upload.State.Image
		h.images.m.Store(session, image)
	}
	if !p.May(events.RolePublisher, image.(string)) {
		return gone
	}
	return nil
}
