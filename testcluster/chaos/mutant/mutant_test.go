// SPDX-License-Identifier: Apache-2.0

package mutant

import (
	"context"
	"flag"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// refute is off by default: it builds a program and runs a test for each mutant.
var refute = flag.Bool("refute", false, "build every mutant, and see its unit test fail")

// faults are the kinds that the chaos suite has.
var faults = strings.Fields(`kill-node kill-model kill-host kill-all pause-node pause-model pause-host restart-node crash-loop
	cut-leader cut-primary cut-uncounted cut-minority cut-oneway deaf-leader cut-partial flap slow-link lossy-link reset-storm
	late-answers-then-cut late-promote mute-leader lost-disk-behind model-late-status
	disk-stall power-cut power-cut-all power-cut-behind disk-full lost-disk torn-log flip-bits wall-clock clock-rate clock-rate-5
	member-add-remove member-replace demote-promote transfer-leader snapshot-install
	model-hang model-saturated model-prefill model-crash-on-promote model-slow-promote model-refuse model-ignore-promote model-stops-late model-lie
	switchover failover-force pause-resume pause-lost concurrent-switchover late-grant damaged-backup old-log`)

var checks = []string{Linearizability, OnePrimary, ExactlyOnce, Watch, Convergence, Promotion, History, FalseFailover, Durability, Availability}

// TestGuaranteesDoc: every test that the guarantees rest on exists, and every seeded bug
// is named there.
func TestGuaranteesDoc(t *testing.T) {
	doc, err := os.ReadFile(filepath.Join(root(t), "docs", "guarantees.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range List() {
		if m.Name != "clocks-5-percent-off" && !strings.Contains(string(doc), m.Name) {
			t.Errorf("docs/guarantees.md does not name %s", m.Name)
		}
	}
	exists := map[string]bool{}
	err = filepath.WalkDir(root(t), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		source, err := os.ReadFile(path)
		for _, found := range regexp.MustCompile(`(?m)^func (Test\w+)\(`).FindAllSubmatch(source, -1) {
			exists[string(found[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range regexp.MustCompile("`(Test\\w+)`").FindAllSubmatch(doc, -1) {
		if !exists[string(name[1])] {
			t.Errorf("docs/guarantees.md: there is no test %s", name[1])
		}
	}
}

func root(t *testing.T) string {
	t.Helper()
	dir, err := moduleRoot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// Every mutant still mutates, into something that parses.
func TestMutantsAreUpToDate(t *testing.T) {
	dir := root(t)
	for _, m := range List() {
		t.Run(m.Name, func(t *testing.T) {
			changed, err := m.apply(dir)
			if err != nil {
				t.Fatal(err)
			}
			if len(changed) == 0 && m.Assumption == "" {
				t.Error("it changes nothing and breaks no assumption")
			}
			for file, text := range changed {
				if _, err := parser.ParseFile(token.NewFileSet(), file, text, parser.SkipObjectResolution); err != nil {
					t.Errorf("the mutated file cannot be parsed: %v", err)
				}
				if strings.HasSuffix(file, "_test.go") {
					t.Errorf("%s is not part of the product", file)
				}
				before, err := os.ReadFile(filepath.Join(dir, file))
				if err != nil || string(before) == text {
					t.Errorf("%s: nothing changed, %v", file, err)
				}
			}
		})
	}
}

func TestTableIsComplete(t *testing.T) {
	names, guarantees := map[string]bool{}, map[string]bool{}
	for _, m := range List() {
		if names[m.Name] {
			t.Errorf("%s is there twice", m.Name)
		}
		names[m.Name], guarantees[m.Guarantee] = true, true
		if m.Name == "" || (len(m.Changes) == 0) != (m.Assumption != "") || m.How == "" || m.Limit < 10*time.Second || !strings.HasSuffix(m.What, ".") {
			t.Errorf("%s: something is missing: %+v", m.Name, m)
		}
		if !slices.Contains(checks, m.Check) {
			t.Errorf("%s: check %q is none", m.Name, m.Check)
		}
		for kind := range strings.SplitSeq(m.Faults, ",") {
			if !slices.Contains(faults, kind) {
				t.Errorf("%s: fault %q is none", m.Name, kind)
			}
		}
		if m.Assumption != "" {
			continue // hanode is as it should be: no test of it fails
		}
		if pkg, test, ok := strings.Cut(m.UnitTest, " "); !ok || !strings.HasPrefix(pkg, "./") || !strings.HasPrefix(test, "Test") {
			t.Errorf("%s: unit test %q has not the form './package TestName'", m.Name, m.UnitTest)
		}
	}
	if len(names) < 20 {
		t.Errorf("%d mutants", len(names))
	}
	for _, g := range []string{"G1", "G2", "G3", "G4", "G5", "G6", "G7", "G8", "G9", "G10"} {
		if !guarantees[g] {
			t.Errorf("no mutant breaks %s", g)
		}
	}
	if len(guarantees) != 10 {
		t.Errorf("guarantees %v", slices.Sorted(maps.Keys(guarantees)))
	}
}

func TestFind(t *testing.T) {
	if m, err := Find("no-lease-wait"); err != nil || m.Name != "no-lease-wait" {
		t.Errorf("%+v, %v", m, err)
	}
	if _, err := Find("no"); err == nil || !strings.Contains(err.Error(), "no-lease-wait") {
		t.Errorf("the error does not name the mutants: %v", err)
	}
}

// Code that has moved on is an error that says so.
func TestApplySaysWhatHasMoved(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a.go"), []byte("one two two"), 0o600); err != nil {
		t.Fatal(err)
	}
	change := func(old, text string) Change { return Change{File: "a.go", Old: old, New: text} }
	got, err := Mutant{Changes: []Change{change("one", "1"), change("1 two", "1 2")}}.apply(dir)
	if err != nil || got["a.go"] != "1 2 two" {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []Change{change("two", ""), change("three", ""), {File: "b.go", Old: "one"}} {
		_, err := Mutant{Name: "m", Changes: []Change{bad}}.apply(dir)
		if err == nil || !strings.Contains(err.Error(), "the code has moved on") {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}

// TestRefute shows that each mutant is a bug: it can be built, and a test of the
// repository that passes without it fails with it.
func TestRefute(t *testing.T) {
	if !*refute {
		t.Skip("takes minutes: run it with -refute -timeout 60m when a mutant, or what it mutates, has changed")
	}
	dir := root(t)
	for _, m := range List() {
		if m.Assumption != "" {
			continue
		}
		t.Run(m.Name, func(t *testing.T) {
			pkg, test, _ := strings.Cut(m.UnitTest, " ")
			args := []string{"test", "-count=1", "-timeout", "3m", "-run", "^" + test + "$", pkg}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
			defer cancel()
			if err := Build(ctx, m, filepath.Join(t.TempDir(), "hanode")); err != nil {
				t.Fatal(err)
			}
			if out, err := goCommand(ctx, dir, append(args, "-v")...); err != nil || !strings.Contains(out, "--- PASS: "+test) {
				t.Fatalf("%s fails without the mutant, or there is none: %v\n%s", test, err, out)
			}
			err := withOverlay(ctx, m, func(root, overlay string) error {
				out, err := goCommand(ctx, root, slices.Insert(slices.Clone(args), 1, "-overlay", overlay)...)
				switch {
				case err == nil:
					t.Errorf("%s passes with the mutant", test)
				case !strings.Contains(out, "--- FAIL: "+test) && !strings.Contains(out, "panic: "):
					t.Errorf("%s does not fail, it cannot be run: %v\n%s", test, err, out)
				default:
					t.Log(excerpt(out))
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
}

// excerpt is the first few lines of what a failed test printed.
func excerpt(out string) string {
	lines := strings.SplitN(out, "\n", 9)
	return strings.Join(lines[:min(len(lines), 8)], "\n")
}
