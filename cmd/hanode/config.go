// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"

	"github.com/hastate/hastate/election"
	"github.com/hastate/hastate/node"
)

// sample is the commented sample file; a test holds it equal to the defaults.
//
//go:embed hanode.sample.yaml
var sample []byte

// maxConfigBytes bounds the configuration file.
const maxConfigBytes = 1 << 20

// options is the configuration as people write it: defaults, then the file, then
// the environment, then flags.
type options struct {
	NodeID          string            `yaml:"node_id"`
	DataDir         string            `yaml:"data_dir"`
	Listen          string            `yaml:"listen"`
	Advertise       string            `yaml:"advertise"`
	HTTPListen      string            `yaml:"http_listen"`
	BootstrapExpect int               `yaml:"bootstrap_expect"`
	Join            []string          `yaml:"join"`
	Replica         bool              `yaml:"replica"`
	Profile         string            `yaml:"profile"`
	AllowPlaintext  bool              `yaml:"allow_plaintext"`
	TLS             tlsOptions        `yaml:"tls"`
	Snapshot        snapshotOptions   `yaml:"snapshot"`
	LogStore        string            `yaml:"log_store"`
	Log             logOptions        `yaml:"log"`
	Instances       []instanceOptions `yaml:"instances"`
}

type tlsOptions struct {
	Cert string `yaml:"cert"`
	Key  string `yaml:"key"`
	CA   string `yaml:"ca"`
}

type snapshotOptions struct {
	Interval  time.Duration `yaml:"interval"`
	Threshold uint64        `yaml:"threshold"`
	Trailing  uint64        `yaml:"trailing"`
}

type logOptions struct {
	Level  string `yaml:"level"`
	Format string `yaml:"format"`
}

type instanceOptions struct {
	Group     string        `yaml:"group"`
	Kind      string        `yaml:"kind"`
	Target    string        `yaml:"target"`
	Address   string        `yaml:"address"`
	Interval  time.Duration `yaml:"interval"`
	Timeout   time.Duration `yaml:"timeout"`
	FailAfter int           `yaml:"fail_after"`
	Promote   []string      `yaml:"promote"`
	Demote    []string      `yaml:"demote"`
	Tags      tagOptions    `yaml:"tags"`
}

type tagOptions struct {
	NoFailover bool   `yaml:"no_failover"`
	Priority   int32  `yaml:"priority"`
	Zone       string `yaml:"zone"`
}

func defaultOptions() options {
	return options{
		Listen: "127.0.0.1:7001", HTTPListen: "127.0.0.1:7101", Join: []string{},
		Profile: election.Lan.Name,
		Snapshot: snapshotOptions{
			Interval:  node.DefaultSnapshotPolicy.Interval,
			Threshold: node.DefaultSnapshotPolicy.Threshold,
			Trailing:  node.DefaultSnapshotPolicy.Trailing,
		},
		Log: logOptions{Level: "info", Format: "text"}, Instances: []instanceOptions{},
	}
}

