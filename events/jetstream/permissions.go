package jetstream

import (
	"fmt"
	"strings"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/imgsrv/imgsrv/events"
)

// OwnConsumers are the durable consumers that publications depend on; the names are data: renaming one
// replays the whole stream to it. None can be a subscriber's: events.CheckSubscriberName.
const (
	ConsumerIntake      = "intake"               // handlers/publication: complete sessions become jobs
	ConsumerPublication = "publication"          // handlers/publication: the steps of a job
	ConsumerDeltas      = "imgsrv-deltas"        // handlers/deltas: published versions get deltas from those before
	ConsumerDerive      = "derive"               // handlers/derive: further formats of published versions
	ConsumerRetention   = "retention"            // handlers/retention: versions that aren't kept are withdrawn
	ConsumerRedelivery  = "webhook-redeliveries" // handlers/webhooks: requests to deliver an event again
	ConsumerMirrors     = "imgsrv-mirrors"       // handlers/mirrors: runs that are wanted
)

// request is something that a subscriber may ask, of its own consumer and of no other.
type request struct {
	subjects string // with %s for the consumer's name
	response server.ServiceRespType
}

func (r request) subject(consumer string) string {
	return strings.ReplaceAll(r.subjects, "%s", consumer)
}

// requests are all of them. Making, changing, removing and pausing consumers is not among them: the server makes
// a subscriber's consumer, and what it filters is the subscriber's permission.
func requests() []request {
	api := "$JS.API."
	return []request{
		// How many streams and consumers there are, and how much they take. Clients ask whether there is JetStream; and
		// nats-server answers an account that doesn't import this by itself, and all other requests with it, that there is none.
		{api + "INFO", server.Singleton},
		{api + "CONSUMER.INFO." + StreamName + ".%s", server.Singleton},
		{api + "CONSUMER.MSG.NEXT." + StreamName + ".%s", server.Streamed},
		{api + "CONSUMER.RESET." + StreamName + ".%s", server.Singleton}, // begin again at an earlier event
		{"$JS.ACK." + StreamName + ".%s.>", server.Singleton},
	}
}

// Permissions are the subjects that a subscriber may publish to and subscribe to. They are not the whole of its
// bounds: a request names a subject for the answer, which no permission covers, and an answer to a subject of the
// stream would be stored there. So each subscriber has an account of its own, in which there is no stream, and
// these subjects are all that lead out of it.
func Permissions(s events.Subscriber) (publish, subscribe []string) {
	for _, r := range requests() {
		publish = append(publish, r.subject(s.Name))
	}
	return publish, append(s.Subjects(), "_INBOX.>", "_INBOX_"+s.Name+".>")
}

// export lets subscribers' accounts import what subscribers may have of the stream's account.
func export(account *server.Account) error {
	for _, r := range requests() {
		if err := account.AddServiceExportWithResponse(r.subject("*"), r.response, nil); err != nil {
			return err
		}
	}
	for _, subject := range (events.Subscriber{}).Subjects() {
		if err := account.AddStreamExport(subject, nil); err != nil {
			return err
		}
	}
	return nil
}

// importFor brings into a subscriber's account what it may have of the stream's, and nothing else.
func importFor(s events.Subscriber, account, streams *server.Account) error {
	for _, r := range requests() {
		if err := account.AddServiceImport(streams, r.subject(s.Name), r.subject(s.Name)); err != nil {
			return err
		}
	}
	for _, subject := range s.Subjects() {
		if err := account.AddStreamImport(streams, subject, ""); err != nil {
			return err
		}
	}
	return nil
}

// AccountConfig is a subscriber's account as nats-server reads it in the accounts of its configuration: for a
// server that isn't the embedded one. docs/nats-server.conf is the rest of such a configuration.
func AccountConfig(s events.Subscriber) string {
	var b strings.Builder
	list := func(what string, subjects []string) {
		fmt.Fprintf(&b, "        %s: [\n", what)
		for _, subject := range subjects {
			fmt.Fprintf(&b, "          %q\n", subject)
		}
		b.WriteString("        ]\n")
	}
	publish, subscribe := Permissions(s)
	fmt.Fprintf(&b, "  SUBSCRIBER_%s {\n    users: [{\n      nkey: %s\n      permissions {\n", s.Name, s.PublicKey)
	list("publish", publish)
	list("subscribe", subscribe)
	b.WriteString("      }\n    }]\n    imports: [\n")
	for _, subject := range publish {
		fmt.Fprintf(&b, "      { service: { account: IMGSRV, subject: %q } }\n", subject)
	}
	for _, subject := range s.Subjects() {
		fmt.Fprintf(&b, "      { stream: { account: IMGSRV, subject: %q } }\n", subject)
	}
	b.WriteString("    ]\n  }\n")
	return b.String()
}
