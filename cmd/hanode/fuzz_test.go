// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io"
	"reflect"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"github.com/hastate/hastate"
)

// FuzzOptions gives any values to two flags, one in the environment and one on the
// command line, over any file: the value is refused in words for people, naming where
// it was given, or it is what it says, and the configuration that comes of it is
// refused or good.
func FuzzOptions(f *testing.F) {
	f.Add(uint8(0), "n1", uint8(2), "127.0.0.1:1", []byte("node_id: a"))
	f.Add(uint8(5), "3", uint8(6), "a:1, b:2,,", []byte(""))
	f.Add(uint8(13), "1e9h", uint8(14), "-1", []byte("snapshot: {interval: 5s}"))
	f.Add(uint8(18), "\xff\x00", uint8(19), "grpc", []byte("instances: [{kind: tcp}, {kind: tcp}]"))
	f.Add(uint8(8), "lan", uint8(16), "debug", sample)
	var names []string
	probe := pflag.NewFlagSet("names", pflag.ContinueOnError)
	bindFlags(probe, &options{}, &instanceOptions{})
	probe.VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
	f.Fuzz(func(t *testing.T, n uint8, env string, m uint8, arg string, file []byte) {
		inEnv, given := names[int(n)%len(names)], names[int(m)%len(names)]
		bound, in := defaultOptions(), instanceOptions{}
		fs := pflag.NewFlagSet("run", pflag.ContinueOnError)
		fs.SetOutput(io.Discard)
		bindFlags(fs, &bound, &in)
		if fs.Parse([]string{"--" + given + "=" + arg}) != nil {
			return
		}
		o := defaultOptions()
		if decodeYAML(file, &o) != nil {
			return
		}
		path := writeConfig(t, file)
		lookup := func(name string) (string, bool) { return env, name == envName(inEnv) }
		got, err := loadOptions(path, lookup, fs)
		if err != nil {
			for _, internal := range []string{"main.", "strconv", "pflag", "time:"} {
				if strings.Contains(err.Error(), internal) && !strings.Contains(env+arg, internal) {
					t.Fatalf("the error is not for people: %v", err)
				}
			}
			if !strings.Contains(err.Error(), envName(inEnv)) && !strings.Contains(err.Error(), "--"+given) {
				t.Fatalf("the error does not say where: %v", err)
			}
			return
		}
		again, err := loadOptions(path, lookup, fs)
		if err != nil || !reflect.DeepEqual(got, again) {
			t.Fatalf("%+v, and then %+v, %v", got, again, err)
		}
		if given == "node-id" && got.NodeID != arg || given != "node-id" && inEnv == "node-id" && got.NodeID != env {
			t.Fatalf("the node id is %q", got.NodeID)
		}
		got.TLS = tlsOptions{} // files are not opened here
		cfg, err := nodeConfig(got, io.Discard)
		if err != nil {
			return
		}
		if err := cfg.Validate(); err == nil && (cfg.NodeID == "" || len(cfg.NodeID) > hastate.MaxNameBytes || cfg.DataDir == "") {
			t.Fatalf("%+v is taken for good", cfg)
		}
	})
}
