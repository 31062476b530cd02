// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"go.etcd.io/bbolt"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/internal/clock"
	"github.com/hastate/hastate/internal/logstore"
	"github.com/hastate/hastate/testcluster/chaos/model"
	"github.com/hastate/hastate/testcluster/chaos/record"
)

// preallocated is a bbolt file with far more room than it uses, as a node's log.
func preallocated(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "raft.db")
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{NoFreelistSync: true, NoSync: true, PageSize: 4096})
	if err != nil {
		t.Fatal(err)
	}
	for round := range 3 {
		err = errors.Join(err, db.Update(func(tx *bbolt.Tx) error {
			logs, err := tx.CreateBucketIfNotExists([]byte("logs"))
			for i := range 300 {
				err = errors.Join(err, logs.Put(fmt.Appendf(nil, "%08d", i), bytes.Repeat([]byte{byte(round + 1)}, 200)))
			}
			return err
		}))
	}
	if err := errors.Join(err, db.Close(), os.Truncate(path, 16<<20)); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestDamage_IsInWhatIsUsed: whatever is drawn, the used part of the file differs
// afterwards and the rest does not; the same draw does the same damage.
func TestDamage_IsInWhatIsUsed(t *testing.T) {
	path := preallocated(t)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	l, err := layoutOf(f)
	if err != nil {
		t.Fatal(err)
	}
	if l.page != 4096 || l.used >= 1<<20 || len(l.leaves) < 10 || len(l.live) <= len(l.leaves) {
		t.Fatalf("layout %+v", l)
	}
	run := func(how func(*os.File, *draw) (string, error), round int) (string, []byte) {
		t.Helper()
		what, err := how(f, newDraw(5, time.Second).round(round))
		damaged, err2 := os.ReadFile(path)
		if err := errors.Join(err, err2, os.WriteFile(path, whole, 0o600)); err != nil {
			t.Fatal(err)
		}
		return what, damaged
	}
	for name, how := range map[string]func(*os.File, *draw) (string, error){"tear": tear, "flip": flip} {
		seen := map[string]bool{}
		for round := range 40 {
			what, damaged := run(how, round+1)
			seen[what] = true
			if int64(len(damaged)) >= l.used {
				if bytes.Equal(damaged[:l.used], whole[:l.used]) {
					t.Errorf("%s: %s: the used part is as it was", name, what)
				}
				if !bytes.Equal(damaged[l.used:], whole[l.used:]) {
					t.Errorf("%s: %s: what is not used was touched", name, what)
				}
			}
			if again, same := run(how, round+1); again != what || !bytes.Equal(damaged, same) {
				t.Errorf("%s: %s, and with the same draw: %s", name, what, again)
			}
		}
		if len(seen) < 10 {
			t.Errorf("%s does only %d things", name, len(seen))
		}
	}
}

