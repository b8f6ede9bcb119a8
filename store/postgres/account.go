package postgres

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// account is the operating system user that the server runs as. PostgreSQL refuses to run as root.
type account struct {
	name       string
	uid, gid   int
	credential *syscall.Credential // nil: imgsrv's own user
}

// serverAccount decides who runs the server whose files are, or will be, in home.
//
// Without root's rights it is imgsrv's own user. As root it is, in this order: the owner of an existing home, so that
// a server made by an ordinary user stays usable for that user after one start with sudo; postgres; nobody.
func serverAccount(home string) (account, error) {
	if os.Geteuid() != 0 {
		return account{name: strconv.Itoa(os.Geteuid()), uid: os.Geteuid(), gid: os.Getegid()}, nil
	}
	if uid, ok := owner(home); ok && uid != 0 {
		if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
			return accountOf(u)
		}
	}
	for _, name := range []string{"postgres", "nobody"} {
		if u, err := user.Lookup(name); err == nil {
			return accountOf(u)
		}
	}
	return account{}, errors.New("PostgreSQL does not run as root, and this machine has neither a user postgres nor nobody: " +
		"start imgsrv as an ordinary user or use --postgres-url")
}

func accountOf(u *user.User) (account, error) {
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		return account{}, fmt.Errorf("user id of %s: %w", u.Username, err)
	}
	gid, err := strconv.Atoi(u.Gid)
	if err != nil {
		return account{}, fmt.Errorf("group id of %s: %w", u.Username, err)
	}
	// Debian's key for localhost TLS belongs to the group ssl-cert; a user's further groups may also open the way to the
	// data folder. So the server gets all of them, and none of root's.
	ids, err := u.GroupIds()
	if err != nil {
		return account{}, fmt.Errorf("groups of %s: %w", u.Username, err)
	}
	groups := make([]uint32, 0, len(ids))
	for _, id := range ids {
		n, err := strconv.ParseUint(id, 10, 32)
		if err != nil {
			return account{}, fmt.Errorf("groups of %s: %w", u.Username, err)
		}
		groups = append(groups, uint32(n))
	}
	return account{
		name: u.Username, uid: uid, gid: gid,
		credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid), Groups: groups},
	}, nil
}

func owner(path string) (uid int, ok bool) {
	info, err := os.Lstat(path)
	if err != nil {
		return 0, false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, false
	}
	return int(st.Uid), true
}

// sysProcAttr makes a child run as the account, in a process group of its own: a Ctrl-C in the terminal goes to
// imgsrv's group only, so the server lives until imgsrv has finished its work and stops it.
func (a account) sysProcAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Credential: a.credential}
}

// canEnter tries, as the account, to make folder its working folder: this asks the kernel, which knows access lists
// and mounts, instead of guessing from mode bits. program is run there with --version.
func (a account) canEnter(ctx context.Context, program, folder string) (bool, error) {
	if a.credential == nil {
		return true, nil
	}
	cmd := exec.CommandContext(ctx, program, "--version")
	cmd.SysProcAttr = a.sysProcAttr()
	cmd.Dir = folder
	err := cmd.Run()
	if errors.Is(err, fs.ErrPermission) {
		return false, nil
	}
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return false, fmt.Errorf("run %s as user %s in %s: %w", program, a.name, folder, err)
	}
	return true, nil
}

// own makes folder, if need be, and gives it and all in it to the account, closed to everybody else but root.
func (a account) own(folder string) error {
	if err := os.Mkdir(folder, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make the PostgreSQL folder: %w", err)
	}
	info, err := os.Lstat(folder)
	if err != nil {
		return fmt.Errorf("make the PostgreSQL folder: %w", err)
	}
	if !info.IsDir() {
		return fmt.Errorf("make the PostgreSQL folder: %s is not a folder", folder)
	}
	uid, _ := owner(folder)
	switch {
	case uid == a.uid:
	case a.credential == nil:
		return fmt.Errorf("%s belongs to another user (id %d): start imgsrv as that user, "+
			"or delete that folder (its content is derived again from the events)", folder, uid)
	default:
		if err := a.takeOver(folder); err != nil {
			return fmt.Errorf("give the PostgreSQL folder to user %s: %w", a.name, err)
		}
	}
	if info.Mode().Perm() != 0o700 {
		if err := os.Chmod(folder, 0o700); err != nil { //nolint:gosec // G302: a folder, closed to others
			return fmt.Errorf("close the PostgreSQL folder: %w", err)
		}
	}
	return nil
}

// takeOver changes the owner of a tree. It works through os.Root, so that a link planted in the tree can't lead root
// to a file outside.
func (a account) takeOver(folder string) error {
	root, err := os.OpenRoot(folder)
	if err != nil {
		return err
	}
	err = fs.WalkDir(root.FS(), ".", func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return root.Lchown(filepath.FromSlash(path), a.uid, a.gid)
	})
	return errors.Join(err, root.Close())
}
