package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/go-chi/chi/v5"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/access"
	"github.com/imgsrv/imgsrv/handlers/api"
	"github.com/imgsrv/imgsrv/handlers/backup"
	"github.com/imgsrv/imgsrv/handlers/operations"
	"github.com/imgsrv/imgsrv/handlers/publication"
	"github.com/imgsrv/imgsrv/handlers/retention"
	"github.com/imgsrv/imgsrv/handlers/streams"
	"github.com/imgsrv/imgsrv/handlers/tus"
	"github.com/imgsrv/imgsrv/internal/certs"
	"github.com/imgsrv/imgsrv/internal/datadir"
	"github.com/imgsrv/imgsrv/internal/secretfile"
	"github.com/imgsrv/imgsrv/internal/telemetry"
	"github.com/imgsrv/imgsrv/internal/tusname"
	"github.com/imgsrv/imgsrv/projections"
	"github.com/imgsrv/imgsrv/store/blob"
	"github.com/imgsrv/imgsrv/store/catalog"
	"github.com/imgsrv/imgsrv/store/known"
)

// Node is a running server: all its parts, and where they can be found.
type Node struct {
	HTTPURL    string
	HTTPSURL   string // "" without
	CertFile   string // of the self-signed certificate; "" with one of the operator's
	MetricsURL string // "" without
	EventsAt   string
	PostgresAt string
	StorageDir string
	NewToken   string // the admin's token, when this start made it
	Token      string
	Took       time.Duration // from the call to ready

	log      *slog.Logger
	failed   chan error
	router   chi.Router
	closers  []closer      // in start order; stopped in reverse
	certs    *certs.Keeper // of the HTTPS listener; nil without one
	servers  []*listening  // in start order
	drain    sync.Once
	patience time.Duration // that requests have to finish at the stop
	stop     sync.Once
	stopErr  error
}

type closer struct {
	what  string
	close func() error
}

// testHooks are where tests reach into a node.
type testHooks struct {
	stepStarted       func(job string, step events.Step)
	deriveStarted     func(events.Derived)
	backupTold        func(backup.Progress)
	readHeaderTimeout time.Duration // 0: as always
	certInterval      time.Duration // 0: certs.Interval
	mirrorTick        time.Duration // between looks for mirrors that are due; 0: as always
	mirrorPause       time.Duration // before a mirror makes a request again; 0: as always
	noGrace           bool          // garbage is collected at once
	scrubRepairEvery  time.Duration // between questions for damaged blobs; 0: as always; negative: none by itself
}

// StartNode starts every part, in order, and returns when the node serves. Where a part fails, those
// before it are stopped again.
func StartNode(ctx context.Context, flags ServerFlags, log *slog.Logger) (*Node, error) {
	return startNode(ctx, flags, log, testHooks{})
}

func startNode(ctx context.Context, flags ServerFlags, log *slog.Logger, hooks testHooks) (*Node, error) {
	n := &Node{log: log, failed: make(chan error, 8)}
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	if err := n.start(ctx, flags, hooks); err != nil {
		return nil, errors.Join(err, n.Stop())
	}
	return n, nil
}

