package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/internal/certs"
	"github.com/imgsrv/imgsrv/internal/telemetry"
	"github.com/imgsrv/imgsrv/store/blob"
	"github.com/imgsrv/imgsrv/store/catalog"
)

// observePatience bounds a question to PostgreSQL for one reading of the metrics. While it is away, there are no figures.
const observePatience = time.Second

// observe measures what no single part can: the storage, and what the tables say of jobs and further formats.
func (n *Node) observe(tele *telemetry.Telemetry, blobs *blob.Store, tables *catalog.Catalog) error {
	m := tele.Meter("github.com/imgsrv/imgsrv/cmd/imgsrv")
	var errs [6]error
	gauge := func(i int, name, unit, description string) (g metric.Int64ObservableGauge) {
		g, errs[i] = m.Int64ObservableGauge(name, metric.WithUnit(unit), metric.WithDescription(description))
		return g
	}
	free := gauge(0, "imgsrv.storage.free", "By", "What may still be written, on the fullest of the storage's file systems")
	size := gauge(1, "imgsrv.storage.size", "By", "Size of that file system")
	jobs := gauge(2, "imgsrv.jobs", "", "Publication jobs by state; each node tells the same")
	oldest := gauge(3, "imgsrv.jobs.oldest.age", "s", "Time since the oldest of the jobs that have not ended was queued; 0 without one; each node tells the same")
	formats := gauge(4, "imgsrv.derive.given_up", "", "Further formats that could not be made and are not tried again; each node tells the same")
	space, err := m.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		left, total, err := blobs.Space()
		if err != nil {
			return err
		}
		o.ObserveInt64(free, left)
		o.ObserveInt64(size, total)
		return nil
	}, free, size)
	errs[5] = err
	if err := errors.Join(errs[:]...); err != nil {
		return fmt.Errorf("make meters: %w", err)
	}
	n.onStop("figures of the storage", space.Unregister)
	counts, err := m.RegisterCallback(func(ctx context.Context, o metric.Observer) error {
		ctx, cancel := context.WithTimeout(ctx, observePatience)
		defer cancel()
		known, err := tables.JobCounts(ctx)
		if err != nil {
			return err
		}
		of := map[events.JobState]int64{}
		var age time.Duration
		for _, c := range known {
			of[c.State] = c.Jobs
			if c.State == events.JobStateQueued || c.State == events.JobStateRunning {
				age = max(age, time.Since(c.Oldest))
			}
		}
		for _, state := range []events.JobState{events.JobStateQueued, events.JobStateRunning, events.JobStateSucceeded, events.JobStateFailed, events.JobStateCancelled} {
			o.ObserveInt64(jobs, of[state], metric.WithAttributes(attribute.String("state", string(state))))
		}
		o.ObserveInt64(oldest, int64(age.Seconds()))
		_, failed, err := tables.DerivedGivenUp(ctx, 1)
		if err == nil {
			o.ObserveInt64(formats, failed)
		}
		return err
	}, jobs, oldest, formats)
	if err != nil {
		return fmt.Errorf("make meters: %w", err)
	}
	n.onStop("figures of jobs", counts.Unregister)
	return nil
}

// observeCertificates tells when the HTTPS listener's certificates end.
func (n *Node) observeCertificates(tele *telemetry.Telemetry, keeper *certs.Keeper) error {
	m := tele.Meter("github.com/imgsrv/imgsrv/cmd/imgsrv")
	end, err := m.Int64ObservableGauge("imgsrv.tls.certificate.not_after.timestamp", metric.WithUnit("s"), metric.WithDescription("When the certificate of a name ends, in Unix time"))
	if err != nil {
		return fmt.Errorf("make meters: %w", err)
	}
	registration, err := m.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		for name, until := range keeper.Until() {
			o.ObserveInt64(end, until.Unix(), metric.WithAttributes(attribute.String("name", name)))
		}
		return nil
	}, end)
	if err != nil {
		return fmt.Errorf("make meters: %w", err)
	}
	n.onStop("ends of certificates", registration.Unregister)
	return nil
}
