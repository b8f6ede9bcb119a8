package projections

import (
	"context"
	"fmt"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// ObserveRows shows the rows of each table, as [Operator.Report] counts them, until the returned function is called.
// While PostgreSQL is away there is no figure.
func (o *Operator) ObserveRows(m metric.Meter) (stop func() error, err error) {
	rows, err := m.Int64ObservableGauge("imgsrv.projections.rows", metric.WithDescription("Rows of a projection's table; of a large one an estimate"))
	if err != nil {
		return nil, fmt.Errorf("make meters: %w", err)
	}
	registration, err := m.RegisterCallback(func(ctx context.Context, observer metric.Observer) error {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		var report Report
		if err := o.tables(ctx, &report); err != nil {
			return err
		}
		for _, table := range report.Tables {
			observer.ObserveInt64(rows, table.Rows, metric.WithAttributes(attribute.String("projection", o.Name()), attribute.String("table", table.Table)))
		}
		return nil
	}, rows)
	if err != nil {
		return nil, fmt.Errorf("observe the rows: %w", err)
	}
	return registration.Unregister, nil
}
