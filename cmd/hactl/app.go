// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/client"
)

const (
	defaultEndpoint = "127.0.0.1:7001"
	// moveTimeout is the default of --timeout for switchover and failover,
	// archiveTimeout for whole snapshots.
	moveTimeout    = time.Minute
	archiveTimeout = 10 * time.Minute
)

// app is one run of hactl: the streams and the flags that all commands share.
type app struct {
	in       io.Reader
	out, err io.Writer
	format   string
	timeout  time.Duration // 0: the command's default
	verbose  bool
	// contextName chooses a context; empty: the current one.
	contextName string
	target      target
	// started: the command line was understood and a command runs.
	started bool
}

// run is main without the process around it.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := &app{in: stdin, out: stdout, err: stderr}
	root := a.root()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	if !a.started {
		err = usageError{err}
	}
	report(stderr, cmd.CommandPath(), err)
	return exitCode(err)
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "hactl",
		Short: "Operate a hastate cluster",
		Long: `hactl shows and changes what a hastate cluster keeps: who is primary, members,
models, sessions and snapshots.

Exit codes: 0 ok, 1 failed, 2 usage, 3 no leader, 4 outcome unknown.`,
		SilenceErrors: true, SilenceUsage: true, SuggestionsMinimumDistance: 2,
		Args: cobra.ArbitraryArgs,
		RunE: chooseCommand,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if !slices.Contains(formats, a.format) {
				return fmt.Errorf("output format %q is not known: use %s", a.format, strings.Join(formats, ", "))
			}
			if a.timeout < 0 {
				return fmt.Errorf("timeout %v is negative", a.timeout)
			}
			a.started = true
			return nil
		},
	}
	f := root.PersistentFlags()
	f.StringVarP(&a.format, "output", "o", formatTable, "output `format`: table, json or yaml")
	f.DurationVar(&a.timeout, "timeout", 0, "longest time for the command (default 10s; switchover and failover 1m, snapshot restore 10m)")
	f.BoolVarP(&a.verbose, "verbose", "v", false, "say on stderr what is tried")
	f.StringVar(&a.contextName, "context", "", "context of the configuration file to use, before $HACTL_ENDPOINTS")
	f.StringSliceVar(&a.target.Endpoints, "endpoints", nil, "`host:port` of nodes, comma-separated (default those of --context, $HACTL_ENDPOINTS, the current context, or "+defaultEndpoint+")")
	f.StringVar(&a.target.TLSCA, "tls-ca", "", "`file` with the certificates to trust")
	f.StringVar(&a.target.TLSCert, "tls-cert", "", "`file` with the own certificate")
	f.StringVar(&a.target.TLSKey, "tls-key", "", "`file` with the key of the own certificate")
	f.BoolVar(&a.target.Plaintext, "plaintext", false, "allow connections without TLS to other machines")
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp))
	root.AddCommand(
		a.statusCmd(), a.primaryCmd(), a.watchCmd(), a.switchoverCmd(), a.failoverCmd(),
		a.groupCmd(), a.historyCmd(), a.memberCmd(), a.leaderCmd(), a.sessionCmd(),
		a.modelCmd(), a.snapshotCmd(), a.contextCmd(), a.versionCmd(),
	)
	root.InitDefaultCompletionCmd()
	for _, cmd := range root.Commands() {
		if cmd.Name() == "completion" {
			cmd.Args, cmd.RunE = cobra.ArbitraryArgs, chooseCommand
		}
	}
	return root
}

// chooseCommand runs a command that only has subcommands.
func chooseCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return usagef("%s needs a command", cmd.CommandPath())
	}
	text := fmt.Sprintf("%s has no command %q", cmd.CommandPath(), args[0])
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		text += ": did you mean " + strings.Join(near, " or ") + "?"
	}
	return usagef("%s", text)
}

// noun makes a command that only has subcommands.
func noun(use, short string, commands ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Args: cobra.ArbitraryArgs, RunE: chooseCommand, SuggestionsMinimumDistance: 2}
	cmd.AddCommand(commands...)
	return cmd
}

