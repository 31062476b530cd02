// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

// newCertificate writes a self-signed certificate for this machine.
func newCertificate(t *testing.T, dir, name string) (certFile, keyFile string, pair tls.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	certFile, keyFile = filepath.Join(dir, name+".pem"), filepath.Join(dir, name+"-key.pem")
	for file, content := range map[string][]byte{certFile: certPEM, keyFile: keyPEM} {
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if pair, err = tls.X509KeyPair(certPEM, keyPEM); err != nil {
		t.Fatal(err)
	}
	return certFile, keyFile, pair
}

func TestTLS(t *testing.T) {
	dir := t.TempDir()
	ca, _, server := newCertificate(t, dir, "server")
	cert, key, own := newCertificate(t, dir, "own")
	other, otherKey, _ := newCertificate(t, dir, "other")
	clients := x509.NewCertPool()
	leaf, err := x509.ParseCertificate(own.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	clients.AddCert(leaf)
	addr := newFakeNode().serve(t, grpc.Creds(credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{server}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: clients,
	})))
	for _, tc := range []struct {
		name string
		args []string
		want int
	}{
		{"Own", []string{"--tls-ca", ca, "--tls-cert", cert, "--tls-key", key}, exitOK},
		{"WrongCA", []string{"--tls-ca", other, "--tls-cert", cert, "--tls-key", key, "--timeout", "200ms"}, exitFailed},
		{"UnknownClient", []string{"--tls-ca", ca, "--tls-cert", other, "--tls-key", otherKey, "--timeout", "200ms"}, exitFailed},
		{"NoClient", []string{"--tls-ca", ca, "--timeout", "200ms"}, exitFailed},
		{"Plaintext", []string{"--timeout", "200ms"}, exitFailed},
		{"KeyOnly", []string{"--tls-key", key}, exitUsage},
	} {
		t.Run(tc.name, func(t *testing.T) {
			args := append([]string{"status", "--endpoints", addr}, tc.args...)
			if code, _, stderr := runHere(t, strings.NewReader(""), args...); code != tc.want {
				t.Errorf("exit code %d, want %d: %s", code, tc.want, stderr)
			}
		})
	}
}
