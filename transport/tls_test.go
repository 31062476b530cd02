// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

func selfSigned(t *testing.T, name string) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

// Credentials in Dial replace plaintext, and a certificate is checked against
// the id of the node, wherever it is.
func TestTLSNamesTheNode(t *testing.T) {
	for name, ok := range map[string]bool{"n2": true, "n3": false} {
		cert, pool := selfSigned(t, name)
		b, err := New(Options{ID: "n2", Resolve: func(raft.ServerID) (string, error) { return "", nil }})
		if err != nil {
			t.Fatal(err)
		}
		answer(t, b, accept)
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s := grpc.NewServer(append(ServerOptions(), grpc.Creds(credentials.NewServerTLSFromCert(&cert)))...)
		b.Register(s)
		served := make(chan error, 1)
		go func() { served <- s.Serve(l) }()

		a, err := New(Options{
			ID: "n1", Heartbeat: 10 * time.Second,
			Resolve: func(raft.ServerID) (string, error) { return l.Addr().String(), nil },
			Dial:    []grpc.DialOption{grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: pool}))},
		})
		if err != nil {
			t.Fatal(err)
		}
		err = a.AppendEntries("n2", "n2", heartbeatOf("n1", 5), &raft.AppendEntriesResponse{})
		if (err == nil) != ok || (err != nil && !strings.Contains(err.Error(), "n2")) {
			t.Errorf("certificate of %s: %v", name, err)
		}
		for _, c := range []*Transport{a, b} {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
		s.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}
}