// connect makes the client. Where to: see resolveTarget.
func (a *app) connect() (*client.Client, error) {
	t, err := a.resolveTarget()
	if err != nil {
		return nil, err
	}
	for _, e := range a.target.Endpoints {
		if !isEndpoint(strings.TrimSpace(e)) {
			return nil, usagef("--endpoints: %q is not host:port", e)
		}
	}
	options := client.Options{Endpoints: t.Endpoints, AllowPlaintext: t.Plaintext, Name: "hactl", Logger: a.logger()}
	if t.usesTLS() {
		creds, err := t.credentials()
		if err != nil {
			return nil, err
		}
		options.DialOptions = append(options.DialOptions, grpc.WithTransportCredentials(creds))
	}
	c, err := client.Dial(options)
	if err != nil {
		return nil, adviceError{err, "correct --endpoints; to other machines give --tls-ca (and --tls-cert, --tls-key), or allow --plaintext"}
	}
	return c, nil
}

// isEndpoint tells a host:port, or a target with a scheme.
func isEndpoint(text string) bool {
	if strings.Contains(text, "://") || strings.HasPrefix(text, "unix:") {
		return true
	}
	host, port, err := net.SplitHostPort(text)
	return err == nil && host != "" && port != ""
}

func (a *app) logger() *slog.Logger {
	level := slog.LevelWarn
	if a.verbose {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(a.err, &slog.HandlerOptions{Level: level}))
}

func (t target) credentials() (credentials.TransportCredentials, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS13}
	if t.TLSCA != "" {
		pem, err := os.ReadFile(t.TLSCA)
		if err != nil {
			return nil, fmt.Errorf("read certificates to trust: %w", err)
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%w: %s holds no PEM certificate", hastate.ErrInvalid, t.TLSCA)
		}
	}
	if t.TLSCert != "" || t.TLSKey != "" {
		if t.TLSCert == "" || t.TLSKey == "" {
			return nil, usagef("--tls-cert and --tls-key go together")
		}
		pair, err := tls.LoadX509KeyPair(t.TLSCert, t.TLSKey)
		if err != nil {
			return nil, fmt.Errorf("load own certificate: %w", err)
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	return credentials.NewTLS(cfg), nil
}

// within returns the context of a command with its deadline.
func (a *app) within(cmd *cobra.Command, byDefault time.Duration) (context.Context, context.CancelFunc) {
	if a.timeout > 0 {
		byDefault = a.timeout
	}
	return context.WithTimeout(cmd.Context(), byDefault)
}

// with runs fn with a client and the deadline of the command.
func (a *app) with(cmd *cobra.Command, byDefault time.Duration, fn func(ctx context.Context, c *client.Client) error) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	ctx, cancel := a.within(cmd, byDefault)
	defer cancel()
	err = fn(ctx, c)
	if closeErr := c.Close(); err == nil {
		err = closeErr
	}
	return err
}

// call runs one RPC and returns its reply.
func call[R any](a *app, cmd *cobra.Command, kind client.Kind, byDefault time.Duration, rpc func(ctx context.Context, cc grpc.ClientConnInterface) (R, error)) (R, error) {
	var reply R
	err := a.with(cmd, byDefault, func(ctx context.Context, c *client.Client) error {
		return c.Call(ctx, kind, func(ctx context.Context, cc grpc.ClientConnInterface) (err error) {
			reply, err = rpc(ctx, cc)
			return err
		})
	})
	return reply, err
}

// confirm asks before something is destroyed. Without a terminal to ask on, yes
// must have been given.
func (a *app) confirm(yes bool, question string) error {
	if yes {
		return nil
	}
	f, ok := a.in.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return usageError{adviceError{fmt.Errorf("not confirmed: %s", question), "nothing was done: repeat it with --yes if you mean it"}}
	}
	if _, err := fmt.Fprintf(a.err, "%s [y/N] ", question); err != nil {
		return fmt.Errorf("ask: %w", err)
	}
	answer, err := bufio.NewReader(f).ReadString('\n')
	if err != nil && err != io.EOF {
		return fmt.Errorf("read answer: %w", err)
	}
	if s := strings.ToLower(strings.TrimSpace(answer)); s != "y" && s != "yes" {
		return adviceError{fmt.Errorf("not confirmed"), "nothing was done"}
	}
	return nil
}

// groupOf is the group of an optional argument.
func groupOf(args []string) string {
	if len(args) == 0 {
		return hastate.DefaultGroup
	}
	return args[0]
}