// bindFlags defines the flags over o. The instance flags describe the one
// instance beside the node; several need the file.
func bindFlags(fs *pflag.FlagSet, o *options, in *instanceOptions) {
	fs.StringVar(&o.NodeID, "node-id", o.NodeID, "unique name of this node; never changes for a data folder")
	fs.StringVar(&o.DataDir, "data-dir", o.DataDir, "folder of this node alone")
	fs.StringVar(&o.Listen, "listen", o.Listen, "gRPC address")
	fs.StringVar(&o.Advertise, "advertise", o.Advertise, "gRPC address as others reach it (default: --listen)")
	fs.StringVar(&o.HTTPListen, "http-listen", o.HTTPListen, "HTTP address for probes and metrics; empty: none")
	fs.IntVar(&o.BootstrapExpect, "bootstrap-expect", o.BootstrapExpect, "begin a new cluster when this many nodes have found each other through --join")
	fs.Var(&listValue{&o.Join}, "join", "gRPC addresses of other nodes, comma-separated")
	fs.BoolVar(&o.Replica, "replica", o.Replica, "join without a vote")
	fs.StringVar(&o.Profile, "profile", o.Profile, "timeouts: fast, lan or wan; the same on every node")
	fs.BoolVar(&o.AllowPlaintext, "allow-plaintext", o.AllowPlaintext, "serve and dial without TLS off loopback")
	fs.StringVar(&o.TLS.Cert, "tls-cert", o.TLS.Cert, "certificate of this node, PEM")
	fs.StringVar(&o.TLS.Key, "tls-key", o.TLS.Key, "its key, PEM")
	fs.StringVar(&o.TLS.CA, "tls-ca", o.TLS.CA, "authority that nodes and clients must be signed by, PEM")
	fs.DurationVar(&o.Snapshot.Interval, "snapshot-interval", o.Snapshot.Interval, "time between two looks whether the log wants compaction")
	fs.Uint64Var(&o.Snapshot.Threshold, "snapshot-threshold", o.Snapshot.Threshold, "log entries that make a snapshot worth while")
	fs.Uint64Var(&o.Snapshot.Trailing, "snapshot-trailing", o.Snapshot.Trailing, "log entries kept for followers that are behind")
	fs.StringVar(&o.LogStore, "log-store", o.LogStore, "how the Raft log is kept: bolt or segments (default: as it is in the data folder, "+string(node.DefaultLogStore)+" in a new one)")
	fs.StringVar(&o.Log.Level, "log-level", o.Log.Level, "debug, info, warn or error")
	fs.StringVar(&o.Log.Format, "log-format", o.Log.Format, "text or json")

	fs.StringVar(&in.Group, "group", in.Group, "group of the instance")
	fs.StringVar(&in.Kind, "instance-kind", in.Kind, "how the model server is attached: grpc, http or tcp")
	fs.StringVar(&in.Target, "instance-target", in.Target, "where it is watched: host:port, or a health URL for http")
	fs.StringVar(&in.Address, "instance-address", in.Address, "where its clients reach it")
	fs.DurationVar(&in.Interval, "instance-interval", in.Interval, "time between two probes (0: the kind's default)")
	fs.DurationVar(&in.Timeout, "instance-timeout", in.Timeout, "longest time of one probe (0: the kind's default)")
	fs.IntVar(&in.FailAfter, "instance-fail-after", in.FailAfter, "probes that must fail in a row (0: the kind's default)")
	fs.Var(&listValue{&in.Promote}, "instance-promote", "command that promotes it, comma-separated words (http, tcp)")
	fs.Var(&listValue{&in.Demote}, "instance-demote", "command that demotes it, comma-separated words (http, tcp)")
	fs.BoolVar(&in.Tags.NoFailover, "no-failover", in.Tags.NoFailover, "never promote the instance automatically")
	fs.Int32Var(&in.Tags.Priority, "priority", in.Tags.Priority, "higher is preferred as primary")
	fs.StringVar(&in.Tags.Zone, "zone", in.Tags.Zone, "zone of the instance")
}

// instanceFlags are the flags that describe the one instance.
var instanceFlags = []string{
	"group", "instance-kind", "instance-target", "instance-address", "instance-interval", "instance-timeout",
	"instance-fail-after", "instance-promote", "instance-demote", "no-failover", "priority", "zone",
}

// listValue is a comma-separated list that replaces the one before.
type listValue struct{ list *[]string }

func (l *listValue) String() string {
	if l.list == nil {
		return ""
	}
	return strings.Join(*l.list, ",")
}
func (l *listValue) Type() string { return "list" }
func (l *listValue) Set(s string) error {
	*l.list = []string{}
	for _, part := range strings.Split(s, ",") {
		if part = strings.TrimSpace(part); part != "" {
			*l.list = append(*l.list, part)
		}
	}
	return nil
}

