package pgtest

import (
	"context"
	"errors"
	"fmt"

	"github.com/testcontainers/testcontainers-go"
	tcpostgres "github.com/testcontainers/testcontainers-go/modules/postgres"
)

// containerImage is the server of last resort. Its major version is one that also the packages of supported
// distributions have.
const containerImage = "postgres:17-alpine"

// startContainer starts a server in Docker. The library's own helper container removes it after the test process.
func startContainer(ctx context.Context) (*instance, error) {
	if err := dockerAnswers(ctx); err != nil {
		return nil, fmt.Errorf("%w (Docker: %w)", errAbsent, err)
	}
	c, err := tcpostgres.Run(ctx, containerImage,
		tcpostgres.WithDatabase("imgsrv"), tcpostgres.WithUsername("imgsrv"), tcpostgres.WithPassword("imgsrv"),
		testcontainers.WithCmd("postgres", "-c", "fsync=off", "-c", "full_page_writes=off", "-c", "synchronous_commit=off"),
		tcpostgres.BasicWaitStrategies())
	if err != nil {
		return nil, fmt.Errorf("start a PostgreSQL container: %w", err)
	}
	u, err := c.ConnectionString(ctx, "sslmode=disable")
	if err != nil {
		return nil, fmt.Errorf("find the PostgreSQL container: %w", err)
	}
	return &instance{url: u}, nil
}

func dockerAnswers(ctx context.Context) (err error) {
	// The library panics on some machines without Docker instead of returning an error.
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("look for Docker: %v", r)
		}
	}()
	provider, err := testcontainers.ProviderDefault.GetProvider()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, provider.Close()) }()
	return provider.Health(ctx)
}
