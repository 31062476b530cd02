// SPDX-License-Identifier: Apache-2.0

package fsm

import (
	"go/ast"
	"go/parser"
	"go/token"
	"strconv"
	"strings"
	"testing"
)

// pureFiles are the heart of the package: what they do is a function of the log.
var pureFiles = []string{
	"event.go", "state.go", "apply.go", "sessions.go", "leases.go", "groups.go", "instances.go",
	"models.go", "cluster.go", "dedup.go", "record.go", "validate.go",
}

func TestPureFilesAreDeterministic(t *testing.T) {
	allowed := map[string]bool{
		"bytes": true, "encoding/binary": true, "errors": true, "fmt": true, "math": true, "slices": true, "strings": true,
		"unicode": true, "unicode/utf8": true, "github.com/hastate/hastate": true,
		"github.com/hastate/hastate/proto/hastate/v1":   true,
		"google.golang.org/protobuf/proto":              true,
		"google.golang.org/protobuf/encoding/protowire": true,
	}
	for _, name := range pureFiles {
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, imp := range f.Imports {
			path, err := strconv.Unquote(imp.Path.Value)
			if err != nil || !allowed[path] {
				t.Errorf("%s imports %s", name, imp.Path.Value)
			}
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if g, isGo := n.(*ast.GoStmt); isGo {
				t.Errorf("%s starts a goroutine at %d", name, g.Pos())
			}
			return true
		})
		if strings.Contains(name, "_test") {
			t.Errorf("%s is not a source file", name)
		}
	}
}
