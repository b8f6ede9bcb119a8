package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"go.opentelemetry.io/otel/metric/noop"

	"github.com/imgsrv/imgsrv/events/jetstream"
)

var quiet = slog.New(slog.DiscardHandler)

// openLog starts imgsrv's NATS server inside the harness, over a folder, with a log in it. sync: what is acknowledged has been synced.
func (b *bench) openLog(ctx context.Context, folder string, sync bool) (*jetstream.Log, *nats.Conn, func(), error) {
	server, err := jetstream.StartServer(ctx, jetstream.ServerConfig{StoreDir: folder, Log: quiet, NoSync: !sync})
	if err != nil {
		return nil, nil, nil, err
	}
	nc, err := server.Connect()
	if err != nil {
		server.Stop()
		return nil, nil, nil, err
	}
	stop := func() { nc.Close(); server.Stop() }
	log, err := jetstream.Open(ctx, nc, jetstream.Config{Source: "imgsrv://bench", Log: quiet, Meter: noop.Meter{}})
	if err != nil {
		stop()
		return nil, nil, nil, err
	}
	return log, nc, stop, nil
}

// natsServer is a NATS server as people start one, with JetStream in a folder, and each message synced, as imgsrv's own does it.
func (b *bench) natsServer(ctx context.Context, folder string) (*process, string, error) {
	program, err := b.fromGo(ctx, "github.com/nats-io/nats-server/v2", "github.com/nats-io/nats-server/v2", "latest")
	if err != nil {
		return nil, "", err
	}
	port, err := freePort()
	if err != nil {
		return nil, "", err
	}
	conf, err := os.CreateTemp(b.dir, "nats-*.conf")
	if err != nil {
		return nil, "", err
	}
	_, err = fmt.Fprintf(conf, "listen: \"127.0.0.1:%d\"\nmax_payload: 4194304\njetstream { store_dir: %q, sync_interval: always, max_memory_store: 64MB, max_file_store: 1TB }\n", port, folder)
	if err := errors.Join(err, conf.Close()); err != nil {
		return nil, "", err
	}
	p, err := b.start(exec.Command(program, "-c", conf.Name()), syscall.SIGTERM)
	if err != nil {
		return nil, "", err
	}
	address := fmt.Sprintf("nats://127.0.0.1:%d", port)
	return p, address, p.await(ctx, func() error {
		nc, err := nats.Connect(address)
		if err != nil {
			return err
		}
		defer nc.Close()
		js, err := nc.JetStream()
		if err != nil {
			return err
		}
		_, err = js.AccountInfo()
		return err
	})
}

// postgresBin is the folder of PostgreSQL's programs.
func (b *bench) postgresBin(ctx context.Context) (string, error) {
	for range 2 {
		found, err := filepath.Glob("/usr/lib/postgresql/*/bin")
		if err != nil {
			return "", err
		}
		if len(found) > 0 {
			return found[len(found)-1], nil
		}
		if path, err := exec.LookPath("initdb"); err == nil {
			return filepath.Dir(path), nil
		}
		if _, err := b.fromApt(ctx, "initdb", "postgresql"); err != nil && os.Geteuid() != 0 {
			return "", err
		}
	}
	return "", errors.New("initdb is missing: install PostgreSQL (Debian: apt install postgresql)")
}

// postgresSettings are those of imgsrv's private server (store/postgres).
var postgresSettings = []string{"listen_addresses=", "port=5432", "shared_buffers=128MB", "max_connections=100", "synchronous_commit=off", "wal_level=minimal",
	"max_wal_senders=0", "max_wal_size=2GB", "jit=off"}

// initdb makes a cluster as imgsrv does, below a folder.
func (b *bench) initdb(ctx context.Context, cluster string) error {
	bin, err := b.postgresBin(ctx)
	if err != nil {
		return err
	}
	who, err := account()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "initdb"), "--pgdata="+cluster, "--username=imgsrv", "--encoding=UTF8", "--locale=C", "--no-instructions", "--auth-local=trust", "--auth-host=reject")
	cmd.Dir, cmd.SysProcAttr = "/", &syscall.SysProcAttr{Credential: who}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w: %s", err, out)
	}
	return nil
}

// postgres starts a server on a cluster and waits until it answers.
func (b *bench) postgres(ctx context.Context, cluster, sockets string) (*process, string, error) {
	bin, err := b.postgresBin(ctx)
	if err != nil {
		return nil, "", err
	}
	who, err := account()
	if err != nil {
		return nil, "", err
	}
	args := []string{"-D", cluster, "-c", "unix_socket_directories=" + sockets}
	for _, s := range postgresSettings {
		args = append(args, "-c", s)
	}
	cmd := exec.Command(filepath.Join(bin, "postgres"), args...)
	cmd.Dir, cmd.SysProcAttr = "/", &syscall.SysProcAttr{Credential: who}
	p, err := b.start(cmd, syscall.SIGINT)
	if err != nil {
		return nil, "", err
	}
	q := url.Values{"host": {sockets}, "port": {strconv.Itoa(5432)}, "sslmode": {"disable"}}
	address := (&url.URL{Scheme: "postgres", User: url.User("imgsrv"), Path: "/postgres", RawQuery: q.Encode()}).String()
	return p, address, p.await(ctx, func() error { return ping(ctx, address) })
}

// postgresFolder is one that PostgreSQL's user owns.
func (b *bench) postgresFolder(name string) (string, error) {
	folder, err := b.folder(name)
	if err != nil {
		return "", err
	}
	who, err := account()
	if err != nil || who == nil {
		return folder, err
	}
	return folder, os.Chown(folder, int(who.Uid), int(who.Gid))
}

const pingPatience = time.Second
