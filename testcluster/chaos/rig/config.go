// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"go.yaml.in/yaml/v3"
)

// config is the part of hanode's configuration that the rig sets.
type config struct {
	NodeID          string           `yaml:"node_id"`
	DataDir         string           `yaml:"data_dir"`
	Listen          string           `yaml:"listen"`
	HTTPListen      string           `yaml:"http_listen"`
	BootstrapExpect int              `yaml:"bootstrap_expect"`
	Join            []string         `yaml:"join"`
	Replica         bool             `yaml:"replica"`
	Profile         string           `yaml:"profile"`
	AllowPlaintext  bool             `yaml:"allow_plaintext"`
	Snapshot        snapshotConfig   `yaml:"snapshot"`
	Instances       []instanceConfig `yaml:"instances"`
}

type snapshotConfig struct {
	Interval  time.Duration `yaml:"interval"`
	Threshold int           `yaml:"threshold"`
	Trailing  int           `yaml:"trailing"`
}

type instanceConfig struct {
	Group   string `yaml:"group"`
	Kind    string `yaml:"kind"`
	Target  string `yaml:"target"`
	Address string `yaml:"address"`
}

// writeConfig writes the node's configuration for the next start.
func (h *Host) writeConfig(id string, s NodeStart) (path string, err error) {
	c := config{
		NodeID: id, DataDir: h.data, Listen: h.GRPC(), HTTPListen: h.Web(),
		BootstrapExpect: s.Expect, Join: s.Join, Replica: s.Replica, Profile: h.rig.options.Profile, AllowPlaintext: true,
		// Small, so that compaction and snapshot installs happen all the time.
		Snapshot: snapshotConfig{Interval: time.Second, Threshold: 512, Trailing: 256},
	}
	for k, group := range h.rig.options.Groups {
		c.Instances = append(c.Instances, instanceConfig{
			Group: group, Kind: "grpc", Target: h.modelTarget(k),
			Address: net.JoinHostPort(h.address, strconv.Itoa(modelHTTP+k)),
		})
	}
	text, err := yaml.Marshal(c)
	if err != nil {
		return "", fmt.Errorf("write configuration of %s: %w", id, err)
	}
	path = filepath.Join(h.rig.options.Dir, "config", id+".yaml")
	if err := os.WriteFile(path, text, 0o644); err != nil {
		return "", fmt.Errorf("write configuration of %s: %w", id, err)
	}
	return path, nil
}
