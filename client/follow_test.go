// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"errors"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// TestEndsNow: a node whose clock for the deadline is a little ahead is no reason to go
// on at another one.
func TestEndsNow(t *testing.T) {
	late := status.Error(codes.DeadlineExceeded, "stream terminated by RST_STREAM")
	soon, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	far, cancelFar := context.WithTimeout(t.Context(), time.Hour)
	defer cancelFar()
	for name, c := range map[string]struct {
		ctx  context.Context
		err  error
		want bool
	}{
		"at the deadline":         {soon, late, true},
		"long before it":          {far, late, false},
		"without one":             {t.Context(), late, false},
		"another error":           {soon, status.Error(codes.Unavailable, "gone"), false},
		"an error without a code": {soon, errors.New("broken"), false},
	} {
		if got := endsNow(c.ctx, c.err); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
