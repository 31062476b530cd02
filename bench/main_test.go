// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/hastate/hastate/bench/failover"
	"github.com/hastate/hastate/bench/limit"
	"github.com/hastate/hastate/bench/system"
	"github.com/hastate/hastate/testcluster/chaos/model"
)

// TestMain: the test program is also the servers that it starts.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case system.EtcdVerb:
			system.EtcdMain(os.Args[2:])
			return
		case limit.EchoVerb:
			limit.EchoMain(os.Args[2:])
			return
		case modelVerb:
			if err := model.Run(context.Background(), os.Args[2:], os.Stderr); err != nil {
				os.Exit(1)
			}
			return
		}
	}
	m.Run()
}

func TestParse_Refuses(t *testing.T) {
	for args, want := range map[string]string{
		"extra":                "not known",
		"-systems=consul":      "one of hastate-segments",
		"-work=scan":           "put, get, watch or idle",
		"-watchers=0":          "numbers from 1",
		"-clients=0":           "numbers from 1",
		"-clients=1,,2":        "numbers from 1",
		"-clients=1000000":     "numbers from 1",
		"-repetitions=0":       "repetitions",
		"-time=1ns":            "from 10ms",
		"-value=0":             "bytes of value",
		"-value=2000000":       "bytes of value",
		"-keys=0":              "keys",
		"-conns=0":             "connections",
		"-dir=/dev/null/there": "",
	} {
		p, err := parse(strings.Fields(args), io.Discard)
		if want == "" {
			if _, err = p.scratch("x"); err == nil || !strings.Contains(err.Error(), "-dir") {
				t.Errorf("%s: %v", args, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", args, err)
		}
	}
}

// TestRun_RealClusters measures for a moment, with real processes: every system
// answers, and the last line is JSON with a ratio for each that could be run.
func TestRun_RealClusters(t *testing.T) {
	if testing.Short() {
		t.Skip("it starts clusters")
	}
	var out, told bytes.Buffer
	code := run(t.Context(), []string{
		"-systems=hastate-segments,hastate-bolt-unary,etcd,zookeeper", "-work=put,get,watch", "-clients=2", "-watchers=10", "-repetitions=1", "-time=300ms", "-warm=50ms", "-keys=100",
		"-dir=" + t.TempDir(),
	}, &out, &told)
	if code != 0 {
		t.Fatalf("exit code %d\n%s", code, told.String())
	}
	var line struct {
		Bolt    map[string]float64 `json:"writes_1k_vs_hastate_bolt_unary"`
		Etcd    map[string]float64 `json:"writes_1k_vs_etcd"`
		Watch   float64            `json:"watch_10_vs_etcd"`
		Echo    map[string]float64 `json:"reads_vs_echo"`
		CPU     map[string]float64 `json:"write_server_cpu_us"`
		LeftOut map[string]string  `json:"left_out"`
	}
	if err := json.Unmarshal(out.Bytes(), &line); err != nil {
		t.Fatalf("%s: %v", out.String(), err)
	}
	for name, ratios := range map[string]map[string]float64{"bolt": line.Bolt, "etcd": line.Etcd, "echo": line.Echo} {
		if ratios["2"] <= 0 {
			t.Errorf("%s: %v\n%s", name, ratios, told.String())
		}
	}
	if line.Watch <= 0 {
		t.Errorf("watch: %v\n%s", line.Watch, told.String())
	}
	if why, left := line.LeftOut["zookeeper"]; left {
		t.Logf("ZooKeeper was left out: %s", why)
	}
}

// TestRunFailover_RealCluster breaks a real cluster once.
func TestRunFailover_RealCluster(t *testing.T) {
	if testing.Short() {
		t.Skip("it starts a cluster")
	}
	var out, told bytes.Buffer
	if code := runFailover(t.Context(), []string{"-rounds=1", "-profiles=lan", "-cases=model-killed", "-dir=" + t.TempDir()}, &out, &told); code != 0 {
		t.Fatalf("exit code %d\n%s", code, told.String())
	}
	var line map[string]map[string]failover.Figures
	if err := json.Unmarshal(out.Bytes(), &line); err != nil {
		t.Fatalf("%s: %v", out.String(), err)
	}
	if f := line["lan"]["model-killed"]; f.N != 1 || f.MaxMs <= 0 || f.TwoBelievers != 0 {
		t.Errorf("%+v\n%s", f, told.String())
	}
}
