package tus

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/tus/tusd/v2/pkg/handler"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/problem"
	"github.com/imgsrv/imgsrv/store/blob"
)

// storeError gives the byte store's errors their codes.
func storeError(err error) error {
	switch {
	case blob.IsFull(err):
		return problem.New(problem.CodeStorageFull, "the storage has no room for these bytes: what arrived is kept, resume when there is room")
	case blob.IsReadOnly(err):
		return problem.New(problem.CodeUnavailable, "the storage is read-only for now")
	case errors.Is(err, blob.ErrBusy), errors.Is(err, blob.ErrMoved):
		return problem.New(problem.CodeLocked, "another request writes this upload")
	case errors.Is(err, fs.ErrNotExist):
		return problem.New(events.CodeSessionClosed, "the upload session is over")
	}
	return err
}

// tusError dresses an error so that tusd sends it as a problem document.
func (h *Handler) tusError(ctx context.Context, err error) error {
	var ours handler.Error
	if errors.As(err, &ours) {
		return err
	}
	details := problem.From(storeError(err))
	problem.Log(ctx, h.logger, details, err)
	body, encodeErr := json.Marshal(details)
	if encodeErr != nil {
		return encodeErr
	}
	header := handler.HTTPHeader{"Content-Type": problem.ContentType}
	for name, values := range details.GetHeaders() {
		header[name] = values[0]
	}
	return handler.Error{ErrorCode: details.Code, Message: details.Detail, HTTPResponse: handler.HTTPResponse{StatusCode: details.Status, Body: string(body) + "\n", Header: header}}
}

// codes maps tusd's error codes to ours; what is missing keeps tusd's status under bad-request.
var codes = map[string]events.Code{
	"ERR_UPLOAD_NOT_FOUND":      events.CodeNotFound,
	"ERR_MISMATCHED_OFFSET":     problem.CodeOffsetMismatch,
	"ERR_UPLOAD_LOCKED":         problem.CodeLocked,
	"ERR_LOCK_TIMEOUT":          problem.CodeLocked,
	"ERR_UPLOAD_INTERRUPTED":    problem.CodeLocked,
	"ERR_MAX_SIZE_EXCEEDED":     problem.CodeTooLarge,
	"ERR_UPLOAD_SIZE_EXCEEDED":  problem.CodeTooLarge,
	"ERR_READ_TIMEOUT":          problem.CodeTimeout,
	"ERR_INTERNAL_SERVER_ERROR": problem.CodeInternal,
	"ERR_SERVER_SHUTDOWN":       problem.CodeUnavailable,
}

// remedies are our words where tusd's don't say what to do.
var remedies = map[string]string{
	"ERR_MISMATCHED_OFFSET":    "Upload-Offset is not where the upload stands: ask for that with HEAD, and send the bytes from there on",
	"ERR_UNSUPPORTED_VERSION":  "this needs the header Tus-Resumable: 1.0.0",
	"ERR_INVALID_CONTENT_TYPE": "this needs the header Content-Type: application/offset+octet-stream",
}

// answerWriter adds what tusd lacks to its answers: the expiration extension, and problem documents in
// place of its plain error texts.
type answerWriter struct {
	http.ResponseWriter
	request *http.Request
	expires time.Time

	status int          // of an error answer that is held back
	text   bytes.Buffer // its body
}

func (a *answerWriter) Unwrap() http.ResponseWriter { return a.ResponseWriter }

func (a *answerWriter) WriteHeader(status int) {
	header := a.Header()
	if b, ok := a.request.Body.(*body); ok && b.interrupted() && a.request.ProtoMajor == 1 {
		header.Set("Connection", "close") // its last read may have been cut together with the one that net/http begins after it
	}
	if status >= http.StatusBadRequest && !strings.HasPrefix(header.Get("Content-Type"), problem.ContentType) {
		a.status = status
		return
	}
	if status >= http.StatusOK && status < http.StatusMultipleChoices {
		switch a.request.Method {
		case http.MethodOptions:
			header.Set("Tus-Extension", header.Get("Tus-Extension")+",expiration")
		case http.MethodPost, http.MethodPatch, http.MethodHead:
			// tus 1.0, Expiration: a date in the form of RFC 9110. Each activity moves it.
			header.Set("Upload-Expires", a.expires.UTC().Format(http.TimeFormat))
		}
	}
	a.ResponseWriter.WriteHeader(status)
}

func (a *answerWriter) Write(p []byte) (int, error) {
	if a.status != 0 {
		return a.text.Write(p)
	}
	return a.ResponseWriter.Write(p)
}

func (a *answerWriter) finish(log *slog.Logger) {
	if a.status == 0 {
		return
	}
	code, detail, _ := strings.Cut(strings.TrimSpace(a.text.String()), ": ")
	ours, known := codes[code]
	if !known {
		ours = problem.CodeBadRequest
		if a.status == http.StatusMethodNotAllowed {
			ours = problem.CodeMethod
		}
	}
	a.Header().Del("Content-Length")
	if ours == problem.CodeInternal {
		problem.Write(a.ResponseWriter, a.request, log, errors.New(detail))
		return
	}
	details := problem.New(ours, cmp.Or(remedies[code], detail))
	if !known {
		details.Status = a.status
	}
	if details.Detail == "" { // answers to HEAD have no text
		details.Detail = http.StatusText(a.status)
	}
	problem.Write(a.ResponseWriter, a.request, log, details)
}
