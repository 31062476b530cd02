// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/hastate/hastate/testcluster/chaos/record"
)

// leading is what a node logs when it begins to lead a term. It is the only sign
// of two leaders in one term (hashicorp/raft#695) as long as they agree.
var leading = regexp.MustCompile(`msg=leading node=(\S+) term=(\d+)`)

// leaders checks that no term had two leaders, by what the nodes have logged.
func leaders(dir string) ([]record.Violation, error) {
	paths, err := filepath.Glob(filepath.Join(dir, "*.log"))
	if err != nil {
		return nil, err
	}
	of := map[string]map[string]bool{}
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		lines := bufio.NewScanner(f)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			if m := leading.FindStringSubmatch(lines.Text()); m != nil {
				if of[m[2]] == nil {
					of[m[2]] = map[string]bool{}
				}
				of[m[2]][m[1]] = true
			}
		}
		_ = f.Close() // it was only read
		if err := lines.Err(); err != nil {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
	}
	var found []record.Violation
	if len(of) == 0 { // The line has another form, for example.
		found = append(found, record.Violation{Check: "proof", Text: "no node has logged that it leads: it cannot be told whether a term had two leaders"})
	}
	for _, term := range slices.Sorted(maps.Keys(of)) {
		if nodes := slices.Sorted(maps.Keys(of[term])); len(nodes) > 1 {
			found = append(found, record.Violation{Check: "one-leader", Text: fmt.Sprintf("term %s was led by %s", term, strings.Join(nodes, " and "))})
		}
	}
	return found, nil
}