// TestDamage_OfSegments: a log of segments is refused after each damage that is drawn,
// and the same draw does the same.
func TestDamage_OfSegments(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "raft.seg")
	open := func() (*logstore.Store, error) {
		return logstore.Open(logstore.Options{Path: dir, Kind: logstore.Segments, SegmentBytes: 64 << 10})
	}
	store, err := open()
	if err != nil {
		t.Fatal(err)
	}
	for i := range uint64(100) {
		err = errors.Join(err, store.StoreLog(&raft.Log{Index: i + 1, Term: 1, Data: bytes.Repeat([]byte{byte(i)}, 200+int(i)*10)}))
	}
	if err := errors.Join(err, store.SetUint64([]byte("CurrentTerm"), 3), store.Close()); err != nil {
		t.Fatal(err)
	}
	path, err := newestSegment(dir)
	if err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	run := func(how harm, round int) string {
		t.Helper()
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		what, err := how(f, newDraw(5, time.Second).round(round))
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
		return what
	}
	for name, how := range map[string]harm{"tear": tearSegment, "flip": flipSegment} {
		seen := map[string]bool{}
		for round := range 40 {
			what := run(how, round+1)
			seen[what] = true
			damaged, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if store, err := open(); err == nil {
				_ = store.Close()
				t.Errorf("%s: %s: it was opened", name, what)
			}
			if err := os.WriteFile(path, whole, 0o600); err != nil {
				t.Fatal(err)
			}
			again := run(how, round+1)
			same, err := os.ReadFile(path)
			if err := errors.Join(err, os.WriteFile(path, whole, 0o600)); err != nil {
				t.Fatal(err)
			}
			if again != what || !bytes.Equal(damaged, same) {
				t.Errorf("%s: %s, and with the same draw: %s", name, what, again)
			}
		}
		if len(seen) < 10 {
			t.Errorf("%s does only %d things", name, len(seen))
		}
	}
	if store, err = open(); err != nil {
		t.Fatal(err)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestExits: only the reason that a fault gives excuses an end, and nothing excuses
// a crash.
func TestExits(t *testing.T) {
	const stall = "hanode: watchdog: a write to the log has hung for 5s: the process must end so that another node can lead; look at the disk"
	for _, c := range []struct {
		kind, tail string
		code       int
		want       bool
	}{
		{"disk-stall", stall, 1, true},
		{"disk-stall-host", "level=INFO msg=x\n" + stall, 1, true},
		{"disk-stall", stall, 2, false},
		{"disk-stall", "panic: boom\n" + stall, 1, false},
		{"disk-stall", stall + "\ngoroutine 7 [running]:", 1, false},
		{"disk-stall", "level=WARN msg=\"a write to the log has hung for 5s\"", 1, false},
		{"disk-full", "hanode: log store /x/raft.db stopped: store: no space left on device", 1, true},
		{"disk-full", stall, 1, false},
		{"lost-disk", "hanode: join: precondition failed: join at h1:1: node n1 is a voter and comes back without its data: remove it first", 1, true},
		{"torn-log", "hanode: precondition failed: the log file raft.db is damaged: no valid meta page", 1, true},
		{"flip-bits", "hanode: nothing known", 1, false},
		{"flip-bits", "fatal error: fault", 2, false},
		{"model-crash-on-promote", "", 3, true},
		{"model-crash-on-promote", "panic: boom", 2, false},
		{"model-crash-on-promote", "hanode: no", 1, false},
		{"model-crash-on-promote", "", 4, false},
		{"model-stops-late", "", 4, true},
		{"model-stops-late", "", 3, false},
	} {
		for _, f := range faults() {
			if f.kind == c.kind && f.exits(c.tail, c.code) != c.want {
				t.Errorf("%s: exit code %d, %q: excused is not %v", c.kind, c.code, c.tail, c.want)
			}
		}
	}
	for _, f := range faults() {
		if f.family == "network" || f.family == "clock" || f.family == "process" {
			if f.exits != nil {
				t.Errorf("%s excuses the end of a node", f.kind)
			}
		}
		for code, only := range map[int]string{model.CrashCode: "model-crash-on-promote", model.StopCode: "model-stops-late"} {
			if f.exits != nil && f.exits("", code) != (f.kind == only) {
				t.Errorf("%s: exit code %d is for %s", f.kind, code, only)
			}
		}
	}
}

// TestLegitimate: an operator's order may fail on a whole cluster because leadership
// moves, and for no other reason.
func TestLegitimate(t *testing.T) {
	unknown := fmt.Errorf("switchover 1: %w", &hastate.OutcomeUnknownError{Reason: "leadership moved"})
	refused := fmt.Errorf("switchover 2: %w", fmt.Errorf("%w: nobody is fit", hastate.ErrPrecondition))
	for _, c := range []struct {
		err  error
		want bool
	}{
		{errNobody, true},
		{unknown, true},
		{&hastate.NotLeaderError{LeaderID: "n1"}, true},
		{refused, false},
		{errors.Join(unknown, refused), false},
		{errors.Join(unknown, unknown), true},
		{fmt.Errorf("%w (5s): %w", errLate, unknown), false},
		{fmt.Errorf("ask: %w", fmt.Errorf("%w (5s): %w", errLate, unknown)), false},
		{context.DeadlineExceeded, false},
	} {
		if got := legitimate(c.err); got != c.want {
			t.Errorf("%v: legitimate is %v", c.err, got)
		}
	}
}

// TestJudgeOrder: only an order that stood alone is judged.
func TestJudgeOrder(t *testing.T) {
	order, other := fault{kind: "switchover", must: true}, fault{kind: "kill-node"}
	refused := fmt.Errorf("%w: nobody is fit", hastate.ErrPrecondition)
	for _, c := range []struct {
		picked []fault
		err    error
		want   int
	}{
		{[]fault{order}, refused, 1},
		{[]fault{order, other}, refused, 0},
		{[]fault{other}, refused, 0},
		{[]fault{order}, errNobody, 0},
	} {
		r := &run{o: options{progress: &bytes.Buffer{}}}
		r.judgeOrder(c.picked, 1, c.err)
		if got := len(r.report.Violations); got != c.want {
			t.Errorf("%d faults, %v: %d violations, want %d", len(c.picked), c.err, got, c.want)
		}
	}
}

// TestBreakAll: what was done in part only, or failed both when it was broken and
// after, is counted as not injected, once. An order's error is judged all the same.
func TestBreakAll(t *testing.T) {
	refused := fmt.Errorf("%w: nobody is fit", hastate.ErrPrecondition)
	of := func(kind string, inject, then error) fault {
		return fault{kind: kind, must: true, inject: func(context.Context, *stage, *draw) (broken, error) {
			return broken{what: kind, then: func(context.Context) error { return then }}, inject
		}}
	}
	for name, c := range map[string]struct {
		picked []fault
		want   []string
		found  int
	}{
		"done":        {[]fault{of("a", nil, nil)}, nil, 0},
		"in part":     {[]fault{of("a", nil, refused)}, []string{"a"}, 1},
		"not at all":  {[]fault{of("a", errNobody, nil)}, []string{"a"}, 0},
		"both fail":   {[]fault{of("a", errNobody, errNobody)}, []string{"a"}, 0},
		"one of two":  {[]fault{of("a", nil, nil), of("b", nil, refused)}, []string{"b"}, 0},
		"both of two": {[]fault{of("a", nil, errNobody), of("b", refused, nil)}, []string{"b", "a"}, 0},
	} {
		r := &run{stage: &stage{}, o: options{progress: io.Discard}}
		f := record.Fault{Round: 1}
		r.breakAll(t.Context(), newDraw(1, time.Second), c.picked, &f)
		if !slices.Equal(f.NotInjected, c.want) || r.report.NotInjected != len(c.want) || r.report.Found != c.found {
			t.Errorf("%s: %v, %d counted, %d violations", name, f.NotInjected, r.report.NotInjected, r.report.Found)
		}
	}
}

// TestAskWhile: errors do not end the questions, and one answer is enough; none is an
// error.
func TestAskWhile(t *testing.T) {
	first, last := errors.New("first"), errors.New("last")
	for name, c := range map[string]struct {
		answers []error
		want    error
	}{
		"answers after errors": {[]error{first, last, nil}, nil},
		"errors after answers": {[]error{nil, first, last}, nil},
		"no answer":            {[]error{first, first, last}, last},
	} {
		asked := 0
		err := askWhile(func() bool { return asked < len(c.answers) }, func() error { asked++; return c.answers[asked-1] })
		if !errors.Is(err, c.want) || asked != len(c.answers) {
			t.Errorf("%s: %v after %d questions", name, err, asked)
		}
	}
	if err := askWhile(func() bool { return false }, nil); err == nil {
		t.Error("nothing was asked, and nothing is said")
	}
}

// TestAskOnce: a refusal is an answer, a port where nobody listens is none.
func TestAskOnce(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }))
	web := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	if err := askOnce(t.Context(), web, server.URL); err != nil {
		t.Errorf("a refusal: %v", err)
	}
	server.Close()
	if err := askOnce(t.Context(), web, server.URL); err == nil {
		t.Error("nobody answered, and that is an answer")
	}
}

