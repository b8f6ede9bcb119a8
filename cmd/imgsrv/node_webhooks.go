package main

import (
	"fmt"
	"path/filepath"

	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/webhooks"
	"github.com/imgsrv/imgsrv/internal/telemetry"
)

// startWebhooks sends events to the webhooks there are.
func (n *Node) startWebhooks(flags ServerFlags, dataDir string, log *jetstream.Log, tele *telemetry.Telemetry) (*webhooks.Manager, error) {
	targets, err := webhooks.ParseTargets(flags.WebhookAllow)
	if err != nil {
		return nil, fmt.Errorf("--webhook-allow: %w", err)
	}
	manager, err := webhooks.New(webhooks.Config{Log: log, Logger: n.log, Meter: tele.Meter("github.com/imgsrv/imgsrv/handlers/webhooks"), Tracer: tele.Tracer("github.com/imgsrv/imgsrv/handlers/webhooks"),
		Keys: webhooks.NewKeys(filepath.Join(dataDir, "webhook.key")), Targets: targets})
	if err != nil {
		return nil, err
	}
	n.background("webhooks", manager.Run)
	return manager, nil
}
