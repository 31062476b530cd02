// SPDX-License-Identifier: Apache-2.0

package instance_test

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/instance"
)

func TestConfig_Validate(t *testing.T) {
	for _, tc := range []struct {
		name string
		cfg  instance.Config
		want string // part of the error; empty: none
	}{
		{"grpc", instance.Config{Kind: "grpc", Target: "127.0.0.1:9001"}, ""},
		{"grpc localhost", instance.Config{Kind: "grpc", Target: "localhost:9001"}, ""},
		{"http", instance.Config{Kind: "http", Target: "http://127.0.0.1:8000/health"}, ""},
		{"https without port", instance.Config{Kind: "http", Target: "https://models.example/health"}, ""},
		{"tcp elsewhere", instance.Config{Kind: "tcp", Target: "10.0.0.1:80"}, ""},
		{"no kind", instance.Config{Target: "127.0.0.1:1"}, `kind "" is not known: use grpc, http or tcp`},
		{"no target", instance.Config{Kind: "tcp"}, "must be host:port"},
		{"no port", instance.Config{Kind: "grpc", Target: "127.0.0.1"}, "must be host:port"},
		{"bad port", instance.Config{Kind: "tcp", Target: "127.0.0.1:0"}, "between 1 and 65535"},
		{"not a URL", instance.Config{Kind: "http", Target: "127.0.0.1:8000"}, "must be a health URL"},
		{"other scheme", instance.Config{Kind: "http", Target: "ftp://a/b"}, "must be a health URL"},
		{"plaintext off loopback", instance.Config{Kind: "grpc", Target: "10.0.0.1:9001"}, "give transport credentials"},
		{"hooks of grpc", instance.Config{Kind: "grpc", Target: "127.0.0.1:1", Hooks: instance.Hooks{Promote: []string{"true"}}}, "leave the hooks out"},
		{"dial of tcp", instance.Config{Kind: "tcp", Target: "127.0.0.1:1", Dial: []grpc.DialOption{grpc.WithNoProxy()}}, "dial options are for kind grpc"},
		{"empty hook", instance.Config{Kind: "tcp", Target: "127.0.0.1:1", Hooks: instance.Hooks{Demote: []string{""}}}, "demote hook has an empty command"},
		{"interval", instance.Config{Kind: "tcp", Target: "127.0.0.1:1", Interval: time.Millisecond}, "interval 1ms must be between 10ms and 1m0s"},
		{"timeout", instance.Config{Kind: "tcp", Target: "127.0.0.1:1", Timeout: -1}, "timeout -1ns must be"},
		{"fail after", instance.Config{Kind: "tcp", Target: "127.0.0.1:1", FailAfter: -1}, "fail-after -1 must be"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := tc.cfg.Validate()
			if tc.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			wantIs(t, err, hastate.ErrInvalid)
			if !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("error is %q, want %q in it", err, tc.want)
			}
			_, oerr := instance.Open(tc.cfg)
			wantIs(t, oerr, hastate.ErrInvalid)
		})
	}
	_, err := instance.Open(instance.Config{Kind: "tcp", Target: "127.0.0.1:1", Hooks: instance.Hooks{Promote: []string{"/no/such/hook"}}})
	wantIs(t, err, hastate.ErrInvalid)
}
