// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

// hanode runs the program without the process around it.
func hanode(args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = run(args, &out, &errs)
	return code, out.String(), errs.String()
}

func TestRun_Usage(t *testing.T) {
	for _, args := range [][]string{
		{"start"},
		{"run", "x"},
		{"run", "--nosuch"},
		{"run", "--replica=perhaps"},
		{"run", "--node-id", "n1"},
		{"version", "x"},
		{"config", "x"},
		{"demo", "--fault", "nosuch"},
		{"demo", "--fault", ""},
		{"demo", "--profile", "nosuch"},
		{"demo", "--base-port", "-1"},
		{"demo", "--base-port", "65535"},
		{"demo", "--keep", "--json"},
		{"textserver", "--nosuch"},
		{"textserver", "x"},
	} {
		code, stdout, stderr := hanode(args...)
		if code != exitUsage || stdout != "" && args[0] != "textserver" {
			t.Errorf("hanode %v: exit %d, stdout %q", args, code, stdout)
		}
		lines := strings.Split(strings.TrimSpace(stderr), "\n")
		if !strings.HasPrefix(lines[0], "hanode: ") || lines[len(lines)-1] != "See 'hanode --help'." {
			t.Errorf("hanode %v: stderr %q", args, stderr)
		}
	}
}

func TestRun_Prints(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, "Usage:"},
		{[]string{"--help"}, "textserver"},
		{[]string{"run", "--help"}, "HANODE_<FLAG>"},
		{[]string{"version"}, "hanode "},
		{[]string{"config"}, "bootstrap_expect: 0"},
	} {
		code, stdout, stderr := hanode(c.args...)
		hidden := c.want == "textserver"
		if code != exitOK || strings.Contains(stdout, c.want) == hidden || stderr != "" {
			t.Errorf("hanode %v: exit %d, stdout %q, stderr %q", c.args, code, stdout, stderr)
		}
	}
	if _, stdout, _ := hanode("config"); stdout != string(sample) {
		t.Error("'hanode config' does not print the sample")
	}
}

// Several mistakes are several lines.
func TestComplain(t *testing.T) {
	var out bytes.Buffer
	complain(&out, errors.Join(errors.New("a"), errors.New("b")))
	if out.String() != "hanode: a\nhanode: b\n" {
		t.Errorf("%q", out.String())
	}
}

// The list of instance flags is complete, and every flag is explained.
func TestFlags(t *testing.T) {
	o, in := defaultOptions(), instanceOptions{}
	fs := pflag.NewFlagSet("run", pflag.ContinueOnError)
	bindFlags(fs, &o, &in)
	known := map[string]bool{}
	for _, name := range instanceFlags {
		if known[name] = true; fs.Lookup(name) == nil {
			t.Errorf("there is no flag %s", name)
		}
	}
	fs.VisitAll(func(f *pflag.Flag) {
		if f.Usage == "" {
			t.Errorf("--%s is not explained", f.Name)
		}
		before := in
		if f.Value.Type() != "string" {
			return
		}
		if err := f.Value.Set("changed"); err != nil {
			t.Fatal(err)
		}
		if changes := before.Group != in.Group || before.Kind != in.Kind || before.Target != in.Target || before.Address != in.Address || before.Tags != in.Tags; changes != known[f.Name] {
			t.Errorf("--%s: about the instance %v, listed %v", f.Name, changes, known[f.Name])
		}
	})
}
