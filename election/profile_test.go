// SPDX-License-Identifier: Apache-2.0

package election

import (
	"math"
	"strings"
	"testing"
	"time"
)

func TestProfiles_Valid(t *testing.T) {
	for _, p := range Profiles() {
		if err := p.Validate(); err != nil {
			t.Errorf("%s: %v", p.Name, err)
		}
		if got, err := ProfileByName(p.Name); err != nil || got != p {
			t.Errorf("ProfileByName(%q) = %+v, %v", p.Name, got, err)
		}
	}
	if _, err := ProfileByName("lunar"); err == nil || !strings.Contains(err.Error(), "fast, lan or wan") || !strings.Contains(err.Error(), "lunar") {
		t.Errorf("an unknown name: %v", err)
	}
}

// TestProfile_Validate violates each relation alone; the message has both numbers.
func TestProfile_Validate(t *testing.T) {
	const ms = time.Millisecond
	for _, c := range []struct {
		name   string
		change func(*Profile)
		says   []string
	}{
		{"heartbeat short", func(p *Profile) { p.Heartbeat, p.LeaderLease = 49*ms, 40*ms }, []string{"heartbeat 49ms", "50ms"}},
		{"leader lease short", func(p *Profile) { p.LeaderLease = 4 * ms }, []string{"leader lease 4ms", "5ms"}},
		{"leader lease long", func(p *Profile) { p.LeaderLease = 301 * ms }, []string{"leader lease 301ms", "heartbeat 300ms"}},
		{"commit short", func(p *Profile) { p.Commit = 999 * time.Microsecond }, []string{"commit 999µs", "1ms"}},
		{"commit long", func(p *Profile) { p.Commit = 76 * ms }, []string{"commit 76ms", "heartbeat 300ms"}},
		{"lease short", func(p *Profile) { p.Lease, p.Renew, p.FenceMargin, p.Heartbeat = 99*ms, 20*ms, 1*ms, 30*ms }, []string{"lease 99ms", "100ms"}},
		{"lease long", func(p *Profile) { p.Lease = 61 * time.Second }, []string{"lease 1m1s", "1m0s"}},
		{"renew short", func(p *Profile) { p.Renew = 9 * ms }, []string{"renew 9ms", "10ms"}},
		{"renew long", func(p *Profile) { p.Renew = 401 * ms }, []string{"renew 401ms", "lease 1.2s"}},
		{"fence margin long", func(p *Profile) { p.FenceMargin = 301 * ms }, []string{"fence margin 301ms", "lease 1.2s"}},
		{"lease shorter than an outage", func(p *Profile) { p.Heartbeat, p.Stall = 420*ms, 2*time.Second }, []string{"lease 1.2s", "heartbeats 420ms", "renew 200ms", "margin 150ms", "1.19s"}},
		{"stall short", func(p *Profile) { p.Stall = 299 * ms }, []string{"stall 299ms", "heartbeat 300ms"}},
		{"slack short", func(p *Profile) { p.GrantSlack = ms - 1 }, []string{"grant slack 999.999µs", "1ms"}},
		{"slack long", func(p *Profile) { p.GrantSlack = 1201 * ms }, []string{"grant slack 1.201s", "lease 1.2s"}},
	} {
		p := Lan
		c.change(&p)
		err := p.Validate()
		if err == nil {
			t.Errorf("%s: accepted", c.name)
			continue
		}
		for _, word := range c.says {
			if !strings.Contains(err.Error(), word) {
				t.Errorf("%s: %q does not say %q", c.name, err, word)
			}
		}
	}
}

// TestProfile_Validate_Range: no field may be missing, negative, or so long that a
// sum overflows.
func TestProfile_Validate_Range(t *testing.T) {
	set := map[string]func(*Profile, time.Duration){
		"heartbeat":    func(p *Profile, d time.Duration) { p.Heartbeat = d },
		"leader lease": func(p *Profile, d time.Duration) { p.LeaderLease = d },
		"commit":       func(p *Profile, d time.Duration) { p.Commit = d },
		"lease":        func(p *Profile, d time.Duration) { p.Lease = d },
		"renew":        func(p *Profile, d time.Duration) { p.Renew = d },
		"fence margin": func(p *Profile, d time.Duration) { p.FenceMargin = d },
		"stall":        func(p *Profile, d time.Duration) { p.Stall = d },
		"grant slack":  func(p *Profile, d time.Duration) { p.GrantSlack = d },
	}
	if len(set) != len(Lan.fields()) {
		t.Fatalf("%d fields are tested, a profile has %d", len(set), len(Lan.fields()))
	}
	for name, change := range set {
		for _, d := range []time.Duration{0, -1, time.Hour + 1, math.MaxInt64, math.MinInt64} {
			p := Lan
			change(&p, d)
			if err := p.Validate(); err == nil || !strings.Contains(err.Error(), name+" "+d.String()+" must be more than 0") {
				t.Errorf("%s %v: %v", name, d, err)
			}
		}
	}
	if err := (Profile{}).Validate(); strings.Count(err.Error(), "\n") != len(set)-1 {
		t.Errorf("an empty profile: %v", err)
	}
}

// TestProfile_LeaseOutlastsOutage: the point of the relations. A renewal that was
// read just before a leader died can be followed by one two heartbeats later,
// before the holder fences itself, even on a slow clock.
func TestProfile_LeaseOutlastsOutage(t *testing.T) {
	for _, p := range Profiles() {
		l := NewLease("g", 1, p.Lease, start)
		next := start.Add(p.Renew + 2*p.Heartbeat)
		if fence := l.FenceAt(p.FenceMargin); next > fence {
			t.Errorf("%s: the holder fences itself %v before a renewal can commit", p.Name, next.Sub(fence))
		}
	}
}
