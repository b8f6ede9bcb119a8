package eventcontract

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/google/jsonschema-go/jsonschema"
	"go.yaml.in/yaml/v3"

	"github.com/imgsrv/imgsrv/events"
)

type (
	object map[string]any
	array  []any
)

// asyncAPI makes the AsyncAPI 3.0 document (https://www.asyncapi.com/docs/reference/specification/v3.0.0) of
// the three ways in which events leave imgsrv: the NATS stream, server-sent events, webhooks. The result is YAML.
func asyncAPI(schemas map[events.Type]*jsonschema.Schema) ([]byte, error) {
	types := slices.Sorted(maps.Keys(schemas))
	messages, payloads := object{}, object{}
	references, refsOfPayloads := object{}, array{}
	for _, typ := range types {
		payload, err := schemaObject(schemas[typ])
		if err != nil {
			return nil, fmt.Errorf("payload of %s: %w", typ, err)
		}
		payloads[string(typ)] = payload
		message := object{
			"name": string(typ), "title": string(typ), "summary": schemas[typ].Description, "contentType": "application/json",
			"tags":    array{object{"name": events.KindOf(typ)}},
			"headers": ref("schemas/EnvelopeHeaders"), "payload": ref("schemas/" + string(typ)),
		}
		messages[string(typ)] = message
		references[string(typ)] = ref("messages/" + string(typ))
		refsOfPayloads = append(refsOfPayloads, ref("schemas/"+string(typ)))
	}
	messages["ServerSentEvent"] = object{
		"name": "ServerSentEvent", "title": "One server-sent event", "contentType": "text/event-stream",
		"summary": "Its id is the sequence, its event the type, its data the payload described here, on one line.",
		"payload": ref("schemas/ServerSentEvent"),
	}
	messages["WebhookDelivery"] = object{
		"name": "WebhookDelivery", "title": "One delivery to a webhook", "contentType": "application/json",
		"summary": "CloudEvents 1.0 over HTTP in binary mode, signed as Standard Webhooks says. Any 2xx answer accepts it.",
		"headers": ref("schemas/WebhookHeaders"), "payload": ref("schemas/AnyEvent"),
	}
	payloads["EnvelopeHeaders"] = headers(envelopeHeaders())
	payloads["WebhookHeaders"] = headers(webhookHeaders())
	payloads["AnyEvent"] = object{"description": "The payload of the event; its type says which.", "anyOf": refsOfPayloads}
	payloads["ServerSentEvent"] = serverSentEvent()
	return asYAML([]object{ // in the order of reading
		{"asyncapi": "3.0.0"},
		{"id": "urn:imgsrv:events"},
		{"info": info()},
		{"defaultContentType": "application/json"},
		{"servers": servers()},
		{"channels": channels(types, references)},
		{"operations": operations()},
		{"components": object{"messages": messages, "schemas": payloads, "securitySchemes": object{"token": object{"type": "http", "scheme": "bearer"}}}},
	})
}

func ref(component string) object { return object{"$ref": "#/components/" + component} }

func info() object {
	return object{
		"title": "imgsrv events", "version": "1.0.0",
		"license": object{"name": "MIT OR Apache-2.0"},
		"description": "What happens in imgsrv, as facts in one ordered stream. An event carries the whole state of its entity, " +
			"so that the last one of a subject is enough to know it. A type's version is in its name; " +
			"old versions stay in the stream as they were written.\n\n" +
			"Made by `go generate ./events`; not edited by hand.",
	}
}

func servers() object {
	return object{
		"nats": object{"host": "127.0.0.1:4222", "protocol": "nats", "description": "The NATS server, embedded or not; the stream is IMGSRV_EVENTS. It needs the credentials of a subscriber, an nkey, as imgsrv subscribers add prints them."},
		"http": object{"host": "127.0.0.1:8080", "protocol": "http", "description": "imgsrv's HTTP listener."},
		"receiver": object{"host": "{host}", "protocol": "https", "description": "Whoever added a webhook.",
			"variables": object{"host": object{"description": "Host and port of the webhook's URL.", "default": "receiver.example"}}},
	}
}

func channels(types []events.Type, messages object) object {
	var kinds array
	for _, typ := range types {
		if kind := events.KindOf(typ); !slices.Contains(kinds, any(kind)) {
			kinds = append(kinds, kind)
		}
	}
	return object{
		"stream": object{
			"title": "The stream", "address": events.SubjectPrefix + "{entity}.{id}",
			"description": "One subject per entity. The parts of an id are tokens of their own; in each, '%', '.', '*', '>' and the space are percent-encoded.",
			"servers":     array{object{"$ref": "#/servers/nats"}},
			"parameters": object{
				"entity": object{"description": "Kind of entity.", "enum": kinds},
				"id":     object{"description": "The entity's id, one or more tokens.", "examples": array{"debian-bookworm", "debian-bookworm.12%2E5%2E0"}},
			},
			"messages": messages,
		},
		"serverSentEvents": object{
			"title": "Server-sent events", "address": "/api/events",
			"description": "The stream over HTTP, from now, or from after a sequence, then as it grows. Without a token only what is public.",
			"servers":     array{object{"$ref": "#/servers/http"}},
			"messages":    object{"ServerSentEvent": ref("messages/ServerSentEvent")},
		},
		"webhook": object{
			"title": "Webhooks", "address": nil,
			"description": "A POST to the URL that a webhook was added with: in order, one at a time, again after a failure.",
			"servers":     array{object{"$ref": "#/servers/receiver"}},
			"messages":    object{"WebhookDelivery": ref("messages/WebhookDelivery")},
		},
	}
}

