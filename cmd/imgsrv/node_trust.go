package main

import (
	"context"
	"fmt"

	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/access/oidc"
)

// trust is how the node knows callers by tokens of OIDC issuers.
type trust struct {
	rules    *oidc.Rules
	verifier *oidc.Verifier
}

// startTrust follows the trust rules; when it returns those that there are count.
func (n *Node) startTrust(ctx context.Context, flags ServerFlags, log *jetstream.Log) (trust, error) {
	rules := oidc.NewRules(log, n.log)
	if err := rules.CatchUp(ctx); err != nil {
		return trust{}, err
	}
	verifier, err := oidc.New(oidc.Config{Rules: rules.Living, Logger: n.log, CAFile: flags.OIDCCAFile})
	if err != nil {
		return trust{}, fmt.Errorf("--oidc-ca-file: %w", err)
	}
	n.onStop("connections to OIDC issuers", verifier.Close)
	n.background("trust rules", rules.Run)
	return trust{rules, verifier}, nil
}
