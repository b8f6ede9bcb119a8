package api

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/access"
)

// Paths of subscribers.
const (
	pathSubscribers = "/api/subscribers"
	pathSubscriber  = pathSubscribers + "/{name}"
)

// subscriberPatience bounds the wait until this node lets a new subscriber in, or has cut a removed one off.
const subscriberPatience = 10 * time.Second

type addSubscriberInput struct {
	Body struct {
		Name       string   `json:"name" doc:"Of the subscriber and of its durable consumer: lower-case letters, digits, '_' and '-'" example:"mirror"`
		Images     []string `json:"images,omitempty" nullable:"false" doc:"Images whose events it may read, named exactly" example:"[\"debian-bookworm\"]"`
		All        bool     `json:"all,omitempty" doc:"It may read the events of all images, private ones too; instead of images"`
		From       uint64   `json:"from,omitempty" doc:"Sequence of the first event that it gets; absent: the first of all"`
		MaxPending int      `json:"max_pending,omitempty" doc:"Events that may be out at once; absent or 1: one after the other, in order" example:"1"`
	}
}

type subscriberInput struct {
	Name string `path:"name" example:"mirror"`
}

type subscriberStatus struct {
	Name       string    `json:"name"`
	PublicKey  string    `json:"public_key" doc:"nkey of the NATS user"`
	Images     []string  `json:"images" nullable:"false" doc:"None: all"`
	From       uint64    `json:"from"`
	MaxPending int       `json:"max_pending"`
	AddedBy    string    `json:"added_by"`
	AddedAt    time.Time `json:"added_at"`
}

type subscriberPosition struct {
	subscriberStatus
	Acknowledged uint64 `json:"acknowledged" doc:"Sequence up to which it has acknowledged all that it gets"`
	Pending      uint64 `json:"pending" doc:"Events that wait for it"`
}

type subscriberAdded struct {
	subscriberStatus
	Credentials string `json:"credentials" doc:"Credentials file for NATS clients, the seed of an nkey user, shown this once: keep it secret"`
	NATSConfig  string `json:"nats_config,omitempty" doc:"Where imgsrv uses a NATS server of yours: what to put among the accounts of its configuration"`
}

type subscriberAddedOutput struct {
	Location string `header:"Location" doc:"The subscriber"`
	Cache    string `header:"Cache-Control"`
	Sequence uint64 `header:"Imgsrv-Sequence" doc:"Sequence of the event"`
	Body     subscriberAdded
}

type subscribersOutput struct {
	Body struct {
		Subscribers []subscriberPosition `json:"subscribers" nullable:"false" doc:"By name"`
	}
}

// subscribers registers, all for admins of the server, so each with 401, 403 and 503:
// GET /api/subscribers: 200; POST: 201 with Location, credentials and Imgsrv-Sequence, 409 the name is taken, 422 a broken
// rule; DELETE /api/subscribers/{name}: 204 with Imgsrv-Sequence, 404.
func (s *server) subscribers() {
	operate(s, events.RoleAdmin, huma.Operation{OperationID: "list-subscribers", Method: http.MethodGet, Path: pathSubscribers, Summary: "List who reads events over NATS"}, s.listSubscribers)
	operate(s, events.RoleAdmin, huma.Operation{
		OperationID: "add-subscriber", Method: http.MethodPost, Path: pathSubscribers, DefaultStatus: http.StatusCreated, Summary: "Let a subscriber read events over NATS",
		Description: "The answer has its credentials, once. The subscriber may read events about versions, images and aliases, of the images that it names or of all, and use the durable consumer of its name, which is made here.",
		Errors:      []int{http.StatusBadRequest, http.StatusConflict, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType, http.StatusUnprocessableEntity},
	}, s.addSubscriber)
	operate(s, events.RoleAdmin, huma.Operation{OperationID: "remove-subscriber", Method: http.MethodDelete, Path: pathSubscriber, DefaultStatus: http.StatusNoContent,
		Summary: "Remove a subscriber", Description: "Its connections to the embedded NATS server are cut, and its position is forgotten."}, s.removeSubscriber)
}

func (s *server) addSubscriber(ctx context.Context, in *addSubscriberInput) (*subscriberAddedOutput, error) {
	if in.Body.All == (len(in.Body.Images) > 0) {
		text := "name images, or say all: true, and not both"
		return nil, &events.Error{Code: events.CodeInvalid, Text: "images: " + text, Fields: []events.FieldError{{Field: "images", Text: text}}}
	}
	add := events.Subscriber{Name: in.Body.Name, Images: in.Body.Images, From: events.Sequence(in.Body.From), MaxPending: in.Body.MaxPending,
		Lifetime: events.Lifetime{AddedBy: access.From(ctx).Name, AddedAt: s.Clock().UTC()}}
	if add.MaxPending == 0 {
		add.MaxPending = 1
	}
	ctx, cancel := context.WithTimeout(ctx, subscriberPatience)
	defer cancel()
	added, credentials, sequence, err := s.Subscribers.Add(ctx, add)
	if err != nil {
		return nil, err
	}
	out := &subscriberAddedOutput{Location: base(ctx) + pathSubscribers + "/" + added.Name, Cache: "no-store", Sequence: uint64(sequence),
		Body: subscriberAdded{subscriberStatus: statusOfSubscriber(added), Credentials: string(credentials)}}
	if !s.Subscribers.Embedded() {
		out.Body.NATSConfig = jetstream.AccountConfig(added)
	}
	return out, nil
}

func (s *server) listSubscribers(ctx context.Context, _ *struct{}) (*subscribersOutput, error) {
	list, err := s.Subscribers.List(ctx)
	if err != nil {
		return nil, err
	}
	out := new(subscribersOutput)
	out.Body.Subscribers = []subscriberPosition{}
	for _, one := range list {
		out.Body.Subscribers = append(out.Body.Subscribers, subscriberPosition{statusOfSubscriber(one.Subscriber), uint64(one.Position.Acknowledged), one.Position.Pending})
	}
	return out, nil
}

func (s *server) removeSubscriber(ctx context.Context, in *subscriberInput) (*removedOutput, error) {
	ctx, cancel := context.WithTimeout(ctx, subscriberPatience)
	defer cancel()
	sequence, err := s.Subscribers.Remove(ctx, in.Name, access.From(ctx).Name, s.Clock().UTC())
	if err != nil {
		return nil, err
	}
	return &removedOutput{Sequence: uint64(sequence)}, nil
}

func statusOfSubscriber(s events.Subscriber) subscriberStatus {
	return subscriberStatus{Name: s.Name, PublicKey: s.PublicKey, Images: orEmpty(s.Images), From: uint64(s.From), MaxPending: s.MaxPending, AddedBy: s.AddedBy, AddedAt: s.AddedAt.UTC()}
}
