package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// superuser is the role that owns the cluster and that imgsrv connects as.
const superuser = "imgsrv"

// initCluster makes the cluster where there is none. initdb works in a folder beside it, which then gets the final
// name: a start that is killed in between leaves a folder that the next start removes, never half a cluster.
func initCluster(ctx context.Context, l layout, acct account, in installation, disposable bool, log *slog.Logger) error {
	const prefix = "data.new-"
	stale, err := filepath.Glob(filepath.Join(globQuote(l.home), prefix+"*"))
	if err != nil {
		return fmt.Errorf("look for half-made clusters: %w", err)
	}
	for _, folder := range stale {
		if err := os.RemoveAll(folder); err != nil {
			return fmt.Errorf("remove a half-made cluster: %w", err)
		}
	}
	if major, err := clusterVersion(l.cluster); err != nil || major != 0 {
		return err
	}
	if err := os.Remove(l.cluster); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s is in the way of a new PostgreSQL cluster: remove it: %w", l.cluster, err)
	}
	log.Info("making a private PostgreSQL: this first start takes some seconds longer", "version", in.major, "postgres_dir", l.home)
	// A name that no earlier start used: an initdb that outlived its imgsrv can't write into this one.
	tmp := filepath.Join(l.home, fmt.Sprintf("%s%d-%x", prefix, os.Getpid(), time.Now().UnixNano()))
	args := []string{
		"--pgdata=" + tmp, "--username=" + superuser, "--encoding=UTF8", "--locale=C", "--no-instructions",
		// Who can open the socket is decided by its folder: 0700, so the server's user and root. Within it, trust lets in both
		// of them, where peer would refuse root, and needs no password that would have to be kept somewhere. TCP is refused
		// here as well, should somebody set listen_addresses.
		"--auth-local=trust", "--auth-host=reject",
	}
	if disposable {
		args = append(args, "--no-sync")
	}
	cmd := exec.CommandContext(ctx, in.initdb, args...) //nolint:gosec // G204: a program of PostgreSQL, by the path it was found under
	cmd.Dir = l.home
	cmd.Env = serverEnv(in)
	cmd.SysProcAttr = acct.sysProcAttr()
	// initdb starts postgres: end the group, and let initdb tidy up.
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	if out, err := cmd.CombinedOutput(); err != nil {
		removeErr := os.RemoveAll(tmp)
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return errors.Join(fmt.Errorf("make a PostgreSQL cluster in %s: %w%s", l.home, err, quoteTail(tailLines(string(out), 10))), removeErr)
	}
	if err := os.Rename(tmp, l.cluster); err != nil {
		return fmt.Errorf("put the new PostgreSQL cluster in its place: %w", err)
	}
	if disposable {
		return nil
	}
	return syncFolder(l.home)
}

// serverEnv is the environment of initdb and postgres: nothing of PG*, LC_* or TZ that happens to be set for imgsrv
// may change what they do.
func serverEnv(in installation) []string {
	return []string{"PATH=" + filepath.Dir(in.postgres) + ":/usr/bin:/bin", "LC_ALL=C", "TZ=UTC"}
}

func syncFolder(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("sync %s: %w", path, err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("sync %s: %w", path, err)
	}
	return nil
}

// globQuote makes a path stand for itself in a pattern of filepath.Glob.
func globQuote(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}