// TestDraw_RoundsAreApart: what was drawn in one round changes no other.
func TestDraw_RoundsAreApart(t *testing.T) {
	d := newDraw(3, time.Second)
	want := d.round(2).Uint64()
	d.Uint64()
	d.round(1).Uint64()
	if got := d.round(2).Uint64(); got != want {
		t.Error("the second round depends on what was drawn before")
	}
	if d.round(1).Uint64() == want || newDraw(4, time.Second).round(2).Uint64() == want {
		t.Error("rounds or seeds are alike")
	}
}

// TestJudgeDark: a group that is not served for long under one fault is a violation.
func TestJudgeDark(t *testing.T) {
	second := func(n int) clock.Instant { return clock.Instant(time.Duration(n) * time.Second) }
	answered := func(seconds ...int) (all []record.Request) {
		for _, s := range seconds {
			all = append(all, record.Request{Group: "g1", Return: second(s)})
		}
		return all
	}
	for _, c := range []struct {
		kind     string
		requests []record.Request
		found    int
	}{
		{"kill-host", answered(1, 3, 9, 10), 0},
		{"kill-host", answered(1, 3, 10), 1},
		{"kill-host", nil, 1},
		{"none", answered(2), 1},
		{"kill-host+cut-leader", nil, 0},
	} {
		r := &run{stage: &stage{groups: []string{"g1"}}, draw: newDraw(1, time.Second), o: options{progress: io.Discard}}
		r.judgeDark(record.Fault{Kind: c.kind, Began: second(0), Whole: second(10)}, c.requests)
		if r.report.Found != c.found {
			t.Errorf("%s with %d answers: %d violations, want %d", c.kind, len(c.requests), r.report.Found, c.found)
		}
	}
}

