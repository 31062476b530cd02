// SPDX-License-Identifier: Apache-2.0

package mutant

import (
	"fmt"
	"io"
	"strings"
)

// Result is how a run against one mutant ended.
type Result struct {
	// Mutant is its name.
	Mutant string `json:"mutant"`
	// Check that caught it, empty if none did. It need not be the expected one.
	Check string `json:"check,omitempty"`
	// Seconds until it was caught, or that were spent in vain.
	Seconds float64 `json:"seconds"`
	Caught  bool    `json:"caught"`
	Seed    uint64  `json:"seed"`
	// Detail is the violation, or why there is none.
	Detail string `json:"detail,omitempty"`
}

// WriteTable writes the results as a Markdown table, in their order.
func WriteTable(w io.Writer, results []Result) error {
	var b strings.Builder
	b.WriteString("| mutant | guarantee | what is removed | caught by | seconds | faults, seed |\n|---|---|---|---|---|---|\n")
	for _, r := range results {
		m, err := Find(r.Mutant)
		if err != nil {
			return err
		}
		by := r.Check
		if !r.Caught {
			by = "**not caught**"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %.0f | %s, %d |\n", cell(r.Mutant), cell(m.Guarantee), cell(m.What), cell(by), r.Seconds, cell(m.Faults), r.Seed)
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("write the table of mutants: %w", err)
	}
	return nil
}

// cell makes a text fit one cell of a table.
func cell(s string) string {
	return strings.NewReplacer("|", `\|`, "\n", " ").Replace(s)
}
