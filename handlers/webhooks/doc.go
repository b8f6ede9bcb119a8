// Package webhooks sends events to the HTTP endpoints that operators have added: CloudEvents 1.0 in HTTP
// binary mode, signed as Standard Webhooks says. It exists so that a service that can do no more than answer
// HTTP misses no event. It must not know what an event means beyond its type and image, and keeps nothing that
// isn't in the log: consumers hold the positions, facts of the entity delivery the failures.
//
// # Order, attempts, dead letters
//
// Each webhook has a durable consumer with one event in flight: events come in the order of their sequences,
// each at least once (webhook-id tells repetitions). A failed attempt becomes a fact, attempt_failed, with the
// time of the next one, and all later events of this webhook wait: an order with holes would be none. After the
// last attempt, about a day after the first, the event is dead_lettered and the next one has its turn. So a
// receiver that is away for an hour gets everything late and in order, and one that chokes on a single event for
// ever is held up by it for a day, or until an operator steps in.
//
// An operator's request (the fact requested) makes an event that is being retried due at once, in its order. Any
// other past event is sent out of order, once, by the consumer webhook-redeliveries; its outcome is redelivered
// or dead_lettered.
//
//	(none) --failed--> retrying --failed--> … --last attempt--> dead --requested--> redelivery --> delivered | dead
//	   \--delivered (no fact)   \--delivered--> delivered --requested--> redelivery
//
// Several nodes may run; the consumers share the work. Where two disagree, the delivery's last fact is right. A
// node that dies between the receiver's answer and the acknowledgement sends the event once more.
//
// # Targets
//
// A webhook makes the server send requests on somebody's behalf, so private, loopback and other special addresses
// are refused, when the webhook is added and again at each connection, by the address that is dialled: a name
// that later resolves to something else gains nothing. Redirects are not followed, proxies not used, answers not
// kept. Only the operator of the server makes exceptions, by --webhook-allow.
package webhooks
