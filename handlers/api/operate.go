package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"
)

// operate registers an operation for operators, reads too. Until there are roles, whoever may write is one; what
// tells them apart will come in here.
func operate[I, O any](s *server, op huma.Operation, handler func(context.Context, *I) (*O, error)) {
	op.Tags = []string{tagOperate}
	op.Errors = append(op.Errors, http.StatusNotFound)
	write(s, op, handler)
}
