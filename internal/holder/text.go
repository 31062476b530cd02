// SPDX-License-Identifier: Apache-2.0

package holder

import (
	"strings"
	"unicode"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// cut makes a text what the log takes: short, UTF-8, without control characters.
func cut(s string) string { return cutTo(s, hastate.MaxTextBytes) }

func cutTo(s string, limit int) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, ""))
	if len(s) > limit {
		s = s[:limit]
	}
	return strings.ToValidUTF8(s, "")
}

// cutModel does the same with what a server says of its model.
func cutModel(m *pb.ModelRef) *pb.ModelRef {
	if m == nil {
		return nil
	}
	return &pb.ModelRef{
		Name:    cutTo(m.GetName(), hastate.MaxNameBytes),
		Version: cutTo(m.GetVersion(), hastate.MaxNameBytes),
		Digest:  cutTo(m.GetDigest(), hastate.MaxNameBytes),
	}
}
