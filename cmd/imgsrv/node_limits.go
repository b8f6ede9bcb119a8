package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/limits"
	"github.com/imgsrv/imgsrv/internal/telemetry"
	"github.com/imgsrv/imgsrv/internal/tusname"
	"github.com/imgsrv/imgsrv/store/blob"
)

// LimitFlags say what one client may take. The zero value limits nothing.
type LimitFlags struct {
	RateLimit          float64       `help:"Requests a second that one principal, or one address without a token, may make of this node in the long run; 0: no limit." default:"200" placeholder:"N"`
	RateBurst          int           `help:"Requests that it may make at once; 0: those of one second." default:"2000" placeholder:"N"`
	RateExempt         []string      `help:"Address or CIDR prefix from which nobody without a token and no admin is limited in requests; may be repeated; empty for none. Name a proxy's address here, and limit there." default:"127.0.0.0/8,::1" placeholder:"PREFIX"`
	MaxRequests        int           `help:"Requests that this node serves at once, of all clients; further ones are told to come back. 0: as many as there are open files for, 4096 at most; -1: no limit." default:"0" placeholder:"N"`
	MaxParallelUploads int           `help:"Requests with bytes of files that one principal may have under way at once on this node; 0: no limit." default:"64" placeholder:"N"`
	MaxOpenSessions    int           `help:"Upload sessions that one principal may have open; 0: no limit." default:"1000" placeholder:"N"`
	MaxBytesPerDay     int64         `help:"Bytes that one principal's upload sessions may declare in 24 hours; 0: no limit." default:"0" placeholder:"BYTES"`
	StorageReserve     int64         `help:"Bytes of the storage that no upload may take; -1: 1 GiB, but at most a twentieth of the file system." default:"-1" placeholder:"BYTES"`
	UploadExpiry       time.Duration `help:"How long an upload session lives into which no bytes come; its files go with it." default:"24h" placeholder:"DURATION"`
	UploadStallTimeout time.Duration `help:"How long an upload may be silent before it is cut. What arrived is kept, and it can be resumed." default:"60s" placeholder:"DURATION"`
}

// check refuses numbers that mean nothing.
func (f LimitFlags) check() error {
	for flag, wrong := range map[string]bool{
		"--rate-limit":           !(f.RateLimit >= 0) || f.RateLimit > 1e9,
		"--rate-burst":           f.RateBurst < 0,
		"--max-parallel-uploads": f.MaxParallelUploads < 0,
		"--max-open-sessions":    f.MaxOpenSessions < 0,
		"--max-bytes-per-day":    f.MaxBytesPerDay < 0,
		"--upload-expiry":        f.UploadExpiry < 0,
		"--upload-stall-timeout": f.UploadStallTimeout < 0,
	} {
		if wrong {
			return errors.New(flag + " is a number from 0")
		}
	}
	if f.MaxRequests < -1 {
		return errors.New("--max-requests is a number from 1, 0 for the default rule, or -1 for no limit")
	}
	if f.StorageReserve < limits.AutoReserve {
		return errors.New("--storage-reserve is a number of bytes from 0, or -1 for the default rule")
	}
	if _, err := limits.ParseExempt(f.RateExempt); err != nil {
		return fmt.Errorf("--rate-exempt: %w", err)
	}
	return nil
}

// limited are the limits of a running node.
type limited struct {
	load     *limits.Load
	requests *limits.Requests
	uploads  *limits.Uploads
	intake   *limits.Intake
}

func (n *Node) startLimits(ctx context.Context, f LimitFlags, log *jetstream.Log, store *blob.Store, tele *telemetry.Telemetry) (limited, error) {
	exempt, err := limits.ParseExempt(f.RateExempt)
	if err != nil {
		return limited{}, err
	}
	refusals, err := limits.NewRefusals(tele.Meter("github.com/imgsrv/imgsrv/handlers/limits"), n.log)
	if err != nil {
		return limited{}, err
	}
	most := f.MaxRequests
	if most == 0 {
		most = limits.RequestsRule()
	}
	free := []string{"/healthz", "/readyz"}
	load, err := limits.NewLoad(most, free, refusals, tele.Meter("github.com/imgsrv/imgsrv/handlers/limits"), n.log)
	if err != nil {
		return limited{}, err
	}
	intake := limits.NewIntake(limits.IntakeConfig{Events: log, Store: store, MaxSessions: f.MaxOpenSessions, MaxPerDay: f.MaxBytesPerDay,
		Reserve: f.StorageReserve, Refusals: refusals})
	if err := intake.Load(ctx); err != nil {
		return limited{}, err
	}
	n.background("limits of uploads", intake.Follow)
	return limited{
		load: load,
		requests: limits.NewRequests(limits.RequestsConfig{PerSecond: f.RateLimit, Burst: f.RateBurst, Exempt: exempt,
			Free: free, Chunks: tusname.BasePath, Refusals: refusals, Log: n.log}),
		uploads: limits.NewUploads(f.MaxParallelUploads, refusals), intake: intake,
	}, nil
}
