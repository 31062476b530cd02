// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"unicode"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// FuzzConfigFile reads any bytes as the configuration file: they are refused, naming
// the file, or they are what is read back after it is saved.
func FuzzConfigFile(f *testing.F) {
	f.Add([]byte("current: a\ncontexts: {a: {endpoints: [x:1], tls_ca: ca.pem}}"))
	f.Add([]byte("contexts: {a: }"))
	f.Add([]byte("a: &a [*a]"))
	f.Add([]byte(""))
	f.Add([]byte("current: !!binary aGk="))
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		t.Setenv("XDG_CONFIG_HOME", dir)
		path := filepath.Join(dir, "hactl", "config.yaml")
		if err := errors.Join(os.Mkdir(filepath.Dir(path), 0o700), os.WriteFile(path, data, 0o600)); err != nil {
			t.Fatal(err)
		}
		c, err := loadConfig()
		if err != nil {
			if !errors.Is(err, hastate.ErrInvalid) || !strings.Contains(err.Error(), path) {
				t.Fatalf("it is not said which file is wrong: %v", err)
			}
			return
		}
		if err := c.save(); err != nil {
			t.Fatal(err)
		}
		again, err := loadConfig()
		if err != nil || !sameConfig(c, again) {
			t.Fatalf("%+v was read back as %+v, %v", c, again, err)
		}
		_, _ = (&app{contextName: c.Current}).resolveTarget()
	})
}

// sameConfig compares without the difference between no contexts and none.
func sameConfig(a, b config) bool {
	if a.Current != b.Current || len(a.Contexts) != len(b.Contexts) {
		return false
	}
	for name, t := range a.Contexts {
		o, has := b.Contexts[name]
		if len(t.Endpoints) == 0 && len(o.Endpoints) == 0 {
			t.Endpoints, o.Endpoints = nil, nil
		}
		if !has || !reflect.DeepEqual(t, o) {
			return false
		}
	}
	return true
}

// FuzzOutput prints any reply of a node: no line of a table can be broken or can send
// codes to the terminal, and JSON and YAML are the message.
func FuzzOutput(f *testing.F) {
	for _, m := range []*pb.StatusResponse{
		{Problems: []string{"a\nb\x1b[2J\u0085"}, LeaderId: "n1", UptimeMs: 1 << 63, Groups: []*pb.Group{{Name: "g\tx", Paused: true, PauseReason: "yes: no"}}},
		{Instances: []*pb.Instance{{NodeId: "n", State: 99, Reason: "\u202eevil", Model: &pb.ModelRef{Name: "m"}, Tags: &pb.InstanceTags{Zone: "z"}}}, Members: []*pb.Member{{Role: 7}}},
	} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		m := &pb.StatusResponse{}
		if proto.Unmarshal(data, m) != nil {
			return
		}
		m.ProtoReflect().SetUnknown(nil)
		outputs := map[string]string{}
		for _, format := range formats {
			var out bytes.Buffer
			a := &app{out: &out, format: format}
			if err := a.print(m, func(t table) { statusTable(t, m) }); err != nil {
				t.Fatalf("%s: %v", format, err)
			}
			outputs[format] = out.String()
		}
		for line := range strings.Lines(outputs[formatTable]) {
			if strings.ContainsFunc(strings.TrimSuffix(line, "\n"), unicode.IsControl) {
				t.Fatalf("a line of the table is %q", line)
			}
		}
		// Seven lines of heads and between, and one for each record.
		want := 8 + len(m.GetMembers()) + len(m.GetGroups()) + len(m.GetInstances()) + len(m.GetProblems())
		if got := strings.Count(outputs[formatTable], "\n"); got != want {
			t.Fatalf("%d lines, want %d:\n%s", got, want, outputs[formatTable])
		}
		back := &pb.StatusResponse{}
		if err := protojson.Unmarshal([]byte(outputs[formatJSON]), back); err != nil {
			t.Fatalf("%v:\n%s", err, outputs[formatJSON])
		}
		var fromJSON, fromYAML any
		if err := json.Unmarshal([]byte(outputs[formatJSON]), &fromJSON); err != nil {
			t.Fatal(err)
		}
		if err := yaml.Unmarshal([]byte(outputs[formatYAML]), &fromYAML); err != nil {
			t.Fatalf("%v:\n%s", err, outputs[formatYAML])
		}
		raw, err := json.Marshal(fromYAML)
		if err != nil {
			t.Fatal(err)
		}
		fromYAML = nil
		if err := json.Unmarshal(raw, &fromYAML); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(fromJSON, fromYAML) {
			t.Fatalf("JSON and YAML differ:\n%s\n%s", outputs[formatJSON], outputs[formatYAML])
		}
	})
}
