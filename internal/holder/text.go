// SPDX-License-Identifier: Apache-2.0

package holder

import (
	"strings"
	"unicode"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// cut makes a text one that the log takes: short, and without control characters
// (an error may have many lines). The log refuses others, for as long as they are
// proposed.
func cut(s string) string { return cutTo(s, hastate.MaxTextBytes) }

func cutTo(s string, limit int) string {
	if len(s) > limit {
		s = s[:limit]
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, ""))
}

// fit makes what a server says of its model something that the log takes.
func fit(m *pb.ModelRef) *pb.ModelRef {
	if m == nil {
		return nil
	}
	return &pb.ModelRef{
		Name: cutTo(m.GetName(), hastate.MaxNameBytes), Version: cutTo(m.GetVersion(), hastate.MaxNameBytes), Digest: cut(m.GetDigest()),
	}
}
