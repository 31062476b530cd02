// SPDX-License-Identifier: Apache-2.0

//go:build process

package process

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// hanodePath and hactlPath are the programs under test, built once.
var hanodePath, hactlPath string

// mark is in the environment of every process that the tests start, and so in
// that of what those start themselves.
const mark = "HASTATE_PROCESS_TEST"

func TestMain(m *testing.M) { os.Exit(run(m)) } //nolint:forbidigo // a main like any other

func run(m *testing.M) int {
	// What a developer has set must not reach the programs under test.
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); strings.HasPrefix(name, "HANODE_") || strings.HasPrefix(name, "HACTL_") {
			_ = os.Unsetenv(name)
		}
	}
	dir, err := os.MkdirTemp("", "hastate-process-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	// Also the own environment: processes are looked for by it at the end.
	_ = os.Setenv(mark, dir)
	_ = os.Setenv("XDG_CONFIG_HOME", filepath.Join(dir, "config"))
	hanodePath, hactlPath = filepath.Join(dir, "hanode"), filepath.Join(dir, "hactl")
	build := exec.Command("go", "build", "-o", dir, "github.com/hastate/hastate/cmd/hanode", "github.com/hastate/hastate/cmd/hactl")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build the programs: %v\n%s", err, out)
		return 1
	}
	code := m.Run()
	if left := marked(mark + "=" + dir); len(left) > 0 {
		fmt.Fprintf(os.Stderr, "processes were left running:\n%s\n", strings.Join(left, "\n"))
		code = max(code, 1)
	}
	return code
}

// marked finds the running processes other than this one whose environment has
// an entry.
func marked(entry string) []string {
	dirs, _ := filepath.Glob("/proc/[0-9]*") // an empty list finds nothing
	var found []string
	for _, dir := range dirs {
		if filepath.Base(dir) == fmt.Sprint(os.Getpid()) {
			continue
		}
		env, err := os.ReadFile(filepath.Join(dir, "environ"))
		if err != nil || !strings.Contains("\x00"+string(env), "\x00"+entry+"\x00") {
			continue
		}
		line, _ := os.ReadFile(filepath.Join(dir, "cmdline")) // only for the text
		if len(line) == 0 {
			continue // a zombie
		}
		found = append(found, filepath.Base(dir)+" "+strings.ReplaceAll(string(line), "\x00", " "))
	}
	return found
}
