// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
)

// writeConfig writes a configuration file.
func writeConfig(t *testing.T, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "hanode.yaml")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// load is what `hanode run` makes of a file, an environment and flags.
func load(t *testing.T, file string, env map[string]string, args ...string) (options, error) {
	t.Helper()
	path := ""
	if file != "" {
		path = writeConfig(t, []byte(file))
	}
	bound, in := defaultOptions(), instanceOptions{}
	fs := pflag.NewFlagSet("run", pflag.ContinueOnError)
	bindFlags(fs, &bound, &in)
	if err := fs.Parse(args); err != nil {
		t.Fatal(err)
	}
	return loadOptions(path, func(name string) (string, bool) { v, ok := env[name]; return v, ok }, fs)
}

// The sample shows every key with its default.
func TestSample_IsTheDefaults(t *testing.T) {
	var o options
	if err := decodeYAML(sample, &o); err != nil {
		t.Fatal(err)
	}
	if want := defaultOptions(); !reflect.DeepEqual(o, want) {
		t.Errorf("the sample says %+v, the defaults are %+v", o, want)
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(sample, &doc); err != nil {
		t.Fatal(err)
	}
	if got, want := keysOf(doc.Content[0]), keysOfType(reflect.TypeFor[options]()); !slices.Equal(got, want) {
		t.Errorf("the sample has the keys %v, there are %v", got, want)
	}
	// The example in its comments is right too, and has every key of an instance.
	var example strings.Builder
	inside := false
	for line := range strings.Lines(string(sample)) {
		inside = inside || strings.HasPrefix(line, "# instances:")
		if text, ok := strings.CutPrefix(line, "# "); inside && ok {
			example.WriteString(text)
		}
	}
	o = options{}
	if err := decodeYAML([]byte(example.String()), &o); err != nil || len(o.Instances) != 1 {
		t.Fatalf("%v: %+v\n%s", err, o, example.String())
	}
	if err := yaml.Unmarshal([]byte(example.String()), &doc); err != nil {
		t.Fatal(err)
	}
	instance := doc.Content[0].Content[1].Content[0]
	if got, want := keysOf(instance), keysOfType(reflect.TypeFor[instanceOptions]()); !slices.Equal(got, want) {
		t.Errorf("the example has the keys %v, there are %v", got, want)
	}
}

// keysOf are the keys of a mapping, with those inside of it.
func keysOf(n *yaml.Node) []string {
	var keys []string
	for i := 0; i+1 < len(n.Content); i += 2 {
		keys = append(keys, n.Content[i].Value)
		if n.Content[i+1].Kind == yaml.MappingNode {
			for _, k := range keysOf(n.Content[i+1]) {
				keys = append(keys, n.Content[i].Value+"."+k)
			}
		}
	}
	slices.Sort(keys)
	return keys
}

func keysOfType(typ reflect.Type) []string {
	var keys []string
	for i := range typ.NumField() {
		key := typ.Field(i).Tag.Get("yaml")
		keys = append(keys, key)
		if typ.Field(i).Type.Kind() == reflect.Struct {
			for _, k := range keysOfType(typ.Field(i).Type) {
				keys = append(keys, key+"."+k)
			}
		}
	}
	slices.Sort(keys)
	return keys
}

// Each source wins over the ones before, key by key.
func TestLoadOptions_Precedence(t *testing.T) {
	const file = "node_id: file\nprofile: fast\nlisten: 127.0.0.1:1\nsnapshot: {threshold: 5}\njoin: [a:1, b:2]\n"
	env := map[string]string{"HANODE_PROFILE": "wan", "HANODE_LISTEN": "127.0.0.1:2", "HANODE_SNAPSHOT_INTERVAL": "7s", "HANODE_JOIN": "c:3, d:4,"}
	o, err := load(t, file, env, "--listen", "127.0.0.1:3", "--replica")
	if err != nil {
		t.Fatal(err)
	}
	want := defaultOptions()
	want.NodeID, want.Profile, want.Listen, want.Replica = "file", "wan", "127.0.0.1:3", true
	want.Snapshot.Threshold, want.Snapshot.Interval = 5, 7*time.Second
	want.Join = []string{"c:3", "d:4"}
	if !reflect.DeepEqual(o, want) {
		t.Errorf("got  %+v\nwant %+v", o, want)
	}
	// A flag given with the default's value wins too.
	if o, err := load(t, "profile: wan\n", nil, "--profile", "lan"); err != nil || o.Profile != "lan" {
		t.Errorf("%q, %v", o.Profile, err)
	}
	// Empty is a value.
	if o, err := load(t, "join: [a:1]\n", map[string]string{"HANODE_HTTP_LISTEN": ""}, "--join", ""); err != nil || o.HTTPListen != "" || len(o.Join) != 0 {
		t.Errorf("%+v, %v", o, err)
	}
	if o, err := load(t, "", nil); err != nil || !reflect.DeepEqual(o, defaultOptions()) {
		t.Errorf("%+v, %v", o, err)
	}
}

func TestLoadOptions_OneInstance(t *testing.T) {
	const file = "instances: [{group: chat, kind: http, target: 'http://h/health', address: 'a:1', interval: 3s, tags: {zone: x}}]\n"
	env := map[string]string{"HANODE_PRIORITY": "4", "HANODE_INSTANCE_PROMOTE": "/bin/a, b"}
	o, err := load(t, file, env, "--instance-address", "b:2", "--no-failover")
	if err != nil {
		t.Fatal(err)
	}
	want := []instanceOptions{{
		Group: "chat", Kind: "http", Target: "http://h/health", Address: "b:2", Interval: 3 * time.Second,
		Promote: []string{"/bin/a", "b"}, Tags: tagOptions{NoFailover: true, Priority: 4, Zone: "x"},
	}}
	if !reflect.DeepEqual(o.Instances, want) {
		t.Errorf("got %+v", o.Instances)
	}
	// By flags alone.
	o, err = load(t, "", nil, "--instance-kind", "grpc", "--instance-target", "t:1", "--instance-address", "a:1")
	if err != nil || len(o.Instances) != 1 || o.Instances[0].Target != "t:1" {
		t.Errorf("%+v, %v", o.Instances, err)
	}
	for _, flag := range []string{"--group=g", "--no-failover", "--zone=z", "--instance-interval=1s"} {
		if o, err := load(t, "", nil, flag); err == nil || !strings.Contains(err.Error(), "no instance") {
			t.Errorf("%s without an instance: %+v, %v", flag, o.Instances, err)
		}
	}
}

func TestLoadOptions_SeveralInstances(t *testing.T) {
	const file = "instances: [{group: a, kind: grpc, target: 't:1', address: 'a:1'}, {group: b, kind: tcp, target: 't:2', address: 'a:2'}]\n"
	o, err := load(t, file, map[string]string{"HANODE_NODE_ID": "n1"}, "--profile", "wan")
	if err != nil || len(o.Instances) != 2 || o.Instances[1].Group != "b" || o.NodeID != "n1" || o.Profile != "wan" {
		t.Errorf("%+v, %v", o, err)
	}
	if _, err := load(t, file, nil, "--zone", "x"); err == nil || !strings.Contains(err.Error(), "--zone: the file has several instances") {
		t.Errorf("a flag for one of several: %v", err)
	}
	if _, err := load(t, file, map[string]string{"HANODE_GROUP": "x"}); err == nil || !strings.Contains(err.Error(), "HANODE_GROUP: the file has several instances") {
		t.Errorf("a variable for one of several: %v", err)
	}
}

// Every flag has its variable, and every error of one names it.
func TestLoadOptions_Environment(t *testing.T) {
	for name, value := range map[string]string{
		"HANODE_BOOTSTRAP_EXPECT": "a whole number", "HANODE_REPLICA": "true or false", "HANODE_SNAPSHOT_INTERVAL": "a duration such as 30s",
		"HANODE_SNAPSHOT_THRESHOLD": "a whole number", "HANODE_PRIORITY": "a whole number",
	} {
		_, err := load(t, "", map[string]string{name: "nonsense"})
		if err == nil || !strings.Contains(err.Error(), name+`: "nonsense" cannot be read as `+value) {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err := load(t, "", map[string]string{"HANODE_REPLICA": "x", "HANODE_BOOTSTRAP_EXPECT": "y"})
	if err == nil || strings.Count(err.Error(), "HANODE_") != 2 {
		t.Errorf("two mistakes: %v", err)
	}
}

func TestReadFile_Refuses(t *testing.T) {
	for text, want := range map[string]string{
		"nodeid: x\n":                           "line 1: key nodeid is not known",
		"node_id: x\ntls: {crt: y}\n":           "line 2: key crt is not known in tls",
		"instances: [{tags: {zones: y}}]\n":     "key zones is not known in tags",
		"instances: [{name: y}]\n":              "key name is not known in an instance",
		"log: [a]\n":                            "cannot read seq as log",
		"join: a:1\n":                           "as a list",
		"snapshot: {interval: 30}\n":            "as a duration such as 30s",
		"snapshot: {threshold: -1}\n":           "as a whole number",
		"bootstrap_expect: three\n":             "as a whole number",
		"replica: perhaps\n":                    "as true or false",
		"node_id: {a: b}\n":                     "as text",
		"[a, b]\n":                              "as the configuration",
		"node_id: a\n---\nnode_id: b\n":         "more than one document",
		"node_id: [a\n":                         "yaml",
		"node_id: a\nnode_id: b\n":              "node_id",
		strings.Repeat("#", maxConfigBytes+100): "larger than",
	} {
		_, err := load(t, text, nil)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v, want %q", text, err, want)
			continue
		}
		if strings.Contains(err.Error(), "main.") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%.40q: %v", text, err)
		}
	}
	for _, text := range []string{"# nothing\n", "---\n", "node_id: a\n...\n", "{}"} {
		if _, err := load(t, text, nil); err != nil {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// The decoder takes any text without a panic, and what it takes it takes again
// when it is written out.
func FuzzDecodeYAML(f *testing.F) {
	f.Add(sample)
	f.Add([]byte("instances: [{group: a, tags: {priority: -5}, promote: [x, y]}]"))
	f.Add([]byte("join: [a, b]\nsnapshot: {interval: 1h}"))
	f.Add([]byte("a: &a [*a]"))
	f.Add([]byte("listen: !!binary aGk="))
	f.Add([]byte("---\n---\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		o := defaultOptions()
		if err := decodeYAML(data, &o); err != nil {
			if strings.Contains(err.Error(), "main.") {
				t.Errorf("the error is not for people: %v", err)
			}
			return
		}
		written, err := yaml.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		var again options
		if err := decodeYAML(written, &again); err != nil {
			t.Fatalf("%v:\n%s", err, written)
		}
		rewritten, err := yaml.Marshal(again)
		if err != nil {
			t.Fatal(err)
		}
		if string(rewritten) != string(written) {
			t.Errorf("written\n%s\nread and written again\n%s", written, rewritten)
		}
	})
}
