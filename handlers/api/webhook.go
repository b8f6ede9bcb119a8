package api

import (
	"context"
	"net/http"
	"slices"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/google/uuid"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/access"
)

// Paths of webhooks.
const (
	pathWebhooks      = "/api/webhooks"
	pathWebhook       = pathWebhooks + "/{id}"
	pathWebhookSecret = pathWebhook + "/secret"
	pathDeadLetters   = pathWebhook + "/dead-letters"
	pathRedeliver     = pathWebhook + "/redeliver"
	pathDelivery      = pathWebhook + "/deliveries/{sequence}"
)

// Webhooks knows where events may be sent, and the secrets that no event holds.
type Webhooks interface {
	// CheckTarget refuses a URL that webhooks may not lead to, with an [*events.Error].
	CheckTarget(ctx context.Context, url string) error
	// KeyID names the key that new secrets are derived from.
	KeyID() (string, error)
	// Secret is a webhook's, in Standard Webhooks' form.
	Secret(w events.Webhook) (string, error)
}

type addWebhookInput struct {
	Body struct {
		URL    string   `json:"url" doc:"Where events are posted to" example:"https://hooks.example.org/imgsrv"`
		Types  []string `json:"types,omitempty" nullable:"false" doc:"Types of events, or beginnings of them with * at the end; none: all" example:"[\"imgsrv.version.published.*\"]"`
		Images []string `json:"images,omitempty" nullable:"false" doc:"Images, with * for any characters; none: all, and also events about no image" example:"[\"debian-*\"]"`
		From   uint64   `json:"from,omitempty" doc:"Sequence of the first event to send, 1 for the whole history; absent: what happens from now on"`
	}
}

type webhookInput struct {
	ID string `path:"id" example:"0199a1b2-c3d4-7e5f-8a6b-7c8d9e0f1a2b"`
}

type webhooksOutput struct {
	Body struct {
		Webhooks []webhookStatus `json:"webhooks" nullable:"false" doc:"In the order in which they were added"`
	}
}

type webhookSecretOutput struct {
	Cache string `header:"Cache-Control"`
	Body  struct {
		Secret string `json:"secret" doc:"Standard Webhooks' symmetric secret: whsec_ and base64"`
	}
}

type webhookStatus struct {
	ID          string          `json:"id" format:"uuid"`
	URL         string          `json:"url" format:"uri"`
	Types       []string        `json:"types" nullable:"false"`
	Images      []string        `json:"images" nullable:"false"`
	From        uint64          `json:"from" doc:"Sequence of the first event that it gets"`
	AddedBy     string          `json:"added_by"`
	AddedAt     time.Time       `json:"added_at"`
	Retrying    *deliveryStatus `json:"retrying,omitempty" doc:"The event that is being tried again; all later ones wait for it"`
	DeadLetters int             `json:"dead_letters" doc:"How many events were given up"`
}

type webhookSecretStatus struct {
	webhookStatus
	Secret string `json:"secret" doc:"Standard Webhooks' symmetric secret, by which the receiver checks webhook-signature"`
}

// webhooks registers, all for operators, so each with 401, 403 and 503:
// POST /api/webhooks: 201 with Location, secret and Imgsrv-Sequence, 422 a filter or a refused target;
// GET /api/webhooks: 200; GET /api/webhooks/{id}: 200, 404; DELETE: 204 with Imgsrv-Sequence, 404;
// GET …/secret: 200, 404; GET …/dead-letters: 200, 404; GET …/deliveries/{sequence}: 200, 404;
// POST …/redeliver: 202, 404 no such webhook or event, 422 an event that isn't delivered to webhooks.
func (s *server) webhooks() {
	operate(s, events.RoleOperator, huma.Operation{
		OperationID: "add-webhook", Method: http.MethodPost, Path: pathWebhooks, DefaultStatus: http.StatusCreated, Summary: "Send events to a URL",
		Description: "Events come as CloudEvents 1.0 in HTTP binary mode, signed as Standard Webhooks says, in order, each at least once, with retries over a day. " +
			"Targets that are not public are refused unless `--webhook-allow` of the server names them.",
	}, s.addWebhook)
	operate(s, events.RoleOperator, huma.Operation{OperationID: "list-webhooks", Method: http.MethodGet, Path: pathWebhooks, Summary: "List webhooks"}, s.listWebhooks)
	operate(s, events.RoleOperator, huma.Operation{OperationID: "get-webhook", Method: http.MethodGet, Path: pathWebhook, Summary: "Look at a webhook"}, s.getWebhook)
	operate(s, events.RoleOperator, huma.Operation{OperationID: "remove-webhook", Method: http.MethodDelete, Path: pathWebhook, DefaultStatus: http.StatusNoContent,
		Summary: "Remove a webhook", Description: "Nothing more is sent to it."}, s.removeWebhook)
	operate(s, events.RoleOperator, huma.Operation{OperationID: "get-webhook-secret", Method: http.MethodGet, Path: pathWebhookSecret, Summary: "Read a webhook's secret again"}, s.webhookSecret)
	operate(s, events.RoleOperator, huma.Operation{OperationID: "list-dead-letters", Method: http.MethodGet, Path: pathDeadLetters, Summary: "List the events that were given up"}, s.deadLetters)
	operate(s, events.RoleOperator, huma.Operation{OperationID: "get-delivery", Method: http.MethodGet, Path: pathDelivery, Summary: "Look at the delivery of an event",
		Description: "There is something to see once an attempt has failed or an operator has asked for the event.",
		Errors:      []int{http.StatusUnprocessableEntity}}, s.getDelivery)
	operate(s, events.RoleOperator, huma.Operation{OperationID: "redeliver-event", Method: http.MethodPost, Path: pathRedeliver, DefaultStatus: http.StatusAccepted,
		Summary:     "Send a past event (again)",
		Description: "An event that is being retried is tried at once, and its order kept; any other is sent out of order, once, and becomes a dead letter where that fails."}, s.redeliver)
}

