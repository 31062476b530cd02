// SPDX-License-Identifier: Apache-2.0

package node

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/instance"
)

func validConfig() Config {
	return Config{
		NodeID: "n1", DataDir: "/data", Listen: "127.0.0.1:7000", HTTPListen: "127.0.0.1:7001", BootstrapExpect: 3,
		Join:      []string{"127.0.0.1:7002", "localhost:7003"},
		Instances: []InstanceConfig{{Attach: instance.Config{Kind: "grpc", Target: "127.0.0.1:9000"}}},
	}
}

// Every mistake in a configuration is named, with what to do about it.
func TestConfig_Validate(t *testing.T) {
	if err := validConfig().Validate(); err != nil {
		t.Fatal(err)
	}
	several := func(n int) []InstanceConfig {
		var out []InstanceConfig
		for i := range n {
			in := validConfig().Instances[0]
			in.Group = fmt.Sprint("g", i)
			out = append(out, in)
		}
		return out
	}
	for _, test := range []struct {
		name   string
		change func(*Config)
		say    []string
	}{
		{"no node id", func(c *Config) { c.NodeID = "" }, []string{"node id is missing"}},
		{"node id with a space", func(c *Config) { c.NodeID = "n 1" }, []string{`node id "n 1"`, "use letters, digits"}},
		{"node id too long", func(c *Config) { c.NodeID = strings.Repeat("n", hastate.MaxNameBytes+1) }, []string{"129 bytes", "limit is 128"}},
		{"no data folder", func(c *Config) { c.DataDir = "" }, []string{"data dir is missing", "a folder of its own"}},
		{"listen without a port", func(c *Config) { c.Listen = "127.0.0.1" }, []string{`listen address "127.0.0.1"`, "use host:port"}},
		{"port out of range", func(c *Config) { c.Listen = "127.0.0.1:70000" }, []string{"a number from 1 to 65535"}},
		{"port by name", func(c *Config) { c.HTTPListen = "127.0.0.1:http" }, []string{"http listen", "a number from 1 to 65535"}},
		{"plaintext beyond this machine", func(c *Config) { c.Listen = "10.0.0.1:7000" }, []string{"not loopback", "give certificates, or allow plaintext"}},
		{"every interface, nothing advertised", func(c *Config) { c.Listen, c.AllowPlaintext = "0.0.0.0:7000", true }, []string{"every interface", "advertise"}},
		{"advertise without a port", func(c *Config) { c.Advertise = "host" }, []string{"advertise address", "use host:port"}},
		{"advertise port 0", func(c *Config) { c.Advertise = "host:0" }, []string{"advertise address", "from 1 to 65535"}},
		{"join without a port", func(c *Config) { c.Join = []string{"host"} }, []string{`join address "host"`, "use host:port"}},
		{"join of a very long address", func(c *Config) { c.Join = []string{strings.Repeat("h", 2000) + ":1"} }, []string{"longer than"}},
		{"too many founders", func(c *Config) { c.BootstrapExpect = 10 }, []string{"bootstrap expect is 10", "use 1, 3 or 5"}},
		{"fewer than no founders", func(c *Config) { c.BootstrapExpect = -1 }, []string{"bootstrap expect is -1"}},
		{"a founder that does not vote", func(c *Config) { c.Replica = true }, []string{"replica", "are voters"}},
		{"profile that does not hold together", func(c *Config) { c.Profile.Heartbeat, c.Profile.Name = time.Second, "own" }, []string{"profile own", "must be more than 0"}},
		{"group with a slash", func(c *Config) { c.Instances[0].Group = "a/b" }, []string{"instance 0", `group "a/b"`}},
		{"two instances of a group", func(c *Config) { c.Instances = append(c.Instances, c.Instances[0]) }, []string{"instance 1", "already"}},
		{"too many instances", func(c *Config) { c.Instances = several(MaxInstances + 1) }, []string{"65 instances", "at most 64"}},
		{"instance of no kind", func(c *Config) { c.Instances[0].Attach.Kind = "" }, []string{"instance 0"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := validConfig()
			test.change(&c)
			err := c.Validate()
			if err == nil {
				t.Fatal("it is accepted")
			}
			for _, want := range test.say {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q does not say %q", err, want)
				}
			}
			if _, err := Open(c); err == nil {
				t.Error("a node opens with it")
			}
		})
	}
	// All mistakes at once, not the first alone.
	c := validConfig()
	c.NodeID, c.DataDir, c.BootstrapExpect = "", "", 42
	if err := c.Validate(); err == nil || strings.Count(err.Error(), "\n") < 2 {
		t.Errorf("three mistakes give %q", err)
	}
}
