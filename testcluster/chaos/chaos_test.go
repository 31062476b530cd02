// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/hastate/hastate/internal/clock"
	pb "github.com/hastate/hastate/proto/hastate/v1"
	"github.com/hastate/hastate/testcluster/chaos/check"
	"github.com/hastate/hastate/testcluster/chaos/mutant"
	"github.com/hastate/hastate/testcluster/chaos/record"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestChosen: names are kinds, families and beginnings of kinds.
func TestChosen(t *testing.T) {
	kinds := func(names string, root bool) string {
		t.Helper()
		found, _, err := chosen(names, root)
		if err != nil {
			t.Fatalf("%s: %v", names, err)
		}
		var all []string
		for _, f := range found {
			all = append(all, f.kind)
		}
		return strings.Join(all, " ")
	}
	for names, want := range map[string]string{
		"none": "", "switchover": "switchover", "power-cut": "power-cut-all power-cut-behind power-cut-host", "clock": "wall-clock clock-rate clock-rate-5",
		"kill-node,torn-log": "kill-node torn-log",
	} {
		if got := kinds(names, true); got != want {
			t.Errorf("%s chooses %q, want %q", names, got, want)
		}
	}
	if got := kinds("all", true); strings.Contains(got, "clock-rate-5") {
		t.Errorf("all breaks an assumption: %s", got)
	}
	if got := kinds("disk", false); strings.Contains(got, "power-cut") {
		t.Errorf("without root there are no power cuts: %s", got)
	}
	for _, bad := range []string{"", "nothing", "kill-node,", "power-cut"} {
		if _, _, err := chosen(bad, false); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

// TestFaults_AreKnownToMutants: each mutant is hunted with faults that exist.
func TestFaults_AreKnownToMutants(t *testing.T) {
	for _, m := range mutant.List() {
		if _, _, err := chosen(m.Faults, true); err != nil {
			t.Errorf("mutant %s: %v", m.Name, err)
		}
	}
}

func TestFaults_AreDescribed(t *testing.T) {
	seen := map[string]bool{}
	for _, f := range faults() {
		if f.kind == "" || f.family == "" || f.what == "" || f.inject == nil || seen[f.kind] {
			t.Errorf("fault %+v", f.kind)
		}
		seen[f.kind] = true
	}
}

// TestDraw_Repeats: the same seed draws the same faults.
func TestDraw_Repeats(t *testing.T) {
	kinds := func(seed uint64) string {
		d := newDraw(seed, time.Second)
		from, _, err := chosen("all", true)
		if err != nil {
			t.Fatal(err)
		}
		var all []string
		for range 400 {
			for _, f := range d.pick(from, true) {
				all = append(all, f.kind)
			}
		}
		return strings.Join(all, " ")
	}
	if first, second := kinds(7), kinds(7); first != second {
		t.Error("one seed, two runs")
	}
	if kinds(7) == kinds(8) {
		t.Error("two seeds, one run")
	}
	for _, f := range faults() {
		if f.weight > 0 && !strings.Contains(kinds(7)+kinds(8)+kinds(9), f.kind) {
			t.Errorf("%s was not drawn in 1,200 rounds", f.kind)
		}
	}
}

func TestGaps(t *testing.T) {
	ms := func(n int) clock.Instant { return clock.Instant(n) * clock.Instant(time.Millisecond) }
	answers := func(group string, at ...int) (all []record.Request) {
		for _, n := range at {
			all = append(all, record.Request{Group: group, Return: ms(n)})
		}
		return all
	}
	requests := append(answers("a", 10, 1000, 1020, 1040, 1300, 1990), answers("b", 1500)...)
	requests = append(requests, record.Request{Group: "a", Return: ms(1700), Error: "503"})
	longest, sum := gaps(requests, "a", ms(1000), ms(2000))
	if longest != 690*time.Millisecond || sum != 950*time.Millisecond {
		t.Errorf("longest %v, sum %v", longest, sum)
	}
	if longest, sum = gaps(nil, "a", ms(1000), ms(2000)); longest != time.Second || sum != time.Second {
		t.Errorf("without an answer: longest %v, sum %v", longest, sum)
	}
}

// TestObserved: what a fault that may move a group's primary took is not watched.
func TestObserved(t *testing.T) {
	at := func(s int) clock.Instant { return clock.Instant(time.Duration(s) * time.Second) }
	faults := []record.Fault{
		{Began: at(10), Whole: at(20), Harmless: true},
		{Began: at(30), Whole: at(40)},
		{Began: at(50), Whole: at(70), Spared: []string{"b"}},
	}
	if got, want := observed(faults, []string{"a", "b"}, at(0), at(100)), 80*time.Second; got != want { // a: 70 s, b: 90 s
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestSpared: an aimed fault spares what it does not take away, another one what it
// says itself.
func TestSpared(t *testing.T) {
	r := &run{stage: &stage{groups: []string{"a", "b", "c"}}}
	for name, c := range map[string]struct {
		f    fault
		b    broken
		want []string
	}{
		"aimed":         {fault{aimed: true}, broken{lost: []string{"b"}}, []string{"a", "c"}},
		"nothing taken": {fault{aimed: true}, broken{}, nil},
		"of one host":   {fault{}, broken{lost: []string{"b"}, spared: []string{"c"}}, []string{"c"}},
		"of all":        {fault{}, broken{lost: []string{"b"}}, nil},
	} {
		if got := r.spared(c.f, c.b); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

// TestHistory_Keep: a transition that was changed after its end is told, though only
// the newest form counts.
func TestHistory_Keep(t *testing.T) {
	r := &run{history: history{transitions: map[string]map[uint64][]*pb.Transition{}}}
	read := func(outcome pb.TransitionOutcome, reason string) {
		r.history.keep([]*pb.Transition{{Group: "a", Number: 1, Epoch: 5, To: "n1", Kind: pb.TransitionKind_TRANSITION_KIND_FAILOVER, Outcome: outcome, Reason: reason}})
	}
	serving := pb.TransitionOutcome_TRANSITION_OUTCOME_SERVING
	read(pb.TransitionOutcome_TRANSITION_OUTCOME_PENDING, "lease expired")
	read(serving, "lease expired")
	read(serving, "lease expired")
	if all := r.allTransitions(); len(all) != 1 || all[0].GetOutcome() != serving {
		t.Errorf("%v", all)
	}
	twice := func() int {
		n := 0
		for _, v := range check.History(slices.Concat(r.formsOfTransitions()...), nil, check.HistoryOptions{}) {
			if strings.Contains(v.Text, "told in two ways") {
				n++
			}
		}
		return n
	}
	if n := twice(); n != 0 {
		t.Errorf("%d told in two ways", n)
	}
	read(serving, "another reason")
	if n := twice(); n != 1 {
		t.Errorf("%d told in two ways, not 1", n)
	}
}

// TestAddRound: what could not be done is counted with its kind.
func TestAddRound(t *testing.T) {
	r := report{Faults: map[string]*kindReport{}}
	r.addRound(record.Fault{Kind: "x+y", NotInjected: []string{"y"}}, nil, nil, nil, 0)
	if x, y := r.Faults["x"], r.Faults["y"]; x.NotInjected != 0 || y.NotInjected != 1 || y.Count != 1 {
		t.Errorf("x %+v, y %+v", x, y)
	}
}

func TestMovedIn(t *testing.T) {
	all := []*pb.Transition{{Group: "a", Epoch: 5}, {Group: "a", Epoch: 9}, {Group: "b", Epoch: 9}, {Group: "a", Epoch: 12}}
	got := movedIn(all, map[string]uint64{"a": 5, "b": 9}, map[string]uint64{"a": 9, "b": 9})
	if len(got) != 1 || got[0].GetEpoch() != 9 || got[0].GetGroup() != "a" {
		t.Errorf("%v", got)
	}
	if got := movedIn(all, map[string]uint64{"a": 5, "b": 9}, nil); len(got) != 2 {
		t.Errorf("the last fault has no end: %v", got)
	}
}

// TestLeaks_Grown: what grows is told from what warms up or goes up and down.
func TestLeaks_Grown(t *testing.T) {
	life := func(of func(i int) float64) leaks {
		var all []sample
		for i := range 30 {
			all = append(all, sample{at: time.Unix(int64(i*60), 0), rss: 64 << 20, goroutines: of(i), files: 20, disk: 1 << 20})
		}
		return leaks{"n1": all}
	}
	for name, c := range map[string]struct {
		of    func(i int) float64
		grows bool
	}{
		"flat":         {func(int) float64 { return 100 }, false},
		"warms up":     {func(i int) float64 { return min(100, float64(10*i)) }, false},
		"up and down":  {func(i int) float64 { return 100 + float64(i%5)*100 }, false},
		"grows slowly": {func(i int) float64 { return 100 + 10*float64(i) }, true},
	} {
		if got := life(c.of).grown(); (len(got) > 0) != c.grows {
			t.Errorf("%s: %v", name, got)
		}
	}
	short := leaks{"n1": life(func(i int) float64 { return float64(1000 * i) })["n1"][:5]}
	if got := short.grown(); len(got) > 0 {
		t.Errorf("a short life tells nothing: %v", got)
	}
}

func TestParse(t *testing.T) {
	for _, bad := range []string{"-nodes 4", "-groups 0", "-duration 0s", "-duration 1000h", "-profile slow", "-faults no-such", "-chapter 0", "more", "-until bogus", "-faults none,kill-node"} {
		if _, err := parse(append(strings.Fields(bad), "-root=false")); err == nil {
			t.Errorf("%s was taken", bad)
		}
	}
	if o, err := parse(strings.Fields("-root=false -seed 7 -faults kill-node,switchover -nodes 5")); err != nil || o.seed != 7 || o.nodes != 5 {
		t.Errorf("%+v, %v", o, err)
	}
	for args, disks := range map[string]bool{"": true, "-disks=false": false, "-faults none": false, "-faults none -disks": true} {
		if o, err := parse(append(strings.Fields(args), "-root=false")); err != nil || o.disks != disks {
			t.Errorf("%q: disks %v, %v", args, o.disks, err)
		}
	}
}

// TestDocs_Report: what a run ends with is explained, field by field.
func TestDocs_Report(t *testing.T) {
	doc, err := os.ReadFile("../../docs/chaos.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, of := range []reflect.Type{reflect.TypeFor[report](), reflect.TypeFor[kindReport](), reflect.TypeFor[quantiles]()} {
		for i := range of.NumField() {
			name, _, _ := strings.Cut(of.Field(i).Tag.Get("json"), ",")
			if name != "" && !strings.Contains(string(doc), "`"+name+"`") {
				t.Errorf("docs/chaos.md does not tell of %s", name)
			}
		}
	}
}

// TestDocs_Checks: every check is explained.
func TestDocs_Checks(t *testing.T) {
	doc, err := os.ReadFile("../../docs/chaos.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range checks {
		if !strings.Contains(string(doc), "| `"+name+"` |") {
			t.Errorf("docs/chaos.md does not tell of the check %s", name)
		}
	}
}

// TestJudge: a run that did nothing, or not all, is no success.
func TestJudge(t *testing.T) {
	failed := errors.New("no ip")
	for _, c := range []struct {
		violations  int
		interrupted bool
		err         error
		result      string
		code        int
	}{
		{0, false, nil, "ok", exitOK},
		{1, false, nil, "violation", exitViolation},
		{1, true, failed, "violation", exitViolation},
		{0, true, failed, "interrupted", exitBroken},
		{0, true, nil, "interrupted", exitBroken},
		{0, false, failed, "broken", exitBroken},
	} {
		r := report{Violations: make([]record.Violation, c.violations)}
		if code := r.judge(c.interrupted, c.err); code != c.code || r.Result != c.result {
			t.Errorf("%+v: %d, %s", c, code, r.Result)
		}
	}
}

// TestVerdict: only a violation is a catch.
func TestVerdict(t *testing.T) {
	line := `{"seed":7,"duration_s":9,"violations":[{"check":"one-primary","text":"two\nmore"}]}` + "\n"
	count := []string{"watch", "one-primary"}
	r, err := verdict(mutant.Result{}, []byte("noise\n"+line), exitViolation, count)
	if err != nil || !r.Caught || r.Check != "one-primary" || r.Seconds != 9 || r.Detail != "two" {
		t.Errorf("%+v, %v", r, err)
	}
	if r, err := verdict(mutant.Result{}, []byte(line), exitViolation, []string{"watch"}); err != nil || r.Caught {
		t.Errorf("a check that does not count: %+v, %v", r, err)
	}
	if r, err := verdict(mutant.Result{}, []byte(`{"seed":7,"violations":[]}`+"\n"), exitOK, count); err != nil || r.Caught {
		t.Errorf("%+v, %v", r, err)
	}
	for _, code := range []int{exitBroken, exitUsage, exitViolation, -1} {
		if r, err := verdict(mutant.Result{}, []byte("no report"), code, count); err == nil || r.Caught {
			t.Errorf("code %d without a report: %+v, %v", code, r, err)
		}
	}
}

// TestLeaders: two nodes that led one term are found in the logs.
func TestLeaders(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, lines ...string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(strings.Join(lines, "\n")), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("n1.0.log", "other")
	if found, err := leaders(dir); err != nil || len(found) != 1 || found[0].Check != "proof" {
		t.Errorf("nothing was read, and it passes: %v, %v", found, err)
	}
	line := func(node, term string) string { return `time=x level=INFO msg=leading node=` + node + ` term=` + term }
	write("n1.1.log", line("n1", "2"), "other", line("n1", "4"))
	write("n2.1.log", line("n2", "3"))
	if found, err := leaders(dir); err != nil || len(found) != 0 {
		t.Errorf("%v, %v", found, err)
	}
	write("n2.2.log", line("n2", "4"))
	if found, err := leaders(dir); err != nil || len(found) != 1 || found[0].Text != "term 4 was led by n1 and n2" {
		t.Errorf("%v, %v", found, err)
	}
}
