// SPDX-License-Identifier: Apache-2.0

package limit

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/hastate/hastate/bench/loop"
	"github.com/hastate/hastate/internal/proc"
)

// EchoVerb is the first argument with which this program becomes the echo server.
const EchoVerb = "echo"

const (
	echoMethod = "/bench.Echo/Echo"
	// echoTimeout bounds a call, and how long the server may take to start.
	echoTimeout = 10 * time.Second
)

// echoService answers with what it was sent: the least that a unary call can do.
var echoService = grpc.ServiceDesc{
	ServiceName: "bench.Echo", HandlerType: (*any)(nil),
	Methods: []grpc.MethodDesc{{MethodName: "Echo", Handler: func(_ any, _ context.Context, dec func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		in := &wrapperspb.BytesValue{}
		return in, dec(in)
	}}},
}

// EchoMain serves at an address until it fails or the process is killed.
func EchoMain(args []string) int {
	if len(args) != 1 {
		fmt.Fprintln(os.Stderr, "bench echo: one argument, the address")
		return 2
	}
	l, err := net.Listen("tcp", args[0])
	if err == nil {
		s := grpc.NewServer()
		s.RegisterService(&echoService, struct{}{})
		err = s.Serve(l)
	}
	fmt.Fprintln(os.Stderr, "bench echo:", err)
	return 1
}

// Echo is a process that answers unary calls. Its owner calls Stop.
type Echo struct {
	process *proc.Process
	address string
}

// StartEcho starts it.
func StartEcho(ctx context.Context) (*Echo, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	ports, err := proc.Ports(1)
	if err != nil {
		return nil, err
	}
	e := &Echo{address: fmt.Sprintf("127.0.0.1:%d", ports[0])}
	if e.process, err = proc.Start(proc.Spec{Name: "echo", Path: self, Args: []string{EchoVerb, e.address}}); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, echoTimeout)
	defer cancel()
	conn, err := e.dial()
	if err == nil {
		err = errors.Join(call(ctx, conn, "first", grpc.WaitForReady(true)), conn.Close())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("the echo server does not answer: %w\n%s", err, e.process.Tail()), e.Stop())
	}
	return e, nil
}

// Stop ends the server.
func (e *Echo) Stop() error { return e.process.Kill() }

func (e *Echo) dial() (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+e.address, grpc.WithTransportCredentials(insecure.NewCredentials()))
}

func call(ctx context.Context, conn *grpc.ClientConn, value string, opts ...grpc.CallOption) error {
	ctx, cancel := context.WithTimeout(ctx, echoTimeout)
	defer cancel()
	out := &wrapperspb.BytesValue{}
	if err := conn.Invoke(ctx, echoMethod, wrapperspb.Bytes([]byte(value)), out, opts...); err != nil {
		return err
	}
	if string(out.GetValue()) != value {
		return errors.New("the echo is another")
	}
	return nil
}

// Run lets clients call over so many connections.
func (e *Echo) Run(ctx context.Context, clients, conns, valueBytes int, duration time.Duration) (r loop.Result, err error) {
	value := strings.Repeat("v", valueBytes)
	all := make([]*grpc.ClientConn, min(clients, conns))
	for i := range all {
		if all[i], err = e.dial(); err != nil {
			return r, err
		}
		defer func() { err = errors.Join(err, all[i].Close()) }()
	}
	return loop.Run(ctx, clients, duration, func(ctx context.Context, i int) error { return call(ctx, all[i%len(all)], value) })
}
