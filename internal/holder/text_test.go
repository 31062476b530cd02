// SPDX-License-Identifier: Apache-2.0

package holder

import (
	"strings"
	"testing"
	"unicode"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// What a server or an error says must not keep a record out of the log, which
// refuses long texts and control characters.
func TestTextsFitTheLog(t *testing.T) {
	long := "CUDA error:\n\tat load\r\n" + strings.Repeat("\u00e4", hastate.MaxTextBytes)
	m := cutModel(&pb.ModelRef{Name: long, Version: long, Digest: long})
	for _, c := range []struct {
		text  string
		limit int
	}{
		{cut(long), hastate.MaxTextBytes},
		{m.GetName(), hastate.MaxNameBytes},
		{m.GetVersion(), hastate.MaxNameBytes},
		{m.GetDigest(), hastate.MaxTextBytes},
	} {
		if len(c.text) > c.limit || strings.ContainsFunc(c.text, unicode.IsControl) || strings.ToValidUTF8(c.text, "?") != c.text {
			t.Errorf("%d bytes, %d are allowed: %q", len(c.text), c.limit, c.text)
		}
		if !strings.HasPrefix(c.text, "CUDA error:  at load  ") {
			t.Errorf("it does not say what it was: %q", c.text)
		}
	}
	if cutModel(nil) != nil {
		t.Error("a server that names no model names one")
	}
}
