package postgres

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

const (
	port       = "5432" // only a part of the socket's name; nothing listens on TCP
	socketName = ".s.PGSQL." + port

	// systemHome holds the servers of data folders that the server's user can't reach.
	systemHome = "/var/lib/imgsrv"
)

// layout says where the parts of a managed server are.
type layout struct {
	home    string // everything of the server, closed to other users
	cluster string // PGDATA
	sockets string // the folder of the unix socket
	log     string // beside home, in a folder that the server's user can't write to: root opens it
}

func layoutAt(home string) layout {
	return layout{home: home, cluster: filepath.Join(home, "data"), sockets: filepath.Join(home, "run"), log: home + ".log"}
}

// shortHash is a stable name for an absolute path.
func shortHash(path string) string {
	sum := sha256.Sum256([]byte(path))
	return hex.EncodeToString(sum[:6])
}

// resolve gives the one absolute name of dataDir, which it makes if need be.
func resolve(dataDir string) (string, error) {
	abs, err := filepath.Abs(dataDir)
	if err != nil {
		return "", fmt.Errorf("data folder %s: %w", dataDir, err)
	}
	// 0711: another user, the server's, can pass through but not list.
	if err := os.MkdirAll(abs, 0o711); err != nil { //nolint:gosec // G301: PostgreSQL's user has to pass through
		return "", fmt.Errorf("make the data folder: %w", err)
	}
	real, err := filepath.EvalSymlinks(abs)
	if err != nil {
		return "", fmt.Errorf("data folder %s: %w", dataDir, err)
	}
	return real, nil
}

// locate decides where the server of dataDir (absolute, without links) lives and who runs it: in dataDir, or, where
// that is closed to the server's user (a folder in root's home, say), in a folder under system.
func locate(ctx context.Context, dataDir, system string, program string, log *slog.Logger) (layout, account, error) {
	home := filepath.Join(dataDir, "postgres")
	acct, err := serverAccount(home)
	if err != nil {
		return layout{}, account{}, err
	}
	// Without this first step a program that the user can't execute would look like a folder it can't enter.
	ok, err := acct.canEnter(ctx, program, "/")
	if err == nil && !ok {
		err = fmt.Errorf("user %s, as which PostgreSQL has to run, may not execute %s: "+
			"install PostgreSQL where all users can reach it, or use --postgres-url", acct.name, program)
	}
	if err != nil {
		return layout{}, account{}, err
	}
	if ok, err = acct.canEnter(ctx, program, dataDir); err != nil {
		return layout{}, account{}, err
	}
	if !ok {
		parent := filepath.Join(system, shortHash(dataDir))
		if err := os.MkdirAll(parent, 0o711); err != nil { //nolint:gosec // G301: PostgreSQL's user has to pass through
			return layout{}, account{}, fmt.Errorf("%s is closed to user %s, as which PostgreSQL has to run; make a folder for it elsewhere: %w",
				dataDir, acct.name, err)
		}
		if ok, err := acct.canEnter(ctx, program, parent); err != nil || !ok {
			return layout{}, account{}, errors.Join(err, fmt.Errorf("both %s and %s are closed to user %s, as which PostgreSQL has to run: "+
				"choose another --data-dir or use --postgres-url", dataDir, parent, acct.name))
		}
		home = filepath.Join(parent, "postgres")
		log.Warn("the data folder is closed to the user that runs PostgreSQL; its files are elsewhere",
			"data_dir", dataDir, "user", acct.name, "postgres_dir", home)
	}
	return layoutAt(home), acct, nil
}

// socketFits says whether a socket in folder can be made and connected to. The kernel bounds the name by sun_path of
// unix(7), 108 bytes on Linux and 104 on macOS and the BSDs, with a zero byte at the end. And to clients (libpq, pgx) a
// comma in a host separates two hosts.
func socketFits(folder string) bool {
	return len(folder)+len("/"+socketName) < len(syscall.RawSockaddrUnix{}.Path) && !strings.Contains(folder, ",")
}

// placeSocket makes the folder of the socket: in home, or, where that name won't do, a private folder with a name
// that stays the same for this home in one of the given temporary folders.
func (l *layout) placeSocket(ctx context.Context, acct account, program string, temps []string) error {
	if socketFits(l.sockets) {
		return acct.own(l.sockets)
	}
	var refused []error
	for _, temp := range temps {
		folder := filepath.Join(temp, "imgsrv-pg-"+shortHash(l.home))
		if !filepath.IsAbs(folder) || !socketFits(folder) {
			continue
		}
		if ok, err := acct.canEnter(ctx, program, temp); err != nil || !ok {
			refused = append(refused, err)
			continue
		}
		if err := acct.private(folder); err != nil {
			refused = append(refused, err)
			continue
		}
		l.sockets = folder
		return nil
	}
	return errors.Join(fmt.Errorf("%s is too long for a unix socket or holds a comma, and no temporary folder will do (%s): choose another --data-dir",
		l.sockets, strings.Join(temps, ", ")), errors.Join(refused...))
}

// private makes a folder for the account alone in a folder where everybody can make files, or checks that the one that
// is there is such a folder: anybody may have put something else in its place.
func (a account) private(folder string) error {
	if err := os.Mkdir(folder, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make the socket's folder: %w", err)
	}
	// A folder of root's, new or left by a start that was killed at this point, can be handed on: only root made it.
	if uid, ok := owner(folder); ok && uid == os.Geteuid() && uid != a.uid {
		if err := os.Lchown(folder, a.uid, a.gid); err != nil {
			return fmt.Errorf("make the socket's folder: %w", err)
		}
	}
	info, err := os.Lstat(folder)
	if err != nil {
		return fmt.Errorf("make the socket's folder: %w", err)
	}
	uid, ok := owner(folder)
	if !info.IsDir() || info.Mode().Perm() != 0o700 || !ok || uid != a.uid {
		return fmt.Errorf("%s exists and is not a private folder of user %s: remove it", folder, a.name)
	}
	return nil
}