func (n *Node) start(ctx context.Context, flags ServerFlags, hooks testHooks) error {
	dataDir := flags.DataDir
	n.patience = cmp.Or(flags.StopTimeout, stopPatience)
	began := time.Now()
	if err := flags.check(); err != nil {
		return err
	}

	lock, err := datadir.Open(dataDir)
	if err != nil {
		return err
	}
	n.onStop("data folder", lock.Close)
	if err := flags.checkAddresses(ctx); err != nil {
		return err
	}
	if err := backup.CheckFinished(dataDir); err != nil {
		return err
	}
	for _, folder := range []string{dataDir, filepath.Join(dataDir, "tls")} {
		if err := secretfile.Sweep(folder); err != nil {
			return err
		}
	}
	tele, err := telemetry.New()
	if err != nil {
		return err
	}
	n.onStop("telemetry", func() error { return tele.Shutdown(context.Background()) })
	if err := tele.TraceTo(ctx, os.Getenv, version(), n.log); err != nil {
		return err
	}
	token, made, err := access.AdminToken(filepath.Join(dataDir, "admin.token"))
	if err != nil {
		return err
	}
	if n.Token = token; made {
		n.NewToken = token
	}

	n.StorageDir = flags.StorageDir
	if n.StorageDir == "" {
		n.StorageDir = filepath.Join(dataDir, "storage")
	}
	blobs, err := blob.Open(n.StorageDir)
	if err != nil {
		return fmt.Errorf("open the storage: %w: choose another folder with --storage-dir", err)
	}

	connectPostgres := n.beginPostgres(ctx, flags, dataDir)
	nc, server, err := n.connectNATS(ctx, flags, dataDir)
	if err != nil {
		return err
	}
	events, err := jetstream.Open(ctx, nc, jetstream.Config{Source: "imgsrv", Log: n.log, Meter: tele.Meter("github.com/imgsrv/imgsrv/events/jetstream"),
		Tracer: tele.Tracer("github.com/imgsrv/imgsrv/events/jetstream")})
	if err != nil {
		return err
	}

	trust, err := n.startTrust(ctx, flags, events)
	if err != nil {
		return err
	}
	directory := access.NewDirectory(access.DirectoryConfig{Log: events, Logger: n.log, Trusted: trust.rules.Has})
	if err := directory.CatchUp(ctx); err != nil {
		return fmt.Errorf("read who may do what: %w", err)
	}
	if !access.IsToken(token) {
		n.log.Warn("admin.token holds no token of imgsrv's making: whoever guesses it is an admin", "remedy", "remove the file and start again, or: imgsrv tokens rotate")
	}
	if id, known := directory.AddBuiltIn(token); known {
		if _, why, _ := directory.Token(id); why != "" {
			n.log.Warn("the token in admin.token is not good any more", "reason", why, "remedy", "where no other admin's token is left, remove the file and start again")
		}
	}
	n.background("directory of principals and tokens", directory.Run)
	guard := directory.Guard(trust.verifier.Authenticate)
	subscribers := n.startSubscribers(events, server)
	files := known.New()

	pool, err := connectPostgres()
	if err != nil {
		return err
	}
	var runners [3]*projections.Runner
	var operators []*projections.Operator
	for i, projector := range projectors() {
		runners[i], err = projections.NewRunner(pool, events, projector, projections.Config{Log: n.log, Meter: tele.Meter("github.com/imgsrv/imgsrv/projections"),
			Tracer: tele.Tracer("github.com/imgsrv/imgsrv/projections")})
		if err != nil {
			return err
		}
		n.background("projection "+projector.Name(), runners[i].Run)
		operators = append(operators, n.operator(pool, events, projector, runners[i]))
		stop, err := operators[i].ObserveRows(tele.Meter("github.com/imgsrv/imgsrv/projections"))
		if err != nil {
			return err
		}
		n.onStop("row counts of "+projector.Name(), stop)
	}

	limited, err := n.startLimits(ctx, flags.LimitFlags, events, blobs, tele)
	if err != nil {
		return err
	}
	uploads, err := tus.New(tus.Config{Log: events, Store: blobs, Guard: guard, MaxUploadBytes: flags.MaxUploadBytes, Logger: n.log,
		Idle: flags.UploadExpiry, Stall: flags.UploadStallTimeout, Uploads: limited.uploads, Intake: limited.intake})
	if err != nil {
		return err
	}
	if err := uploads.Recover(ctx); err != nil {
		return fmt.Errorf("recover uploads: %w", err)
	}
	n.background("upload expiry", func(ctx context.Context) error {
		uploads.Expire(ctx, time.Minute)
		return nil
	})
	mirrors, err := n.newMirrors(flags, dataDir, events, blobs, tele, hooks)
	if err != nil {
		return err
	}
	// Before anything reads blobs: what is known to be damaged is not served.
	scrubber, err := n.newScrub(flags, dataDir, events, blobs, mirrors, tele, hooks)
	if err != nil {
		return err
	}
	publications, err := publication.New(publication.Config{Log: events, Store: blobs, Logger: n.log, Meter: tele.Meter("github.com/imgsrv/imgsrv/handlers/publication"),
		Attempts: flags.JobAttempts, StepTimeout: flags.StepTimeout, StepStarted: hooks.stepStarted})
	if err != nil {
		return err
	}
	n.background("publications", publications.Run)
	deltas := n.startDeltas(flags.Deltas, events, blobs)
	if err := n.startDerive(flags.DeriveFlags, events, blobs, tele, hooks); err != nil {
		return err
	}

	webhooks, err := n.startWebhooks(flags, dataDir, events, tele)
	if err != nil {
		return err
	}
	keys, err := n.signingKeys(flags, dataDir)
	if err != nil {
		return err
	}
	collector, err := n.newGarbage(flags.garbageFlags, events, blobs, tele, hooks)
	if err != nil {
		return err
	}
	backups, err := n.backups(flags, dataDir, events, blobs, tele, hooks)
	if err != nil {
		return err
	}
	works := operations.NewRunner(n.log, time.Now)
	n.onStop("operations", func() error { works.Close(); return nil })
	tables := catalog.New(pool, runners[0].Edition)
	if err := n.observe(tele, blobs, tables); err != nil {
		return err
	}
	router, err := api.New(api.Config{
		Log: n.log, Meter: tele.Meter("github.com/imgsrv/imgsrv/handlers/api"), Tracer: tele.Tracer("github.com/imgsrv/imgsrv/handlers/api"), Guard: guard, Events: events, Catalog: tables, Known: files, Blobs: blobs, Offsets: uploads, ExpiresAt: uploads.ExpiresAt,
		Webhooks: webhooks, Mirrors: mirrors, Subscribers: subscribers, TrustRules: trust.rules, OIDC: trust.verifier, SigningKey: keys.checksums, SignedStreams: keys.streams != nil,
		CatalogProjection: runners[0], JobsProjection: runners[1], StreamsProjection: runners[2], Operators: operators, PingPostgres: pool.Ping,
		MaxUploadBytes: flags.MaxUploadBytes, Version: version(), Load: limited.load, Requests: limited.requests, Intake: limited.intake, Deltas: deltas, Operations: works, Backups: backups, Scrub: scrubber, Garbage: collector,
	})
	if err != nil {
		return err
	}
	router.Mount(tusname.BasePath, uploads)
	simplestreams := streams.New(streams.Config{Pool: pool, Log: n.log, Edition: runners[2].Edition, Signer: keys.streams})
	router.Mount("/streams/v1/", api.Authenticate(guard, n.log)(api.MinSequence(events, 5*time.Second, n.log, runners[2])(simplestreams)))

	n.router = router
	n.startMirrors(mirrors, router)
	if err := n.serve(ctx, flags, dataDir, router, tele, hooks); err != nil {
		return err
	}
	// What reads all that ever happened, and nobody has to wait for, comes when there is nothing else to do any more.
	n.background("retention", retention.New(retention.Config{Log: events, Logger: n.log}).Run)
	n.background("scrub", scrubber.Run)
	n.background("garbage collection", collector.Run)
	n.background("simplestreams documents kept in memory", simplestreams.Keep)
	n.startKnown(files, events)
	n.Took = time.Since(began)
	return nil
}

