// SPDX-License-Identifier: Apache-2.0

package check

import (
	"strings"
	"testing"

	"github.com/hastate/hastate/testcluster/chaos/record"
)

func TestProof(t *testing.T) {
	whole := func() ProofInput {
		return ProofInput{
			Groups: []string{"g"}, Callers: true,
			Leases:        []record.Lease{{Node: "a", Group: "g", Epoch: 3}},
			Served:        []record.Served{{Node: "a", Group: "g", Epoch: 3}},
			Promotions:    []record.Promotion{{Node: "a", Group: "g", Epoch: 3}},
			Requests:      []record.Request{{Group: "g", Node: "a", Epoch: 3}, {Group: "g", Error: "no primary"}},
			GroupEvents:   []record.GroupEvent{showed(1000, 3, servingPhase)},
			SessionEvents: []record.SessionEvent{{Group: "g", Resync: true}, {Group: "g", Key: "k", Revision: 1}},
			Ops:           []record.Op{{Kind: record.Put, Outcome: record.OK}},
			Once:          Counts{Acknowledged: 1},
		}
	}
	for name, c := range map[string]struct {
		blind func(*ProofInput)
		want  string
	}{
		"whole":               {blind: func(*ProofInput) {}},
		"no callers":          {blind: func(p *ProofInput) { p.Callers, p.Leases, p.Served, p.Requests = false, nil, nil, nil }},
		"groups":              {blind: func(p *ProofInput) { p.Groups = nil }, want: "no groups were loaded"},
		"leases":              {blind: func(p *ProofInput) { p.Leases = nil }, want: "no lease was recorded"},
		"leases of one node":  {blind: func(p *ProofInput) { p.Leases[0].Node = "b" }, want: "its node recorded no lease of it"},
		"leases of one epoch": {blind: func(p *ProofInput) { p.Leases[0].Epoch = 2 }, want: "its node recorded no lease of it"},
		"leases, no callers":  {blind: func(p *ProofInput) { p.Callers, p.Leases, p.Requests = false, nil, nil }, want: "no lease was recorded"},
		"promotions":          {blind: func(p *ProofInput) { p.Promotions = nil }, want: "no promotion was recorded"},
		"served":              {blind: func(p *ProofInput) { p.Served = nil }, want: "its model server recorded none"},
		"requests":            {blind: func(p *ProofInput) { p.Requests = p.Requests[1:] }, want: "no request to its primary was answered"},
		"group events":        {blind: func(p *ProofInput) { p.GroupEvents = nil }, want: "no watch told of it"},
		"session events":      {blind: func(p *ProofInput) { p.SessionEvents = p.SessionEvents[:1] }, want: "no watch told of its sessions"},
		"one group of two":    {blind: func(p *ProofInput) { p.Groups, p.Callers = []string{"g", "h"}, false }, want: "group h: no watch told of it"},
		"operations":          {blind: func(p *ProofInput) { p.Ops[0].Outcome = record.Unknown }, want: "no write was acknowledged"},
		"appends":             {blind: func(p *ProofInput) { p.Once.Acknowledged = 0 }, want: "no append was acknowledged and read back"},
		"unread":              {blind: func(p *ProofInput) { p.Once.Unread = 2 }, want: "2 appends were acknowledged and never read back"},
		"undecided":           {blind: func(p *ProofInput) { p.Undecided = 3 }, want: "of 3 sessions it could not be told"},
	} {
		t.Run(name, func(t *testing.T) {
			p := whole()
			c.blind(&p)
			v := Proof(p)
			switch {
			case c.want == "" && len(v) != 0:
				t.Error(v)
			case c.want != "" && (len(v) == 0 || !strings.Contains(v[0].Text, c.want) || v[0].Check != checkProof):
				t.Errorf("%v, not %q", v, c.want)
			}
		})
	}
}
