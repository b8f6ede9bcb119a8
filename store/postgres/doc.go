// Package postgres gives imgsrv its PostgreSQL: a pool of connections to any server, and, where the operator names
// none, a private server that imgsrv starts from the machine's own binaries and stops again.
//
// It exists so that nothing else has to know where the server comes from. It must not know tables, events or
// migrations: what is in the database is the business of the packages that are handed the pool.
package postgres