// check refuses what is wrong with the flags before anything is started.
func (f ServerFlags) check() error {
	if err := f.checkWeb(); err != nil {
		return err
	}
	if err := f.natsFlags.check(f.NATSURL); err != nil {
		return err
	}
	if f.StopTimeout < 0 {
		return errors.New("--stop-timeout is a duration from 0")
	}
	if f.MaxUploadBytes < 0 {
		return errors.New("--max-upload-bytes is a number of bytes from 0")
	}
	if err := f.LimitFlags.check(); err != nil {
		return err
	}
	if err := checkDeltas(f.Deltas); err != nil {
		return err
	}
	if f.JobAttempts < 0 {
		return errors.New("--job-attempts is a number from 1")
	}
	if f.StepTimeout != 0 && f.StepTimeout < time.Second {
		return errors.New("--step-timeout is a time from one second, such as 2h")
	}
	if err := f.DeriveFlags.check(); err != nil {
		return err
	}
	if err := f.garbageFlags.check(); err != nil {
		return err
	}
	if _, err := f.ScrubRate.bytes(); err != nil {
		return fmt.Errorf("--scrub-rate: %w", err)
	}
	return nil
}

// checkAddresses finds out what is taken: now that costs a moment, after PostgreSQL's start it would cost seconds.
func (f ServerFlags) checkAddresses(ctx context.Context) error {
	var taken error // all of them in one line, so that nobody has to try again for each
	for _, a := range f.addresses() {
		l, err := listen(ctx, a.addr, a.flag)
		if err == nil {
			err = l.Close()
		}
		switch {
		case taken == nil:
			taken = err
		case err != nil:
			taken = fmt.Errorf("%w; %w", taken, err)
		}
	}
	return taken
}

// background runs a part until the node stops. A part that ends by itself ends the node.
func (n *Node) background(what string, run func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		err := run(ctx)
		if err == nil {
			err = errors.New("nothing more to do")
		}
		if ctx.Err() == nil {
			n.failed <- fmt.Errorf("%s ended: %w", what, err)
		}
	}()
	n.onStop(what, func() error {
		cancel()
		<-done
		return nil
	})
}

func (n *Node) onStop(what string, f func() error) { n.closers = append(n.closers, closer{what, f}) }

// Wait returns when ctx ends, or with an error when a part has failed.
func (n *Node) Wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case err := <-n.failed:
		return err
	}
}

// Stop ends the parts in the reverse of their start order. It may be called again.
func (n *Node) Stop() error {
	n.stop.Do(func() {
		var errs []error
		for i := len(n.closers) - 1; i >= 0; i-- {
			c := n.closers[i]
			n.log.Debug("stopping", "part", c.what)
			if err := c.close(); err != nil && !errors.Is(err, os.ErrClosed) {
				errs = append(errs, fmt.Errorf("stop %s: %w", c.what, err))
			}
		}
		n.stopErr = errors.Join(errs...)
	})
	return n.stopErr
}
