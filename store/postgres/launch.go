package postgres

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// maxLogBytes is the size from which the next start begins a new server log; one old log is kept.
const maxLogBytes = 16 << 20

// launch starts the server process and the goroutine that waits for its end.
func launch(l layout, acct account, in installation, disposable bool, log *slog.Logger) (*Managed, error) {
	out, err := openLog(l.log, acct)
	if err != nil {
		return nil, err
	}
	args := []string{"-D", l.cluster}
	for _, setting := range settings(l, disposable) {
		args = append(args, "-c", setting)
	}
	// Not CommandContext: it would kill the server with SIGKILL. Stop knows better.
	cmd := exec.Command(in.postgres, args...) //nolint:noctx,gosec // see above; G204: a program of PostgreSQL, by the path it was found under
	cmd.Dir = l.home
	cmd.Env = serverEnv(in)
	cmd.SysProcAttr = acct.sysProcAttr()
	cmd.Stdout, cmd.Stderr = out, out // a file, not a pipe: the server may outlive us
	err = cmd.Start()
	if err = errors.Join(err, out.Close()); err != nil {
		return nil, fmt.Errorf("start %s: %w", in.postgres, err)
	}
	m := &Managed{layout: l, log: log, process: cmd.Process, done: make(chan struct{}), stopping: make(chan struct{})}
	go func() {
		// Ends with the server, for which Stop waits through done.
		defer close(m.done)
		m.waitErr = cmd.Wait()
		m.state = cmd.ProcessState
		if filepath.Dir(l.sockets) != l.home {
			_ = os.Remove(l.sockets) // empty by now, or somebody else's business
		}
		select {
		case <-m.stopping:
		default:
			log.Error("PostgreSQL has ended by itself", "ending", m.ending(), "log", l.log)
		}
	}()
	return m, nil
}

// settings are the server's parameters. They are given on the command line, where they win over postgresql.conf: the
// file stays as initdb made it, and a new imgsrv needs no migration of it.
func settings(l layout, disposable bool) []string {
	s := []string{
		"listen_addresses=", // no TCP
		"port=" + port,      // a part of the socket's name
		"unix_socket_directories=" + quoteListItem(l.sockets),
		"unix_socket_permissions=0700",
		"cluster_name=imgsrv",
		"timezone=UTC", "log_timezone=UTC",
		"logging_collector=off", "log_destination=stderr", "log_checkpoints=off",
		"shared_buffers=128MB",
		"max_connections=100",
		// All here is derived from events and applied together with the position it was derived to. A crash may lose the last
		// moments of commits, always a whole tail of them: the projectors then apply those events again. fsync stays on, so
		// that what is there is never torn.
		"synchronous_commit=off",
		// Nobody replicates from this server; at this level a rebuild's COPY into new tables skips the log.
		"wal_level=minimal", "max_wal_senders=0",
		"max_wal_size=2GB",
		"jit=off", // compiling costs more than our short queries take
	}
	if disposable {
		s = append(s, "shared_buffers=16MB", "max_connections=60", "fsync=off", "full_page_writes=off",
			"min_wal_size=32MB", "max_wal_size=512MB")
	}
	return s
}

// quoteListItem writes one folder for a parameter that takes a list of them (SplitDirectoriesString in varlena.c).
func quoteListItem(path string) string {
	return `"` + strings.ReplaceAll(path, `"`, `""`) + `"`
}

// openLog opens the server's log to append to. A new one belongs to the account, so that an ordinary user finds the log
// of his server usable after a start with sudo. Links are refused: root may be working in such a user's folder.
func openLog(path string, acct account) (*os.File, error) {
	if info, err := os.Lstat(path); err == nil && info.Size() > maxLogBytes {
		if err := os.Rename(path, path+".old"); err != nil {
			return nil, fmt.Errorf("begin a new PostgreSQL log: %w", err)
		}
	}
	const flags = os.O_WRONLY | os.O_APPEND | syscall.O_NOFOLLOW
	f, err := os.OpenFile(path, flags|os.O_CREATE|os.O_EXCL, 0o600)
	switch {
	case errors.Is(err, fs.ErrExist):
		f, err = os.OpenFile(path, flags, 0)
	case err == nil && acct.credential != nil:
		if err := f.Chown(acct.uid, acct.gid); err != nil {
			return nil, errors.Join(fmt.Errorf("give the PostgreSQL log to user %s: %w", acct.name, err), f.Close())
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open the PostgreSQL log: %w", err)
	}
	return f, nil
}

// ending says how the process ended; only after done is closed or from the goroutine that closes it.
func (m *Managed) ending() string {
	if m.state == nil {
		return fmt.Sprint(m.waitErr)
	}
	return m.state.String()
}

// logTail gives the last lines of the server's log, for an error.
func (m *Managed) logTail() string {
	lines, err := tailOfFile(m.layout.log, 12)
	if err != nil {
		return "; its log can't be read: " + err.Error()
	}
	return "; the end of " + m.layout.log + ":" + quoteTail(lines)
}

func tailOfFile(path string, lines int) (_ []string, err error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	const window = 8 << 10
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.NewSectionReader(f, max(0, info.Size()-window), window))
	if err != nil {
		return nil, err
	}
	return tailLines(string(text), lines), nil
}

func tailLines(text string, n int) []string {
	lines := slices.DeleteFunc(strings.Split(text, "\n"), func(s string) bool { return strings.TrimSpace(s) == "" })
	return lines[max(0, len(lines)-n):]
}

// quoteTail sets a program's lines off from the sentence they explain.
func quoteTail(lines []string) string {
	if len(lines) == 0 {
		return ""
	}
	return "\n\t" + strings.Join(lines, "\n\t")
}