// TestAdd: a check that finds much does not keep another one out of the report.
func TestAdd(t *testing.T) {
	r := &run{o: options{progress: io.Discard}}
	for i := range 100 {
		r.violate("history", "number %d", i)
	}
	r.violate("one-primary", "two leases")
	if n := len(r.report.Violations); n != maxViolations+1 || r.report.Violations[n-1].Check != "one-primary" || r.report.Found != 101 {
		t.Errorf("%d of %d violations are told, the last one is %v", n, r.report.Found, r.report.Violations[n-1])
	}
}

// TestFinish: the end of a run judges how long groups were not served, and counts the
// time in which a failover without a cause would have been seen.
func TestFinish(t *testing.T) {
	now := clock.Boot{}.Now()
	r := &run{
		stage: &stage{groups: []string{"g1"}}, draw: newDraw(1, time.Second), o: options{progress: io.Discard}, leaks: leaks{},
		began: time.Now().Add(-time.Hour), lost: true, report: report{Rounds: 1, Faults: map[string]*kindReport{}},
	}
	r.history.faults = []record.Fault{{Round: 1, Kind: "kill-host", Began: now.Add(-time.Minute), Whole: now}}
	r.finish(t.Context())
	if len(r.report.Violations) != 1 || r.report.Violations[0].Check != "availability" {
		t.Errorf("found %v", r.report.Violations)
	}
	if got := r.report.Observed; got < 58.0/60 || got > 60.0/60 {
		t.Errorf("%v hours were observed", got)
	}
}

// TestRepeatable: an order is repeated only if nothing but a back-off is in its way,
// and the group is as it was.
func TestRepeatable(t *testing.T) {
	const before = "no instance can take over group \"g1\", nothing was changed: "
	const off = "it is stopping, or backs off after a failed promotion"
	refused := func(text string) error { return fmt.Errorf("%w: %s", hastate.ErrPrecondition, text) }
	for text, want := range map[string]bool{
		before + "n1: " + off: true,
		before + "n1: " + off + "; n2: it refuses: it backs off after a failed promotion": true,
		before + "n1: " + off + "; n2: it does not answer":                                false,
		before + "n1: it does not answer; n2: " + off:                                     false,
		before + "n1: " + off + ", says n2, which does not answer":                        false,
		"switchover of group \"g1\" failed: n1: " + off:                                   false,
		before + "no node with an instance in the group answers":                          false,
	} {
		if got := repeatable(refused(text), 5, 5); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
	err := refused(before + "n1: " + off)
	for name, got := range map[string]bool{
		"the epoch has moved":       repeatable(err, 5, 6),
		"the epochs are not known":  repeatable(err, 0, 0),
		"the new one is not known":  repeatable(err, 5, 0),
		"it is no refusal":          repeatable(errors.New(err.Error()), 5, 5),
		"its outcome is unknown":    repeatable(errors.Join(err, hastate.ErrOutcomeUnknown), 5, 5),
		"it has taken all its time": repeatable(fmt.Errorf("%w: %w", errLate, err), 5, 5),
	} {
		if got {
			t.Errorf("%s, and yet it is repeated", name)
		}
	}
}
