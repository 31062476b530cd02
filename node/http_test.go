// SPDX-License-Identifier: Apache-2.0

package node_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/hastate/hastate/internal/wait"
	"github.com/hastate/hastate/node"
	pb "github.com/hastate/hastate/proto/hastate/v1"
	"github.com/hastate/hastate/testcluster"
)

// answer is the body of a probe.
type answer struct {
	OK     bool   `json:"ok"`
	Reason string `json:"reason"`
	Node   string `json:"node"`
	Group  string `json:"group"`
	Role   string `json:"role"`
	Epoch  uint64 `json:"epoch"`
	Leader string `json:"leader"`
}

func get(t *testing.T, m *testcluster.Member, path string) (code int, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+m.Node().HTTPAddress()+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	// A connection of its own: none is left when the node stops.
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(resp.Body)
	if closeErr := resp.Body.Close(); err != nil || closeErr != nil {
		t.Fatal(err, closeErr)
	}
	return resp.StatusCode, string(data)
}

// probe waits until a probe answers as it should, with a reason.
func probe(t *testing.T, m *testcluster.Member, path string, ok bool, reason string) answer {
	t.Helper()
	var got answer
	wait.Until(t, testcluster.Patience, func() error {
		code, body := get(t, m, path)
		got = answer{}
		if err := json.Unmarshal([]byte(body), &got); err != nil {
			return fmt.Errorf("%s answers %q: %w", path, body, err)
		}
		want := http.StatusOK
		if !ok {
			want = http.StatusServiceUnavailable
		}
		if code != want || got.OK != ok || !strings.Contains(got.Reason, reason) || got.Node != m.ID {
			return fmt.Errorf("%s answers %d %s, want %d and %q", path, code, body, want, reason)
		}
		return nil
	})
	return got
}

func TestHTTP_Probes(t *testing.T) {
	c := testcluster.New(t, testcluster.Options{Nodes: 1, Configure: func(c *node.Config) { c.HTTPListen = "127.0.0.1:0" }})
	m := c.Members[0]
	_, epoch := c.WaitPrimary(0)
	if got := probe(t, m, "/livez", true, "running"); got.Leader != m.ID {
		t.Fatalf("livez: %+v", got)
	}
	probe(t, m, "/readyz", true, "ready")
	if got := probe(t, m, "/primary", true, "it is the primary"); got.Epoch != epoch || got.Role != "PRIMARY" || got.Group != "default" {
		t.Fatalf("primary: %+v", got)
	}
	probe(t, m, "/standby", false, "it is the primary")
	probe(t, m, "/primary?group=other", false, "no instance of this group")

	code, metrics := get(t, m, "/metrics")
	for _, line := range []string{
		"hastate_raft_leader 1", "hastate_ready 1", `hastate_primary{group="default"} 1`,
		fmt.Sprintf(`hastate_group_epoch{group="default"} %d`, epoch), `hastate_group_vacant{group="default"} 0`,
	} {
		if !strings.Contains(metrics, "\n"+line+"\n") {
			t.Errorf("the metrics have no line %q", line)
		}
	}
	if code != http.StatusOK {
		t.Errorf("metrics: %d", code)
	}

	// The instance fails: neither primary nor standby, with the reason.
	m.Instance.SetState(pb.InstanceState_INSTANCE_STATE_FAILED)
	probe(t, m, "/primary", false, "it is not the primary")
	probe(t, m, "/standby", false, "failed")
	probe(t, m, "/readyz", true, "ready")
	if code, metrics := get(t, m, "/metrics"); code != http.StatusOK || !strings.Contains(metrics, "\n"+`hastate_primary{group="default"} 0`+"\n") {
		t.Error("the metrics show a failed instance as primary")
	}
	m.Instance.SetState(pb.InstanceState_INSTANCE_STATE_READY)
	probe(t, m, "/primary", true, "it is the primary")

	// Nothing else is served, and nothing but GET.
	if code, _ := get(t, m, "/"); code != http.StatusNotFound {
		t.Errorf("/ answers %d", code)
	}
}

// Without a leader a node lives and is not ready.
func TestHTTP_NotReady(t *testing.T) {
	c := testcluster.New(t, testcluster.Options{NoInstances: true, Configure: func(c *node.Config) { c.HTTPListen = "127.0.0.1:0" }})
	leader := c.WaitLeader()
	for _, m := range c.Others(leader) {
		m.Crash()
	}
	probe(t, leader, "/readyz", false, "no leader is known")
	probe(t, leader, "/livez", true, "running")
	probe(t, leader, "/standby", false, "no instance of this group")
	for _, m := range c.Members {
		if m.Node() == nil {
			m.Start()
		}
	}
	probe(t, leader, "/readyz", true, "ready")
}
