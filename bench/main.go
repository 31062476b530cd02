// SPDX-License-Identifier: Apache-2.0

// Command bench compares hastate with etcd and ZooKeeper, and with what the machine can
// do at best, in one run: three real processes each, the same closed-loop work in
// alternation. It prints a table, and ends with one line of JSON. Run it with
// `make bench`.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/hastate/hastate/bench/limit"
	"github.com/hastate/hastate/bench/report"
	"github.com/hastate/hastate/bench/system"
	"github.com/hastate/hastate/testcluster/chaos/model"
)

// exitUsage is for arguments that are wrong.
const exitUsage = 2

func main() {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case system.EtcdVerb:
			system.EtcdMain(os.Args[2:])
			return
		case limit.EchoVerb:
			os.Exit(limit.EchoMain(os.Args[2:]))
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	var code int
	switch verb, rest := split(os.Args[1:]); verb {
	case failoverVerb:
		code = runFailover(ctx, rest, os.Stdout, os.Stderr)
	case modelVerb:
		if err := model.Run(ctx, rest, os.Stderr); err != nil && !errors.Is(err, model.ErrStopped) {
			fmt.Fprintln(os.Stderr, "bench model:", err)
			code = 1
		}
	default:
		code = run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	}
	stop()
	os.Exit(code)
}

// split takes a verb off the arguments, if there is one.
func split(args []string) (verb string, rest []string) {
	if len(args) == 0 || strings.HasPrefix(args[0], "-") {
		return "", args
	}
	return args[0], args[1:]
}

// run is main with its streams.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	p, err := parse(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		fmt.Fprintln(stderr, "bench:", err)
		return exitUsage
	}
	p.progress = stderr
	found, err := p.measure(ctx)
	if len(found.Runs) > 0 {
		err = errors.Join(err, report.Table(stderr, found.Runs))
	}
	if err != nil {
		fmt.Fprintln(stderr, "bench:", err)
		return 1
	}
	if p.details != "" {
		b, err := json.MarshalIndent(found, "", "  ")
		if err == nil {
			err = os.WriteFile(p.details, append(b, '\n'), 0o600)
		}
		if err != nil {
			fmt.Fprintln(stderr, "bench:", err)
			return 1
		}
	}
	if err := json.NewEncoder(stdout).Encode(found.summary()); err != nil {
		fmt.Fprintln(stderr, "bench:", err)
		return 1
	}
	return 0
}

// parse reads the flags.
func parse(args []string, stderr io.Writer) (plan, error) {
	p := plan{}
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.SetOutput(stderr)
	systems := fs.String("systems", "hastate-segments,hastate-bolt,etcd,zookeeper", "what is compared, the one that ratios are of first")
	work := fs.String("work", "put,get,watch,idle", "put (durable writes), get (linearizable reads), watch (from a write until the last of many watchers is told), idle (what a node costs)")
	clients := fs.String("clients", "1,16,64,256", "how many clients at once, one run each")
	watchers := fs.String("watchers", "1000,5000", "how many watchers at once, one run each")
	fs.IntVar(&p.repetitions, "repetitions", 3, "how often all is done")
	fs.DurationVar(&p.duration, "time", 7*time.Second, "of one run")
	fs.DurationVar(&p.warm, "warm", time.Second, "before each run, not counted")
	fs.IntVar(&p.valueBytes, "value", 1024, "bytes of a value")
	fs.IntVar(&p.keys, "keys", 1_000_000, "distinct keys that are written")
	fs.IntVar(&p.conns, "conns", 16, "connections that clients share, at most")
	fs.StringVar(&p.hanode, "hanode", "", "program to measure (default: built from this checkout)")
	fs.StringVar(&p.dir, "dir", "", "where the data is, on the disk to be measured (default: the folder for temporary files)")
	fs.StringVar(&p.details, "details", "", "file for every single run, as JSON")
	if err := fs.Parse(args); err != nil {
		return p, err
	}
	if fs.NArg() > 0 {
		return p, fmt.Errorf("argument %q is not known: there are only flags, see -help", fs.Arg(0))
	}
	for name := range strings.SplitSeq(*systems, ",") {
		p.systems = append(p.systems, strings.TrimSpace(name))
	}
	for name := range strings.SplitSeq(*work, ",") {
		if name != workPut && name != workGet && name != workWatch && name != workIdle {
			return p, fmt.Errorf("work %q is not known: put, get, watch or idle", name)
		}
		p.work = append(p.work, name)
	}
	var err error
	if p.clients, err = numbers("clients", *clients, maxClients); err != nil {
		return p, err
	}
	if p.watchers, err = numbers("watchers", *watchers, maxWatchers); err != nil {
		return p, err
	}
	return p, p.check()
}

// numbers are those of a flag, with commas between.
func numbers(name, list string, most int) ([]int, error) {
	var all []int
	for text := range strings.SplitSeq(list, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(text))
		if err != nil || n < 1 || n > most {
			return nil, fmt.Errorf("%s %q: give numbers from 1 to %d, with commas between", name, text, most)
		}
		all = append(all, n)
	}
	return all, nil
}

// scratch is a folder for the data of one cluster.
func (p *plan) scratch(name string) (string, error) {
	dir, err := os.MkdirTemp(p.dir, "hastate-bench-"+filepath.Base(name)+"-")
	if err != nil {
		return "", fmt.Errorf("a folder for the data: %w: choose another with -dir", err)
	}
	return dir, nil
}
