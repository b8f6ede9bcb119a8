package jetstream

import "github.com/nats-io/nats-server/v2/server"

// OwnConsumers are the durable consumers that publications depend on; the names are data: renaming one
// replays the whole stream to it.
const (
	ConsumerIntake      = "intake"               // handlers/publication: complete sessions become jobs
	ConsumerPublication = "publication"          // handlers/publication: the steps of a job
	ConsumerRedelivery  = "webhook-redeliveries" // handlers/webhooks: requests to deliver an event again
)

// subscriberPermissions are those of a client that shows no credentials: it may follow the events and
// manage consumers of its own, and may neither append nor touch the server's own consumers.
func subscriberPermissions() *server.Permissions {
	api := "$JS.API."
	allow := []string{
		api + "INFO",
		api + "STREAM.NAMES", api + "STREAM.LIST", api + "STREAM.INFO." + StreamName,
		// Not DELETE, PAUSE and the like: their subjects can't tell one's own consumers from others', and the
		// server ends ephemeral ones by itself.
		api + "CONSUMER.CREATE." + StreamName, api + "CONSUMER.CREATE." + StreamName + ".>",
		api + "CONSUMER.NAMES." + StreamName, api + "CONSUMER.LIST." + StreamName, api + "CONSUMER.INFO." + StreamName + ".>",
		api + "CONSUMER.DURABLE.CREATE." + StreamName + ".>",
		api + "CONSUMER.MSG.NEXT." + StreamName + ".>",
		api + "DIRECT.GET." + StreamName, api + "DIRECT.GET." + StreamName + ".>",
		"$JS.ACK." + StreamName + ".>", "$JS.FC." + StreamName + ".>",
	}
	var deny []string
	for _, own := range []string{ConsumerIntake, ConsumerPublication, ConsumerRedelivery} {
		deny = append(deny,
			api+"CONSUMER.*."+StreamName+"."+own, api+"CONSUMER.*."+StreamName+"."+own+".>",
			api+"CONSUMER.DURABLE.CREATE."+StreamName+"."+own,
			api+"CONSUMER.MSG.NEXT."+StreamName+"."+own,
			"$JS.ACK."+StreamName+"."+own+".>",
		)
	}
	return &server.Permissions{
		Publish:   &server.SubjectPermission{Allow: allow, Deny: deny},
		Subscribe: &server.SubjectPermission{Allow: []string{"_INBOX.>", "imgsrv.events.>", "deliver.>"}},
	}
}
