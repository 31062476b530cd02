// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/hastate/hastate"
)

// target says where a cluster is and how to connect to it.
type target struct {
	Endpoints []string `yaml:"endpoints,omitempty"`
	TLSCA     string   `yaml:"tls_ca,omitempty"`
	TLSCert   string   `yaml:"tls_cert,omitempty"`
	TLSKey    string   `yaml:"tls_key,omitempty"`
	Plaintext bool     `yaml:"plaintext,omitempty"`
}

func (t target) usesTLS() bool { return t.TLSCA != "" || t.TLSCert != "" || t.TLSKey != "" }

// over fills in from base what t leaves open.
func (t target) over(base target) target {
	if len(t.Endpoints) == 0 {
		t.Endpoints = base.Endpoints
	}
	if !t.usesTLS() && !t.Plaintext {
		t.TLSCA, t.TLSCert, t.TLSKey, t.Plaintext = base.TLSCA, base.TLSCert, base.TLSKey, base.Plaintext
	}
	return t
}

// config is the configuration file.
type config struct {
	Current  string            `yaml:"current,omitempty"`
	Contexts map[string]target `yaml:"contexts,omitempty"`
}

// configPath is where the configuration file is.
func configPath() (string, error) {
	dir := os.Getenv("XDG_CONFIG_HOME")
	if dir == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", fmt.Errorf("find the configuration file: %w", err)
		}
		dir = filepath.Join(home, ".config")
	}
	return filepath.Join(dir, "hactl", "config.yaml"), nil
}

// loadConfig reads the configuration file; none is an empty one.
func loadConfig() (config, error) {
	path, err := configPath()
	if err != nil {
		return config{}, err
	}
	raw, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return config{}, nil
	}
	if err != nil {
		return config{}, fmt.Errorf("read the configuration file: %w", err)
	}
	var c config
	dec := yaml.NewDecoder(bytes.NewReader(raw))
	dec.KnownFields(true)
	if err := dec.Decode(&c); err != nil && !errors.Is(err, io.EOF) {
		return config{}, adviceError{fmt.Errorf("%w: configuration file %s: %s", hastate.ErrInvalid, path, err.Error()), "correct " + path}
	}
	return c, nil
}

// save writes the configuration file in one step: a crash leaves the old one.
func (c config) save() error {
	path, err := configPath()
	if err != nil {
		return err
	}
	raw, err := yaml.Marshal(c)
	if err != nil {
		return fmt.Errorf("format the configuration file: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("write the configuration file: %w", err)
	}
	if err := writeFile(path, bytes.NewReader(raw), nil); err != nil {
		return fmt.Errorf("write the configuration file: %w", err)
	}
	return nil
}

// resolveTarget decides where to connect to: --endpoints, then --context, then
// HACTL_ENDPOINTS, then the current context, then this machine.
func (a *app) resolveTarget() (target, error) {
	t := a.target
	if env := os.Getenv("HACTL_ENDPOINTS"); len(t.Endpoints) == 0 && a.contextName == "" && env != "" {
		t.Endpoints = strings.Split(env, ",")
	}
	cfg, err := loadConfig()
	if err != nil {
		return target{}, err
	}
	name := a.contextName
	if name == "" {
		name = cfg.Current
	}
	if name != "" {
		base, ok := cfg.Contexts[name]
		if !ok {
			return target{}, adviceError{fmt.Errorf("context %q: %w", name, hastate.ErrNotFound), "see hactl context list, or make it with hactl context set"}
		}
		t = t.over(base)
	}
	if len(t.Endpoints) == 0 && a.contextName != "" {
		return target{}, adviceError{fmt.Errorf("%w: context %q has no endpoints", hastate.ErrInvalid, name), "give it some: hactl context set " + name + " --endpoints ..."}
	}
	if len(t.Endpoints) == 0 {
		t.Endpoints = []string{defaultEndpoint}
	}
	for i := range t.Endpoints {
		t.Endpoints[i] = strings.TrimSpace(t.Endpoints[i])
	}
	return t, nil
}

// writeFile writes a new file beside path, syncs it and, if check finds it good,
// puts it in place.
func writeFile(path string, content io.Reader, check func(*os.File) error) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
	}()
	if _, err := io.Copy(f, content); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if check != nil {
		if err := check(f); err != nil {
			return err
		}
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
