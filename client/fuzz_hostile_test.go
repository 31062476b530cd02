// SPDX-License-Identifier: Apache-2.0

package client_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/hastate/hastate/client"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// rawCodec sends bytes as they are, and reads nothing.
type rawCodec struct{}

func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(v.([]byte))}, nil
}
func (rawCodec) Unmarshal(mem.BufferSlice, any) error { return nil }
func (rawCodec) Name() string                         { return "proto" }

var _ encoding.CodecV2 = rawCodec{}

// hostile answers every call with the same bytes, and then with a code.
type hostile struct {
	answer atomic.Pointer[[]byte]
	code   atomic.Uint32
	calls  atomic.Int64
}

func (h *hostile) handle(_ any, stream grpc.ServerStream) error {
	h.calls.Add(1)
	if err := stream.RecvMsg(nil); err != nil {
		return err
	}
	if answer := *h.answer.Load(); answer != nil {
		if err := stream.SendMsg(answer); err != nil {
			return err
		}
	}
	return status.Error(codeOf(h.code.Load()), "hostile")
}

// FuzzHostileNode lets a node answer reads with any bytes and any code: each call
// ends, in its time, and what it brings is what was said or an error.
func FuzzHostileNode(f *testing.F) {
	f.Add([]byte(nil), uint32(0))
	f.Add([]byte("\x0a\x00\x12\x05\x0a\x01g\x12\x00"), uint32(0))
	f.Add([]byte("\x12\x07\x0a\x01g\x12\x02n1"), uint32(5))
	f.Add([]byte("\xff\xff\xff\xff"), uint32(0))
	f.Add([]byte("\x12\x04\x12\x02id\x1a\x05again"), uint32(0)) // a page, with the same token for ever
	f.Add([]byte(nil), uint32(8))
	h := &hostile{}
	lis := bufconn.Listen(1 << 16)
	server := grpc.NewServer(grpc.ForceServerCodecV2(rawCodec{}), grpc.UnknownServiceHandler(h.handle))
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(lis)
	}()
	c, err := client.Dial(client.Options{
		Endpoints: []string{"passthrough:///node"}, AllowPlaintext: true, AttemptTimeout: time.Second,
		DialOptions: []grpc.DialOption{
			grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }),
		},
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() {
		if err := c.Close(); err != nil {
			f.Error(err)
		}
		server.Stop()
		<-served
	})
	f.Fuzz(func(t *testing.T, answer []byte, code uint32) {
		h.answer.Store(&answer)
		h.code.Store(code)
		// Codes that say "try again" are tried again until the time is up.
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		sessions := c.Sessions("g")
		session, err := sessions.Get(ctx, "s", pb.ReadLevel_READ_LEVEL_LOCAL)
		if err != nil && session != nil {
			t.Fatalf("%v and %v", session, err)
		}
		before := h.calls.Load()
		for _, err := range sessions.List(ctx, client.ListOptions{}) {
			if err != nil && strings.TrimSpace(err.Error()) == "" {
				t.Fatal("an error without a word")
			}
		}
		if codeOf(code) == codes.OK && h.calls.Load() > before+3 {
			t.Fatalf("a list of the same page was asked for %d times", h.calls.Load()-before)
		}
		if p, err := c.Primary(ctx, "g"); err == nil && !p.Serving() || err != nil && errors.Is(err, client.ErrNoPrimary) && p.Serving() {
			t.Fatalf("%+v and %v", p, err)
		}
	})
}

// codeOf is one of the codes of gRPC.
func codeOf(n uint32) codes.Code { return codes.Code(n % 17) }
