// Package docs holds the documents that the server itself serves. It exists because only a Go file beside
// them can embed them, and knows nothing of the rest of the project.
package docs

import _ "embed"

// AsyncAPI is the AsyncAPI 3.0 document of the events, in YAML; go generate ./events makes it.
//
//go:embed asyncapi.yaml
var AsyncAPI []byte
