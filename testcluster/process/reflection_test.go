// SPDX-License-Identifier: Apache-2.0

//go:build process

package process

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
)

// TestAnyLanguage calls the API as a program does that has none of our code: by
// what the server says of itself.
func TestAnyLanguage(t *testing.T) {
	c := newCluster(t, options{models: true})
	c.serves()
	t.Run("reflection", func(t *testing.T) { dynamicCall(t, c.as(t)) })
	t.Run("health", func(t *testing.T) { healthOfAll(t, c.as(t)) })
}

// reflector asks one node about its services.
type reflector struct {
	t      *testing.T
	stream grpc.BidiStreamingClient[reflectionpb.ServerReflectionRequest, reflectionpb.ServerReflectionResponse]
}

func (r *reflector) ask(req *reflectionpb.ServerReflectionRequest) *reflectionpb.ServerReflectionResponse {
	r.t.Helper()
	if err := r.stream.Send(req); err != nil {
		r.t.Fatal(err)
	}
	resp, err := r.stream.Recv()
	if err != nil {
		r.t.Fatal(err)
	}
	if e := resp.GetErrorResponse(); e != nil {
		r.t.Fatalf("%v: %s", req, e.GetErrorMessage())
	}
	return resp
}

// files are the descriptors of a file and of all that it imports.
func (r *reflector) files(symbol string) *descriptorpb.FileDescriptorSet {
	r.t.Helper()
	set, seen := &descriptorpb.FileDescriptorSet{}, map[string]bool{}
	var add func(req *reflectionpb.ServerReflectionRequest)
	add = func(req *reflectionpb.ServerReflectionRequest) {
		for _, raw := range r.ask(req).GetFileDescriptorResponse().GetFileDescriptorProto() {
			f := &descriptorpb.FileDescriptorProto{}
			if err := proto.Unmarshal(raw, f); err != nil {
				r.t.Fatal(err)
			}
			if seen[f.GetName()] {
				continue
			}
			seen[f.GetName()] = true
			set.File = append(set.File, f)
			for _, name := range f.GetDependency() {
				if !seen[name] {
					add(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_FileByFilename{FileByFilename: name}})
				}
			}
		}
	}
	add(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: symbol}})
	return set
}

func dynamicCall(t *testing.T, c *cluster) {
	conn := c.hosts[0].conn
	stream, err := reflectionpb.NewServerReflectionClient(conn).ServerReflectionInfo(within(t))
	if err != nil {
		t.Fatal(err)
	}
	r := &reflector{t, stream}
	var services []string
	for _, s := range r.ask(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}}).GetListServicesResponse().GetService() {
		services = append(services, s.GetName())
	}
	for _, want := range []string{"hastate.v1.GroupService", "hastate.v1.SessionService", "hastate.v1.ModelService", "hastate.v1.ClusterService", "grpc.health.v1.Health"} {
		if !slices.Contains(services, want) {
			t.Errorf("%s is not among %v", want, services)
		}
	}
	files, err := protodesc.NewFiles(r.files("hastate.v1.GroupService"))
	if err != nil {
		t.Fatal(err)
	}
	found, err := files.FindDescriptorByName("hastate.v1.GroupService.GetPrimary")
	if err != nil {
		t.Fatal(err)
	}
	method, ok := found.(protoreflect.MethodDescriptor)
	if !ok {
		t.Fatalf("it is a %T", found)
	}
	want, epoch := c.serves()
	reply := dynamicpb.NewMessage(method.Output())
	if err := conn.Invoke(within(t), "/hastate.v1.GroupService/GetPrimary", dynamicpb.NewMessage(method.Input()), reply); err != nil {
		t.Fatal(err)
	}
	primary := reply.Get(method.Output().Fields().ByName("primary")).Message()
	fields := primary.Descriptor().Fields()
	if id := primary.Get(fields.ByName("node_id")).String(); id != want.id {
		t.Errorf("the primary is %q, not %s", id, want.id)
	}
	if got := primary.Get(fields.ByName("epoch")).Uint(); got != epoch {
		t.Errorf("the epoch is %d, not %d", got, epoch)
	}
	// An error carries a message that can be understood without its details.
	request := dynamicpb.NewMessage(method.Input())
	request.Set(method.Input().Fields().ByName("group"), protoreflect.ValueOfString("nosuch"))
	err = conn.Invoke(within(t), "/hastate.v1.GroupService/GetPrimary", request, reply)
	if status.Code(err) != codes.NotFound {
		t.Errorf("a group that is not there: %v", err)
	}
}

// healthOfAll: the standard health check finds the primary, before and after a
// switchover, and never two at a time.
func healthOfAll(t *testing.T, c *cluster) {
	primary := func(name string) (up []string) {
		for _, h := range c.hosts {
			if serving(t, h, name) {
				up = append(up, h.id)
			}
		}
		return up
	}
	from, epoch := c.serves()
	for _, name := range []string{"hastate.primary", "hastate.primary/default"} {
		eventually(t, name, func() error {
			if got := primary(name); len(got) != 1 || got[0] != from.id {
				return fmt.Errorf("%v, not %s", got, from.id)
			}
			return nil
		})
	}
	for _, h := range c.hosts {
		for _, name := range []string{"", "hastate.ready"} {
			if !serving(t, h, name) {
				t.Errorf("%s: %q is not serving", h.id, name)
			}
		}
	}
	_, err := healthpb.NewHealthClient(from.conn).Check(within(t), &healthpb.HealthCheckRequest{Service: "nosuch"})
	if status.Code(err) != codes.NotFound {
		t.Errorf("a name that is not known: %v", err)
	}
	watch, err := healthpb.NewHealthClient(from.conn).Watch(within(t), &healthpb.HealthCheckRequest{Service: "hastate.primary"})
	if err != nil {
		t.Fatal(err)
	}
	if first, err := watch.Recv(); err != nil || first.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		t.Fatalf("%v, %v", first, err)
	}
	hactl{t, []string{"--endpoints", from.grpc}}.ok("switchover")
	if next, err := watch.Recv(); err != nil || next.GetStatus() != healthpb.HealthCheckResponse_NOT_SERVING {
		t.Fatalf("%v, %v", next, err)
	}
	to, _ := c.serving(epoch)
	eventually(t, "the health of "+to.id, func() error {
		if got := primary("hastate.primary"); len(got) != 1 || got[0] != to.id {
			return fmt.Errorf("%v, not %s", got, to.id)
		}
		return nil
	})
	// A node that comes back to life must not be taken for the primary any more.
	epoch = c.transitionOf(to)
	freeze(t, to.node)
	c.moved(to, epoch)
	thaw(t, to.node)
	if serving(t, to, "hastate.primary") {
		t.Errorf("%s still says that it is the primary", to.id)
	}
}

func (c *cluster) transitionOf(h *host) uint64 {
	c.t.Helper()
	now, epoch := c.serves()
	if now != h {
		c.t.Fatalf("%s is the primary, not %s", now.id, h.id)
	}
	return epoch
}

// serving asks a node for the health of a name.
func serving(t *testing.T, h *host, name string) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	reply, err := healthpb.NewHealthClient(h.conn).Check(ctx, &healthpb.HealthCheckRequest{Service: name})
	if err != nil && !errors.Is(err, context.DeadlineExceeded) && status.Code(err) != codes.NotFound {
		t.Fatalf("health of %s: %v", h.id, err)
	}
	return reply.GetStatus() == healthpb.HealthCheckResponse_SERVING
}
