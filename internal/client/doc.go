// Package client speaks imgsrv's HTTP API for programs that publish and fetch images: it resumes uploads and downloads over
// broken connections and turns refusals into typed errors. It must not know the server's insides, nor print anything.
package client
