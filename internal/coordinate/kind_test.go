// SPDX-License-Identifier: Apache-2.0

package coordinate

import (
	"testing"

	pb "github.com/hastate/hastate/proto/hastate/v1"
)

func TestKindWord(t *testing.T) {
	if got := kindWord(pb.TransitionKind_TRANSITION_KIND_FORCED); got != "forced" {
		t.Errorf("kind %q", got)
	}
}
