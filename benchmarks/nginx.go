package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// certificate makes one of the kind that imgsrv makes itself, ECDSA on P-256, for both sides.
func certificate(folder string) (certFile, keyFile string, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", "", err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "localhost"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return "", "", err
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return "", "", err
	}
	certFile, keyFile = filepath.Join(folder, "cert.pem"), filepath.Join(folder, "key.pem")
	return certFile, keyFile, errors.Join(
		os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600),
		os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER}), 0o600))
}

// nginxConf is nginx at its best for this: files are sent by the kernel, also over TLS where it can (KTLS); open files and answers
// about them are kept; nothing is logged. The cipher is the one that Go chooses.
const nginxConf = `
worker_processes auto;
%s
pid %[2]s/nginx.pid;
error_log %[2]s/error.log;
events { worker_connections 4096; multi_accept on; }
http {
	access_log off;
	sendfile on; tcp_nopush on; tcp_nodelay on;
	keepalive_timeout 300; keepalive_requests 1000000000;
	open_file_cache max=10000 inactive=300s; open_file_cache_valid 300s;
	gzip_static on; gzip_vary on;
	types { application/json json; } default_type application/octet-stream;
	client_body_temp_path %[2]s/body; proxy_temp_path %[2]s/proxy; fastcgi_temp_path %[2]s/fastcgi; uwsgi_temp_path %[2]s/uwsgi; scgi_temp_path %[2]s/scgi;
	ssl_certificate %[3]s; ssl_certificate_key %[4]s;
	ssl_protocols TLSv1.3; ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256; ssl_conf_command Options KTLS; ssl_buffer_size 16k;
	server { listen 127.0.0.1:%[5]d; listen 127.0.0.1:%[6]d ssl; root %[7]s; }
}
`

// nginx is one that serves the files below root.
type nginx struct {
	*process
	http, https string // URLs
}

func (b *bench) nginx(ctx context.Context, root, certFile, keyFile string) (*nginx, error) {
	program, err := b.fromApt(ctx, "nginx", "nginx-light")
	if err != nil {
		if _, statErr := os.Stat("/usr/sbin/nginx"); statErr != nil { // often not in the PATH of ordinary users
			return nil, err
		}
		program = "/usr/sbin/nginx"
	}
	folder, err := b.folder("nginx")
	if err != nil {
		return nil, err
	}
	plain, err := freePort()
	if err != nil {
		return nil, err
	}
	secure, err := freePort()
	if err != nil {
		return nil, err
	}
	user := ""
	if os.Geteuid() == 0 {
		user = "user root;" // the files are imgsrv's, who runs as root too
	}
	conf := filepath.Join(folder, "nginx.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, nginxConf, user, folder, certFile, keyFile, plain, secure, root), 0o600); err != nil {
		return nil, err
	}
	n := &nginx{http: fmt.Sprintf("http://127.0.0.1:%d", plain), https: fmt.Sprintf("https://127.0.0.1:%d", secure)}
	if n.process, err = b.start(exec.Command(program, "-p", folder, "-c", conf, "-g", "daemon off;"), syscall.SIGTERM); err != nil {
		return nil, err
	}
	return n, n.await(ctx, func() error { return answers(fmt.Sprintf("127.0.0.1:%d", secure)) })
}