func (s *server) addWebhook(ctx context.Context, in *addWebhookInput) (*secretOutput[webhookSecretStatus], error) {
	id, err := uuid.NewV7()
	if err != nil {
		return nil, err
	}
	hook := events.Webhook{ID: id.String(), URL: in.Body.URL, Types: listed(in.Body.Types), Images: listed(in.Body.Images), From: events.Sequence(in.Body.From),
		Lifetime: events.Lifetime{AddedBy: access.From(ctx).Name, AddedAt: s.Clock().UTC()}}
	if hook.KeyID, err = s.Webhooks.KeyID(); err != nil {
		return nil, err
	}
	changes, err := events.AddWebhook(hook, events.Current[events.Webhook]{})
	if err != nil {
		return nil, err
	}
	if err := s.Webhooks.CheckTarget(ctx, hook.URL); err != nil {
		return nil, err
	}
	secret, err := s.Webhooks.Secret(hook)
	if err != nil {
		return nil, err
	}
	sequence, err := s.Events.Append(ctx, jetstream.Cause{Actor: hook.AddedBy}, changes...)
	if err != nil {
		return nil, err
	}
	return &secretOutput[webhookSecretStatus]{Location: webhookURL(ctx, hook.ID), Cache: "no-store", Sequence: uint64(sequence),
		Body: webhookSecretStatus{statusOfWebhook(hook, sequence, nil), secret}}, nil
}

func (s *server) listWebhooks(ctx context.Context, _ *struct{}) (*webhooksOutput, error) {
	latest, err := s.Events.Latest(ctx, events.SubjectOfKind(events.KindWebhook), events.SubjectOfKind(events.KindDelivery))
	if err != nil {
		return nil, err
	}
	deliveries := map[string][]events.Delivery{}
	for _, e := range latest {
		if f, ok := e.Fact.(events.DeliveryFact); ok {
			d := f.After()
			deliveries[d.Webhook] = append(deliveries[d.Webhook], d)
		}
	}
	out := new(webhooksOutput)
	out.Body.Webhooks = []webhookStatus{}
	removed := map[string]bool{} // where it was removed while we read, both facts are there
	for _, e := range slices.Backward(latest) {
		f, ok := e.Fact.(events.WebhookFact)
		if !ok {
			continue
		}
		hook := f.After()
		if removed[hook.ID] = removed[hook.ID] || hook.Removed; !removed[hook.ID] {
			out.Body.Webhooks = append(out.Body.Webhooks, statusOfWebhook(hook, e.Sequence, deliveries[hook.ID]))
		}
	}
	slices.Reverse(out.Body.Webhooks)
	return out, nil
}

func (s *server) getWebhook(ctx context.Context, in *webhookInput) (*bodyOutput[webhookStatus], error) {
	current, err := s.webhook(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	deliveries, err := s.deliveries(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	return &bodyOutput[webhookStatus]{Body: statusOfWebhook(current.State, current.Sequence, deliveries)}, nil
}

func (s *server) removeWebhook(ctx context.Context, in *webhookInput) (*removedOutput, error) {
	return removedAnswer(change(ctx, s, in.ID, s.webhook, func(_ context.Context, current events.Current[events.Webhook]) ([]events.Change, error) {
		return events.RemoveWebhook(current, in.ID, access.From(ctx).Name, s.Clock().UTC())
	}))
}

func (s *server) webhookSecret(ctx context.Context, in *webhookInput) (*webhookSecretOutput, error) {
	current, err := s.webhook(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	out := &webhookSecretOutput{Cache: "no-store"}
	out.Body.Secret, err = s.Webhooks.Secret(current.State)
	return out, err
}

// webhook reads one that is there.
func (s *server) webhook(ctx context.Context, id string) (events.Current[events.Webhook], error) {
	if uuid.Validate(id) != nil {
		return events.Current[events.Webhook]{}, missing("there is no webhook %q", id)
	}
	current, err := s.Events.Webhook(ctx, id)
	if err == nil && (current.Sequence == 0 || current.State.Removed) {
		err = missing("there is no webhook %s", id)
	}
	return current, err
}

func statusOfWebhook(w events.Webhook, added events.Sequence, deliveries []events.Delivery) webhookStatus {
	status := webhookStatus{ID: w.ID, URL: w.URL, Types: listed(w.Types), Images: listed(w.Images), From: uint64(w.From), AddedBy: w.AddedBy, AddedAt: w.AddedAt.UTC()}
	if w.From == 0 {
		status.From = uint64(added) + 1
	}
	for _, d := range deliveries {
		if d.GivenUp() {
			status.DeadLetters++
		}
		if d.State == events.DeliveryRetrying {
			retrying := statusOfDelivery(d)
			status.Retrying = &retrying
		}
	}
	return status
}

func webhookURL(ctx context.Context, id string) string { return base(ctx) + pathWebhooks + "/" + id }
