// SPDX-License-Identifier: Apache-2.0

//go:build process

package process

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// authority signs certificates for loopback.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	// file is the certificate, PEM.
	file   string
	serial int64
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t, dir: t.TempDir()}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	a.key = a.newKey()
	der, err := x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.file = a.write("ca.pem", "CERTIFICATE", der)
	return a
}

func (a *authority) newKey() *ecdsa.PrivateKey {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	return key
}

func (a *authority) write(name, kind string, der []byte) string {
	a.t.Helper()
	path := filepath.Join(a.dir, name)
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		a.t.Fatal(err)
	}
	return path
}

// issue makes a certificate and returns its file and that of its key.
func (a *authority) issue(name string) (certFile, keyFile string) {
	a.t.Helper()
	a.serial++
	key := a.newKey()
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(1 + a.serial), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		DNSNames:    []string{name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}, a.cert, key.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	return a.write(name+".pem", "CERTIFICATE", der), a.write(name+".key", "PRIVATE KEY", keyDER)
}

// dial are the options of a client with a certificate; none: without one.
func (a *authority) dial(certFile, keyFile string) grpc.DialOption {
	a.t.Helper()
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	cfg := &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13}
	if certFile != "" {
		pair, err := tls.LoadX509KeyPair(certFile, keyFile)
		if err != nil {
			a.t.Fatal(err)
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	return grpc.WithTransportCredentials(credentials.NewTLS(cfg))
}

// TestTLS runs nodes, model servers and hactl with mutual TLS.
func TestTLS(t *testing.T) {
	ca, stranger := newAuthority(t), newAuthority(t)
	opCert, opKey := ca.issue("operator")
	c := newCluster(t, options{
		models: true,
		nodeArgs: func(id string) []string {
			cert, key := ca.issue(id)
			return []string{"--tls-cert", cert, "--tls-key", key, "--tls-ca", ca.file}
		},
		modelArgs: []string{"--hastate-ca", ca.file, "--hastate-cert", opCert, "--hastate-key", opKey},
		dial:      []grpc.DialOption{ca.dial(opCert, opKey)},
	})
	c.serves()

	h := hactl{t: t, flags: []string{"--endpoints", strings.Join(c.endpoints(), ",")}}
	with := h.with("--tls-ca", ca.file, "--tls-cert", opCert, "--tls-key", opKey)
	with.ok("session", "put", "s", "hello")
	if out := with.ok("session", "get", "s", "--value"); out != "hello" {
		t.Errorf("read %q", out)
	}
	with.ok("switchover")
	with.ok("snapshot", "save", filepath.Join(t.TempDir(), "archive"))
	strangerCert, strangerKey := stranger.issue("stranger")
	for name, flags := range map[string][]string{
		"plaintext":         {},
		"no certificate":    {"--tls-ca", ca.file},
		"other certificate": {"--tls-ca", ca.file, "--tls-cert", strangerCert, "--tls-key", strangerKey},
		"other authority":   {"--tls-ca", stranger.file, "--tls-cert", opCert, "--tls-key", opKey},
	} {
		r := h.with(flags...).run("--timeout", "2s", "status")
		if r.code != 1 || !strings.Contains(r.stderr, "TLS") {
			t.Errorf("%s: %v", name, r)
		}
	}
	for name, opts := range map[string][]grpc.DialOption{
		"plaintext": nil, "no certificate": {ca.dial("", "")}, "other certificate": {ca.dial(strangerCert, strangerKey)},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		_, err := pb.NewClusterServiceClient(dial(t, c.hosts[0].grpc, opts...)).Status(ctx, &pb.StatusRequest{})
		cancel()
		if status.Code(err) != codes.Unavailable {
			t.Errorf("%s: %v", name, err)
		}
	}
	refused(t, nil, node("n9", t.TempDir(), "--tls-cert", opCert, "--tls-key", opKey, "--tls-ca", ca.file),
		exitUsage, opCert, `"n9"`, "issue one for the names n9 and 127.0.0.1")
	// The way back after a loss is over TLS too.
	victim := c.leader()
	kill(t, victim.node)
	c.leader(victim)
	c.startNode(victim)
	c.isWhole()
}
