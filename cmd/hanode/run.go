// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/credentials"

	"github.com/hastate/hastate/election"
	"github.com/hastate/hastate/instance"
	"github.com/hastate/hastate/internal/build"
	"github.com/hastate/hastate/internal/logstore"
	"github.com/hastate/hastate/node"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

func newRunCommand() *cobra.Command {
	var file string
	bound, in := defaultOptions(), instanceOptions{}
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run a node until it is told to stop",
		Long: `Run a node until SIGINT or SIGTERM; it then hands over primaryship and
leadership and ends. It stays a member of the cluster: 'hactl member remove'
takes it out. A second signal ends it at once.

A node with an empty data folder that is given --join (and no
--bootstrap-expect) is added to the cluster as a replica and becomes a voter
when it has caught up, unless --replica is given. Voters that are gone for good
must be removed, or they count against the majority.

Every flag can be set in the environment as HANODE_<FLAG> and in the file given
with --config ('hanode config' prints a sample).`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o, err := loadOptions(file, os.LookupEnv, cmd.Flags())
			if err != nil {
				return usageError{err}
			}
			return runNode(cmd.Context(), o, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	cmd.Flags().StringVarP(&file, "config", "c", os.Getenv("HANODE_CONFIG"), "configuration file, YAML")
	bindFlags(cmd.Flags(), &bound, &in)
	return cmd
}

func newConfigCommand() *cobra.Command {
	return &cobra.Command{
		Use: "config", Short: "Print a commented sample configuration", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := cmd.OutOrStdout().Write(sample)
			return err
		},
	}
}

// runNode opens a node and serves until ctx ends or the node fails.
func runNode(ctx context.Context, o options, stdout, stderr io.Writer) error {
	cfg, err := nodeConfig(o, stderr)
	if err != nil {
		return usageError{err}
	}
	if err := cfg.Validate(); err != nil {
		return usageError{err}
	}
	faults, err := installFaults(&cfg)
	if err != nil {
		return usageError{err}
	}
	n, err := node.Open(cfg)
	if err != nil {
		return errors.Join(err, faults.Close())
	}
	fmt.Fprintf(stdout, "hanode %s is up: gRPC %s, HTTP %s, data %s\n", cfg.NodeID, n.Address(), n.HTTPAddress(), cfg.DataDir)
	err = n.Run(ctx)
	var stalled *node.StalledError
	if errors.As(err, &stalled) {
		// Close would wait for the call that hangs.
		return errors.Join(err, faults.Close())
	}
	return errors.Join(err, n.Close(), faults.Close())
}

// nodeConfig turns what people wrote into what the node takes.
func nodeConfig(o options, logTo io.Writer) (node.Config, error) {
	profile, err := election.ProfileByName(o.Profile)
	if err != nil {
		return node.Config{}, err
	}
	logger, err := newLogger(o.Log, o.NodeID, logTo)
	if err != nil {
		return node.Config{}, err
	}
	server, client, err := loadTLS(o)
	if err != nil {
		return node.Config{}, err
	}
	cfg := node.Config{
		NodeID: o.NodeID, DataDir: o.DataDir, Listen: o.Listen, Advertise: o.Advertise, HTTPListen: o.HTTPListen,
		BootstrapExpect: o.BootstrapExpect, Join: o.Join, Replica: o.Replica, Profile: profile,
		AllowPlaintext: o.AllowPlaintext, ServerTLS: server, ClientTLS: client,
		Snapshot: node.SnapshotPolicy{Interval: o.Snapshot.Interval, Threshold: o.Snapshot.Threshold, Trailing: o.Snapshot.Trailing},
		LogStore: logstore.Kind(o.LogStore),
		Version:  build.Version(), Logger: logger,
	}
	for _, in := range o.Instances {
		cfg.Instances = append(cfg.Instances, node.InstanceConfig{
			Group: in.Group, Address: in.Address,
			Tags: &pb.InstanceTags{NoFailover: in.Tags.NoFailover, Priority: in.Tags.Priority, Zone: in.Tags.Zone},
			Attach: instance.Config{
				Kind: in.Kind, Target: in.Target, Interval: in.Interval, Timeout: in.Timeout, FailAfter: in.FailAfter,
				Hooks: instance.Hooks{Promote: in.Promote, Demote: in.Demote}, Logger: logger,
			},
		})
	}
	return cfg, nil
}

func newLogger(o logOptions, nodeID string, w io.Writer) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(o.Level)); err != nil {
		return nil, fmt.Errorf("log level %q is not known: use debug, info, warn or error", o.Level)
	}
	opts := &slog.HandlerOptions{Level: level}
	switch o.Format {
	case "text":
		return slog.New(slog.NewTextHandler(w, opts)).With("node", nodeID), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, opts)).With("node", nodeID), nil
	}
	return nil, fmt.Errorf("log format %q is not known: use text or json", o.Format)
}

// loadTLS makes mutual TLS of three files; none gives nil.
func loadTLS(all options) (server, client credentials.TransportCredentials, err error) {
	o := all.TLS
	if o == (tlsOptions{}) {
		return nil, nil, nil
	}
	if o.Cert == "" || o.Key == "" || o.CA == "" {
		return nil, nil, errors.New("tls needs all of cert, key and ca")
	}
	cert, err := tls.LoadX509KeyPair(o.Cert, o.Key)
	if err != nil {
		return nil, nil, fmt.Errorf("load tls certificate: %w", err)
	}
	if err := checkNames(cert.Leaf, all); err != nil {
		return nil, nil, err
	}
	pem, err := os.ReadFile(o.CA)
	if err != nil {
		return nil, nil, fmt.Errorf("load tls authority: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, nil, fmt.Errorf("load tls authority: %s holds no PEM certificate", o.CA)
	}
	server = credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{cert}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS13})
	client = credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: pool, MinVersion: tls.VersionTLS13})
	return server, client, nil
}

// checkNames refuses a certificate that the others would refuse: nodes are known
// by their id, and are found by their address.
func checkNames(leaf *x509.Certificate, o options) error {
	address := o.Advertise
	if address == "" {
		address = o.Listen
	}
	names := []string{o.NodeID}
	if host, _, err := net.SplitHostPort(address); err == nil && host != "" {
		names = append(names, host)
	}
	for _, name := range names {
		if name == "" {
			continue // it is missing, and that is said elsewhere
		}
		if err := leaf.VerifyHostname(name); err != nil {
			return fmt.Errorf("tls certificate %s is not for the name %q: issue one for the names %s", o.TLS.Cert, name, strings.Join(names, " and "))
		}
	}
	return nil
}
