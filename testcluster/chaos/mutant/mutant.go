// SPDX-License-Identifier: Apache-2.0

package mutant

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// The checks that are to catch mutants, as in record.Violation.Check.
const (
	Linearizability = "linearizability"
	OnePrimary      = "one-primary"
	ExactlyOnce     = "exactly-once"
	Watch           = "watch"
	Convergence     = "convergence"
	Promotion       = "promotion"
	History         = "history"
	FalseFailover   = "false-failover"
	Durability      = "durability"
	Availability    = "availability"
)

// Mutant is one seeded bug.
type Mutant struct {
	// Name is what it is asked for by.
	Name string
	// What says in one sentence which guard is gone and what goes wrong.
	What string
	// Changes are made all or none. There are none if it is no guard that is gone but
	// an assumption.
	Changes []Change
	// Assumption is what the faults break of what hanode relies on, which no change of
	// it would show better; empty for all that have Changes.
	Assumption string
	// Guarantee that it breaks: "G1" to "G10".
	Guarantee string
	// Check that is expected to catch it first. Another may be faster.
	Check string
	// Faults under which it shows: kinds, with commas between.
	Faults string
	// Limit is the time within which a run with these faults must catch it.
	Limit time.Duration
	// How says which fault gives it away, and what is then seen.
	How string
	// UnitTest fails with it: the package and the name of the test. A broken
	// assumption has none.
	UnitTest string
}

// Change replaces a text of a file.
type Change struct {
	// File is relative to the root of the module.
	File string
	// Old must be in the file exactly once. New takes its place.
	Old, New string
}

// List returns all mutants, in the order of the guarantees that they break. It is
// the caller's to keep.
func List() []Mutant {
	return slices.Concat(leaseMutants, holderMutants, fencingMutants, durabilityMutants, damageMutants, readMutants, onceMutants, watchMutants, modelMutants, raftMutants)
}

// Find returns the mutant of a name.
func Find(name string) (Mutant, error) {
	var names []string
	for _, m := range List() {
		if m.Name == name {
			return m, nil
		}
		names = append(names, m.Name)
	}
	return Mutant{}, fmt.Errorf("mutant %q is not known: use one of %s", name, strings.Join(names, ", "))
}

// Build builds hanode with the mutant, and with what it has for the chaos suite,
// to the file out. The sources are those of the module that the working directory
// is in; they are not changed.
func Build(ctx context.Context, m Mutant, out string) error {
	out, err := filepath.Abs(out)
	if err != nil {
		return fmt.Errorf("build mutant %s: %w", m.Name, err)
	}
	return withOverlay(ctx, m, func(root, overlay string) error {
		_, err := goCommand(ctx, root, "build", "-overlay", overlay, "-tags", "chaos", "-o", out, "./cmd/hanode")
		return err
	})
}

// withOverlay calls fn with the root of the module and the overlay file of a
// mutant, which are gone when it returns.
func withOverlay(ctx context.Context, m Mutant, fn func(root, overlay string) error) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("build mutant %s: %w", m.Name, err)
		}
	}()
	root, err := moduleRoot(ctx)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "hastate-mutant-")
	if err != nil {
		return fmt.Errorf("make a scratch folder: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	overlay, err := writeOverlay(root, dir, m)
	if err != nil {
		return err
	}
	return fn(root, overlay)
}

// writeOverlay writes the changed files and the overlay that names them to dir.
func writeOverlay(root, dir string, m Mutant) (string, error) {
	changed, err := m.apply(root)
	if err != nil {
		return "", err
	}
	var overlay struct{ Replace map[string]string }
	overlay.Replace = map[string]string{}
	for file, text := range changed {
		copied := filepath.Join(dir, strings.ReplaceAll(file, "/", "+"))
		if err := os.WriteFile(copied, []byte(text), 0o600); err != nil {
			return "", fmt.Errorf("write the changed %s: %w", file, err)
		}
		overlay.Replace[filepath.Join(root, filepath.FromSlash(file))] = copied
	}
	b, err := json.Marshal(overlay)
	if err != nil {
		return "", fmt.Errorf("encode the overlay: %w", err)
	}
	path := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		return "", fmt.Errorf("write the overlay: %w", err)
	}
	return path, nil
}

// apply returns the text of each file that the mutant changes.
func (m Mutant) apply(root string) (map[string]string, error) {
	changed := map[string]string{}
	for _, c := range m.Changes {
		text, ok := changed[c.File]
		if !ok {
			b, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(c.File)))
			if err != nil {
				return nil, fmt.Errorf("mutant %s: %w: the code has moved on, bring the mutant up to date", m.Name, err)
			}
			text = string(b)
		}
		if n := strings.Count(text, c.Old); n != 1 {
			return nil, fmt.Errorf("mutant %s: its text is in %s %d times, not once: the code has moved on, bring the mutant up to date; it is\n%s", m.Name, c.File, n, c.Old)
		}
		changed[c.File] = strings.Replace(text, c.Old, c.New, 1)
	}
	return changed, nil
}

// moduleRoot is the folder of hastate's module, in which the working directory is.
func moduleRoot(ctx context.Context) (string, error) {
	out, err := goCommand(ctx, "", "list", "-m", "-f", "{{.Dir}}", "github.com/hastate/hastate")
	if err != nil {
		return "", fmt.Errorf("find the sources of hastate: %w: run it inside a checkout", err)
	}
	return strings.TrimSpace(out), nil
}

// goCommand runs the go command in dir until ctx ends. It returns what it printed
// to its standard output; what it printed otherwise is part of the error.
func goCommand(ctx context.Context, dir string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", args...) //nolint:gosec // args are ours
	cmd.Dir = dir
	cmd.WaitDelay = time.Second
	var out, other strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &other
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("go %s: %w: %s", args[0], err, strings.TrimSpace(other.String()))
	}
	return out.String(), nil
}
