// Package eventcontract makes the machine-readable contract of the events of what the Go source says: a JSON
// Schema for each stored type, and the AsyncAPI document. It exists so that neither is written by hand, and
// it judges whether a schema has changed so that old events still satisfy it. Only the generator command and
// tests import it; it must not know how events are stored or served.
package eventcontract
