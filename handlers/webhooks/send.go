package webhooks

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/targets"
	"github.com/imgsrv/imgsrv/internal/tracecontext"
)

const (
	// sendTimeout bounds a delivery, from the dial to the end of the answer.
	sendTimeout = 15 * time.Second
	// maxAnswerBytes of an answer are read, so that the connection can be used again; they are not looked at.
	maxAnswerBytes = 64 << 10
	maxErrorBytes  = 500
	dialTimeout    = 10 * time.Second
)

// sender makes the requests. Encrypted and plain connections have clients of their own, since the rules for
// targets differ.
type sender struct {
	encrypted, plain *http.Client
	timeout          time.Duration
	now              func() time.Time
	tracer           trace.Tracer // nil: no traces
}

func newSender(to *targets.Targets, roots *x509.CertPool, timeout time.Duration, now func() time.Time, tracer trace.Tracer) *sender {
	client := func(plain bool) *http.Client {
		return &http.Client{
			Transport: &http.Transport{
				DialContext: to.Dialer(plain), TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
				ForceAttemptHTTP2: true, TLSHandshakeTimeout: dialTimeout, IdleConnTimeout: time.Minute, MaxIdleConnsPerHost: 1,
				MaxResponseHeaderBytes: 64 << 10, DisableCompression: true,
			},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
	}
	return &sender{encrypted: client(false), plain: client(true), timeout: timeout, now: now, tracer: tracer}
}

func (s *sender) close() {
	s.encrypted.CloseIdleConnections()
	s.plain.CloseIdleConnections()
}

// send makes one attempt. Whatever is not a 2xx answer is a failure. It is of the event's trace, whose span says of the receiver no more
// than its host: a path or query may hold a secret.
func (s *sender) send(ctx context.Context, w events.Webhook, secret []byte, e events.Event) events.DeliveryAttempt {
	host := ""
	if u, err := url.Parse(w.URL); err == nil && s.tracer != nil {
		host = u.Hostname()
	}
	ctx, end := tracecontext.Start(tracecontext.With(ctx, e.TraceParent), s.tracer, "deliver webhook", trace.SpanKindClient, attribute.String("imgsrv.webhook", w.ID),
		attribute.String("server.address", host), attribute.String("imgsrv.event.type", string(e.Type)), attribute.Int64("imgsrv.event.sequence", int64(e.Sequence)))
	attempt := s.attempt(ctx, w, secret, e)
	if attempt.Status != 0 {
		trace.SpanFromContext(ctx).SetAttributes(attribute.Int("http.response.status_code", attempt.Status))
	}
	var err error
	if attempt.Error != "" {
		err = errors.New(attempt.Error)
	}
	end(err)
	return attempt
}

func (s *sender) attempt(ctx context.Context, w events.Webhook, secret []byte, e events.Event) events.DeliveryAttempt {
	attempt := events.DeliveryAttempt{At: s.now().UTC()}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	r, err := request(ctx, w, secret, e, attempt.At)
	if err != nil {
		attempt.Error = shorten(err.Error())
		return attempt
	}
	client := s.encrypted
	if r.URL.Scheme != "https" {
		client = s.plain
	}
	answer, err := client.Do(r)
	if err != nil {
		var outer *url.Error
		if errors.As(err, &outer) {
			err = outer.Err // would repeat the URL
		}
		if errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("the receiver did not answer within %s", s.timeout)
		}
		attempt.Error = shorten(err.Error())
		return attempt
	}
	_, _ = io.CopyN(io.Discard, answer.Body, maxAnswerBytes) // the status has said it all
	_ = answer.Body.Close()
	attempt.Status = answer.StatusCode
	switch answer.StatusCode / 100 {
	case 2:
	case 3:
		attempt.Error = fmt.Sprintf("the receiver answered %d %s: redirects are not followed", answer.StatusCode, http.StatusText(answer.StatusCode))
	default:
		attempt.Error = fmt.Sprintf("the receiver answered %d %s", answer.StatusCode, http.StatusText(answer.StatusCode))
	}
	return attempt
}

// request is an event as CloudEvents 1.0 has it in HTTP's binary mode, with the headers of Standard Webhooks. The
// id of both is the event's, the same in each attempt.
func request(ctx context.Context, w events.Webhook, secret []byte, e events.Event, at time.Time) (*http.Request, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, w.URL, bytes.NewReader(e.Data))
	if err != nil {
		return nil, fmt.Errorf("make the request: %w", err)
	}
	entity := ""
	if e.Fact != nil {
		entity = e.Fact.Entity().ID
	}
	h := r.Header
	h.Set("Content-Type", "application/json")
	h.Set("User-Agent", "imgsrv-webhook")
	h.Set("ce-specversion", "1.0")
	for name, value := range map[string]string{
		"ce-id": e.ID, "ce-source": e.Source, "ce-type": string(e.Type), "ce-time": e.Time.UTC().Format(time.RFC3339Nano), "ce-subject": entity,
		"ce-actor": e.Actor, "ce-correlationid": e.Correlation, "ce-causationid": e.Causation, "ce-traceparent": e.TraceParent,
	} {
		if value != "" {
			h.Set(name, escapeHeader(value))
		}
	}
	if parent := tracecontext.Of(ctx); parent != "" {
		h.Set(tracecontext.Header, parent)
	}
	h.Set("Imgsrv-Sequence", strconv.FormatUint(uint64(e.Sequence), 10))
	h.Set("webhook-id", e.ID)
	h.Set("webhook-timestamp", strconv.FormatInt(at.Unix(), 10))
	h.Set("webhook-signature", sign(secret, e.ID, at, e.Data))
	return r, nil
}

// escapeHeader percent-encodes what CloudEvents' HTTP binding 1.0.2 (3.1.3.2) wants encoded: all but the printable
// characters of ASCII, and of these space, double quote and percent.
func escapeHeader(value string) string {
	var b strings.Builder
	for i := range len(value) {
		if c := value[i]; c > ' ' && c < 0x7f && c != '"' && c != '%' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// shorten keeps a fact small, and its text UTF-8.
func shorten(text string) string {
	if len(text) > maxErrorBytes {
		text = text[:maxErrorBytes]
	}
	return strings.ToValidUTF8(text, "")
}
