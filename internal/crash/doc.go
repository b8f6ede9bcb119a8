// Package crash has the tests that end a server with SIGKILL, at every place that package faults marks, and look what is left: they
// build imgsrv with the tag faults, and talk to it over HTTP as its clients do. There is nothing in it but tests.
package crash
