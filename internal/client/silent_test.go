package client_test

import (
	"io"

	tusslog "golang.org/x/exp/slog"
)

// silent is a logger for tusd that says nothing. It wants the type of x/exp.
func silent() *tusslog.Logger { return tusslog.New(tusslog.NewTextHandler(io.Discard, nil)) }
