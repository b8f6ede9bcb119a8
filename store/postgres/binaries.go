package postgres

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// minMajor is the oldest major version that imgsrv starts: DROP DATABASE … WITH (FORCE) came with it, and older ones
// get no more fixes.
const minMajor = 13

// ErrNoBinaries says that this machine has no PostgreSQL server programs that imgsrv could start. Its text is the line
// to show to the operator.
var ErrNoBinaries = fmt.Errorf("no PostgreSQL server programs (postgres and initdb, version %d or newer) on this machine: "+
	"install them (Debian, Ubuntu: apt install postgresql) or name a running server with --postgres-url", minMajor)

// VersionError says that a cluster can't be started because the binaries of the major version that made it are gone.
// PostgreSQL can't read the data folder of another major version.
type VersionError struct {
	Cluster string // the data folder of the cluster
	Made    int    // the major version that made it
	Found   []int  // the major versions on this machine
}

// Error gives the line to show to the operator, with the remedy.
func (e *VersionError) Error() string {
	found := make([]string, len(e.Found))
	for i, v := range e.Found {
		found[i] = strconv.Itoa(v)
	}
	return fmt.Sprintf("%s was made by PostgreSQL %d, and this machine has only %s: install version %d again, "+
		"or delete that folder (imgsrv derives its content again from the events), or use --postgres-url",
		e.Cluster, e.Made, strings.Join(found, ", "), e.Made)
}

// installation is one set of PostgreSQL server programs.
type installation struct {
	postgres, initdb string // absolute paths
	major            int
}

// places says where to look for installations.
type places struct {
	path  []string // folders of $PATH, in order; they come first
	globs []string // patterns of folders where distributions put the programs; among these the newest version comes first
}

func machinePlaces() places {
	return places{
		path: filepath.SplitList(os.Getenv("PATH")),
		globs: []string{
			"/usr/lib/postgresql/*/bin",          // Debian, Ubuntu
			"/usr/pgsql-*/bin",                   // PostgreSQL's own RPM packages
			"/usr/lib/postgresql*/bin",           // SUSE, Gentoo
			"/usr/libexec/postgresql*",           // Alpine
			"/usr/local/pgsql/bin",               // built from source
			"/opt/homebrew/opt/postgresql@*/bin", // Homebrew on Apple's own processors
			"/usr/local/opt/postgresql@*/bin",    // Homebrew on Intel
			"/home/linuxbrew/.linuxbrew/opt/postgresql@*/bin",
		},
	}
}

// find lists the installations, the preferred one first. It returns ErrNoBinaries where there is none.
func (p places) find(ctx context.Context) ([]installation, error) {
	var found []installation
	seen := map[string]bool{}
	look := func(folder string) *installation {
		in, ok := programsIn(folder)
		if !ok {
			return nil
		}
		// /usr/local/bin/postgres is often a link to the distribution's folder.
		real, err := filepath.EvalSymlinks(in.postgres)
		if err != nil || seen[real] {
			return nil
		}
		seen[real] = true
		if in.major, err = majorVersion(ctx, in.postgres); err != nil || in.major < minMajor {
			return nil
		}
		return &in
	}
	for _, folder := range p.path {
		if in := look(folder); in != nil {
			found = append(found, *in)
		}
	}
	var packaged []installation
	for _, pattern := range p.globs {
		folders, err := filepath.Glob(pattern)
		if err != nil {
			return nil, fmt.Errorf("look for PostgreSQL in %s: %w", pattern, err)
		}
		for _, folder := range folders {
			if in := look(folder); in != nil {
				packaged = append(packaged, *in)
			}
		}
	}
	slices.SortStableFunc(packaged, func(a, b installation) int { return b.major - a.major })
	found = append(found, packaged...)
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("look for PostgreSQL: %w", err)
	}
	if len(found) == 0 {
		return nil, ErrNoBinaries
	}
	return found, nil
}

// programsIn finds postgres and initdb in a folder. A distribution may link only postgres into a folder of $PATH: then
// initdb is taken from where the link leads.
func programsIn(folder string) (installation, bool) {
	if !filepath.IsAbs(folder) {
		return installation{}, false // a relative entry of $PATH would make the choice depend on the working folder
	}
	server, err := exec.LookPath(filepath.Join(folder, "postgres"))
	if err != nil {
		return installation{}, false
	}
	init, err := exec.LookPath(filepath.Join(folder, "initdb"))
	if err != nil {
		real, err := filepath.EvalSymlinks(server)
		if err != nil {
			return installation{}, false
		}
		if init, err = exec.LookPath(filepath.Join(filepath.Dir(real), "initdb")); err != nil {
			return installation{}, false
		}
	}
	return installation{postgres: server, initdb: init}, true
}

func majorVersion(ctx context.Context, server string) (int, error) {
	out, err := exec.CommandContext(ctx, server, "--version").Output()
	if err != nil {
		return 0, fmt.Errorf("ask %s for its version: %w", server, err)
	}
	return parseVersion(string(out))
}

// parseVersion reads the major version from the output of `postgres --version`, such as
// "postgres (PostgreSQL) 15.8 (Debian 15.8-0+deb12u1)" or "postgres (PostgreSQL) 18beta1".
func parseVersion(out string) (int, error) {
	_, rest, ok := strings.Cut(out, "(PostgreSQL) ")
	digits := rest
	if i := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' }); i >= 0 {
		digits = rest[:i]
	}
	major, err := strconv.Atoi(digits)
	if !ok || err != nil {
		return 0, fmt.Errorf("no PostgreSQL version in %q", strings.TrimSpace(out))
	}
	return major, nil
}

// choose picks the installation that can run the cluster in the given data folder: any for a new cluster, one of the
// same major version for an existing one.
func choose(found []installation, cluster string) (installation, error) {
	major, err := clusterVersion(cluster)
	if err != nil {
		return installation{}, err
	}
	if major == 0 {
		return found[0], nil
	}
	missing := &VersionError{Cluster: cluster, Made: major}
	for _, in := range found {
		if in.major == major {
			return in, nil
		}
		if !slices.Contains(missing.Found, in.major) {
			missing.Found = append(missing.Found, in.major)
		}
	}
	return installation{}, missing
}

// clusterVersion reads the major version that made a cluster from its PG_VERSION file; 0 where there is no cluster.
func clusterVersion(cluster string) (int, error) {
	text, err := os.ReadFile(filepath.Join(cluster, "PG_VERSION"))
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if errors.Is(err, os.ErrPermission) {
		return 0, fmt.Errorf("%w; was imgsrv started by another user before? start it as that user, "+
			"or delete that folder (its content is derived again from the events)", err)
	}
	if err != nil {
		return 0, fmt.Errorf("read the version of the cluster: %w", err)
	}
	major, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return 0, fmt.Errorf("read the version of the cluster %s: %w", cluster, err)
	}
	return major, nil
}
