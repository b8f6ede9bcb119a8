// Package s3test gives tests a real server that speaks as S3 does: the Versity S3 Gateway, on a folder of the test's own. Only tests
// import it. The gateway is a program here and no library.
package s3test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/imgsrv/imgsrv/internal/testtool"
)

// release of the gateway that CI builds.
const release = "v1.8.0"

// Server is a running gateway.
type Server struct {
	Endpoint string   // URL
	Bucket   string   // empty
	Env      []string // that a client of the SDK finds its credentials in
	Dir      string   // what the bucket has, as files
}

const (
	accessKey = "imgsrv-test"
	secretKey = "a secret of the tests alone"
)

// Start runs a gateway until the test ends. Where there is none in $PATH the test is skipped (see testtool).
func Start(t testing.TB) *Server {
	t.Helper()
	program, err := exec.LookPath("versitygw")
	if err != nil {
		testtool.Absent(t, "versitygw: go install github.com/versity/versitygw/cmd/versitygw@"+release)
	}
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	s := &Server{Endpoint: "http://" + address, Bucket: "backups", Dir: filepath.Join(root, "backups"),
		Env: []string{"AWS_ACCESS_KEY_ID=" + accessKey, "AWS_SECRET_ACCESS_KEY=" + secretKey, "AWS_EC2_METADATA_DISABLED=true"}}
	if err := os.Mkdir(s.Dir, 0o700); err != nil { // a folder is a bucket
		t.Fatal(err)
	}
	cmd := exec.Command(program, "--port", address, "--access", accessKey, "--secret", secretKey, "--quiet", "posix", "--sidecar", t.TempDir(), root)
	cmd.Env = append(os.Environ(), "HOME="+root)
	var out lines
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("versitygw: %s", out)
		}
	})
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			_ = conn.Close()
			return s
		}
		if time.Now().After(deadline) {
			t.Fatal(fmt.Errorf("versitygw isn't there after a minute: %w", err))
		}
	}
}

// lines are read once the program has ended.
type lines []byte

func (l *lines) Write(p []byte) (int, error) {
	*l = append(*l, p...)
	return len(p), nil
}