// envName is the environment variable of a flag.
func envName(flag string) string {
	return "HANODE_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// loadOptions merges defaults, the file, the environment and the flags that were
// given, in this order.
func loadOptions(file string, getenv func(string) (string, bool), given *pflag.FlagSet) (options, error) {
	o := defaultOptions()
	if file != "" {
		if err := readFile(file, &o); err != nil {
			return o, err
		}
	}
	if len(o.Instances) > 1 {
		return o, mergeFlags(&o, &instanceOptions{}, getenv, given, true)
	}
	var in instanceOptions
	if len(o.Instances) == 1 {
		in = o.Instances[0]
	}
	if err := mergeFlags(&o, &in, getenv, given, false); err != nil {
		return o, err
	}
	if in.Kind == "" && in.Target == "" && in.Address == "" {
		for _, name := range instanceFlags {
			if f := given.Lookup(name); f != nil && f.Changed {
				return o, fmt.Errorf("--%s is given, but no instance: add --instance-kind, --instance-target and --instance-address", name)
			}
		}
		o.Instances = []instanceOptions{}
		return o, nil
	}
	o.Instances = []instanceOptions{in}
	return o, nil
}

func mergeFlags(o *options, in *instanceOptions, getenv func(string) (string, bool), given *pflag.FlagSet, several bool) error {
	fs := pflag.NewFlagSet("options", pflag.ContinueOnError)
	bindFlags(fs, o, in)
	isInstance := map[string]bool{}
	for _, name := range instanceFlags {
		isInstance[name] = true
	}
	var errs []error
	set := func(name, value, where string) {
		if several && isInstance[name] {
			errs = append(errs, fmt.Errorf("%s: the file has several instances, set it there", where))
			return
		}
		if err := fs.Set(name, value); err != nil {
			// pflag's text is about a flag, which nobody has written.
			errs = append(errs, fmt.Errorf("%s: %q cannot be read as %s", where, value, kindName(fs.Lookup(name).Value.Type())))
		}
	}
	fs.VisitAll(func(f *pflag.Flag) {
		if value, ok := getenv(envName(f.Name)); ok {
			set(f.Name, value, envName(f.Name))
		}
	})
	given.Visit(func(f *pflag.Flag) {
		if fs.Lookup(f.Name) != nil {
			set(f.Name, f.Value.String(), "--"+f.Name)
		}
	})
	return errors.Join(errs...)
}

// readFile decodes a YAML file over o; unknown keys are refused.
func readFile(path string, o *options) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("read config: %w", err)
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, maxConfigBytes+1))
	if err != nil {
		return fmt.Errorf("read config %s: %w", path, err)
	}
	if len(data) > maxConfigBytes {
		return fmt.Errorf("config %s is larger than %d bytes", path, maxConfigBytes)
	}
	if err := decodeYAML(data, o); err != nil {
		return fmt.Errorf("config %s: %w", path, err)
	}
	return nil
}

func decodeYAML(data []byte, o *options) error {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	if err := dec.Decode(o); err != nil && !errors.Is(err, io.EOF) {
		return readable(err)
	}
	if err := dec.Decode(new(options)); !errors.Is(err, io.EOF) {
		return errors.New("there is more than one document: keep one")
	}
	return nil
}

// yamlTexts turns what the decoder says of Go's types into what the writer of
// the file has to know.
var yamlTexts = strings.NewReplacer(
	"field ", "key ", " in type main.options", "", " in type main.tlsOptions", " in tls",
	" in type main.snapshotOptions", " in snapshot", " in type main.logOptions", " in log",
	" in type main.instanceOptions", " in an instance", " in type main.tagOptions", " in tags",
	" not found", " is not known", " cannot unmarshal ", " cannot read ", "!!", "",
	" into int32", " as a whole number", " into int", " as a whole number", " into uint64", " as a whole number",
	" into bool", " as true or false", " into string", " as text", " into ", " as ",
	"[]main.instanceOptions", "the list of instances", "main.instanceOptions", "an instance", "main.tlsOptions", "tls",
	"main.snapshotOptions", "snapshot", "main.logOptions", "log", "main.tagOptions", "tags", "main.options", "the configuration",
	"[]string", "a list", "time.Duration", "a duration such as 30s",
)

// readable is one line without Go's types for an error of the decoder.
func readable(err error) error {
	var t *yaml.TypeError
	if !errors.As(err, &t) {
		return err
	}
	texts := make([]string, len(t.Errors))
	for i, text := range t.Errors {
		texts[i] = yamlTexts.Replace(text)
	}
	return errors.New(strings.Join(texts, "; ") + " ('hanode config' prints all keys)")
}

// kindName says for people what a flag takes.
func kindName(kind string) string {
	switch kind {
	case "int", "int32", "uint64":
		return "a whole number"
	case "bool":
		return "true or false"
	case "duration":
		return "a duration such as 30s"
	}
	return "a " + kind
}