func operations() object {
	query := object{"type": "object", "properties": object{
		"image": object{"type": "string", "description": "Only events about this image; several are separated by commas."},
		"type":  object{"type": "string", "description": "Only events of this type, or with this prefix if it ends with '*'; several are separated by commas."},
		"after": object{"type": "integer", "minimum": 0, "description": "As the header Last-Event-ID: the sequence of the last event that is known already; 0 begins with the first."},
	}}
	return object{
		"publishEvent": object{"action": "send", "summary": "Every event, once it is stored.", "channel": object{"$ref": "#/channels/stream"}},
		"streamEvents": object{"action": "send", "summary": "Events as server-sent events.", "channel": object{"$ref": "#/channels/serverSentEvents"},
			"security": array{ref("securitySchemes/token")},
			"bindings": object{"http": object{"method": "GET", "query": query, "bindingVersion": "0.3.0"}}},
		"deliverEvent": object{"action": "send", "summary": "An event to a webhook.", "channel": object{"$ref": "#/channels/webhook"},
			"bindings": object{"http": object{"method": "POST", "bindingVersion": "0.3.0"}}},
	}
}

type header struct {
	name, description, format string
	optional                  bool
}

// envelopeHeaders are those that package events/jetstream writes; a test compares.
func envelopeHeaders() []header {
	return []header{
		{name: "ce-specversion", description: "1.0"},
		{name: "ce-id", description: "The event's id. It derives from the cause, so that an event appended twice is one."},
		{name: "ce-source", description: "The server that appended it.", format: "uri-reference"},
		{name: "ce-type", description: "The type with its version."},
		{name: "ce-time", description: "When it was appended, UTC.", format: "date-time"},
		{name: "ce-subject", description: "The entity's id, parts joined by '/'."},
		{name: "content-type", description: "application/json"},
		{name: "ce-actor", description: "Who: a principal's name, or imgsrv for what the server does by itself.", optional: true},
		{name: "ce-correlationid", description: "The upload session that the chain of events began with.", optional: true},
		{name: "ce-causationid", description: "The event or command that led to this one.", optional: true},
		{name: "traceparent", description: "W3C trace context.", optional: true},
	}
}

// webhookHeaders are the envelope's, where trace context is an attribute of the event as any other (the
// CloudEvents extension for distributed tracing), and those of Standard Webhooks.
func webhookHeaders() []header {
	list := envelopeHeaders()
	for i := range list {
		if list[i].name == "traceparent" {
			list[i].name = "ce-traceparent"
		}
	}
	return append(list, []header{
		{name: "imgsrv-sequence", description: "The event's place in the stream."},
		{name: "webhook-id", description: "As ce-id: the same for each attempt."},
		{name: "webhook-timestamp", description: "Of the attempt, in seconds since 1970."},
		{name: "webhook-signature", description: "v1, and the base64 of the HMAC-SHA256 of id, timestamp and body joined by '.', under the webhook's secret."},
	}...)
}

func headers(list []header) object {
	properties, required := object{}, array{}
	for _, h := range list {
		property := object{"type": "string", "description": h.description}
		if h.format != "" {
			property["format"] = h.format
		}
		properties[h.name] = property
		if !h.optional {
			required = append(required, h.name)
		}
	}
	return object{"type": "object", "properties": properties, "required": required}
}

func serverSentEvent() object {
	text := func(description string) object { return object{"type": "string", "description": description} }
	return object{
		"type": "object",
		"properties": object{
			"sequence":       object{"type": "integer", "minimum": 1, "description": "Place in the stream."},
			"id":             text("As ce-id."),
			"type":           text("As ce-type."),
			"time":           object{"type": "string", "format": "date-time", "description": "As ce-time."},
			"subject":        text("As ce-subject."),
			"actor":          text("As ce-actor."),
			"correlation_id": text("As ce-correlationid."),
			"causation_id":   text("As ce-causationid."),
			"data":           ref("schemas/AnyEvent"),
		},
		"required": array{"sequence", "id", "type", "time", "subject", "data"},
	}
}

// schemaObject is a schema without what AsyncAPI's own schema objects, a superset of JSON Schema draft 07, don't have.
func schemaObject(schema *jsonschema.Schema) (map[string]any, error) {
	data, err := json.Marshal(schema)
	if err != nil {
		return nil, err
	}
	var out map[string]any
	if err := json.Unmarshal(data, &out); err != nil {
		return nil, err
	}
	delete(out, "$schema")
	delete(out, "$id")
	return out, nil
}

// asYAML writes the sections one after the other as one document.
func asYAML(sections []object) ([]byte, error) {
	var out bytes.Buffer
	for _, section := range sections {
		// Through JSON, so that the types of this package, and numbers, are written as plain values.
		data, err := json.Marshal(section)
		if err != nil {
			return nil, fmt.Errorf("write the AsyncAPI document: %w", err)
		}
		decoder := json.NewDecoder(bytes.NewReader(data))
		decoder.UseNumber()
		var plain any
		if err := decoder.Decode(&plain); err != nil {
			return nil, fmt.Errorf("write the AsyncAPI document: %w", err)
		}
		encoder := yaml.NewEncoder(&out)
		encoder.SetIndent(2)
		if err := errors.Join(encoder.Encode(numbers(plain)), encoder.Close()); err != nil {
			return nil, fmt.Errorf("write the AsyncAPI document: %w", err)
		}
	}
	return out.Bytes(), nil
}

// numbers makes integers of JSON's numbers, of which this document has no others.
func numbers(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for key := range v {
			v[key] = numbers(v[key])
		}
	case []any:
		for i := range v {
			v[i] = numbers(v[i])
		}
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return n
		}
	}
	return v
}
