// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"encoding/base64"

	"google.golang.org/protobuf/proto"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// pageBytes is about how much one page of a list carries; it leaves room for one
// more value below the bound on a message.
const pageBytes = 2 << 20

type sessionServer struct {
	pb.UnimplementedSessionServiceServer
	s *Services
}

// one applies a single operation.
func (x *sessionServer) one(ctx context.Context, id *pb.RequestId, op *pb.SessionOp) (*pb.SessionOpResult, error) {
	results, err := x.apply(ctx, id, []*pb.SessionOp{op})
	if err != nil {
		return nil, err
	}
	return results[0], nil
}

func (x *sessionServer) apply(ctx context.Context, id *pb.RequestId, ops []*pb.SessionOp) ([]*pb.SessionOpResult, error) {
	group, epoch, err := checkOps(ops)
	if err = first(err, checkRequestID(id)); err != nil {
		return nil, err
	}
	res, err := x.s.propose(ctx, sessionCommand(id, ops), group, epoch)
	if err != nil {
		return nil, err
	}
	return sessionResults(res, len(ops))
}

func sessionCommand(id *pb.RequestId, ops []*pb.SessionOp) *pb.Command {
	return &pb.Command{Request: id, Op: &pb.Command_Sessions{Sessions: &pb.SessionOps{Ops: ops}}}
}

// sessionResults checks that a result answers as many operations as were asked:
// a request id that was used for two different requests gets the first one's
// result.
func sessionResults(res *pb.Result, n int) ([]*pb.SessionOpResult, error) {
	if got := len(res.GetSessions()); got != n {
		return nil, invalid("the request id was used before for a request with %d operations: never use one for two requests", got)
	}
	return res.GetSessions(), nil
}

func (x *sessionServer) OpenClient(ctx context.Context, req *pb.OpenClientRequest) (*pb.OpenClientResponse, error) {
	if err := checkText("name", req.GetName(), hastate.MaxTextBytes); err != nil {
		return nil, err
	}
	res, err := x.s.propose(ctx, &pb.Command{Op: &pb.Command_OpenClient{OpenClient: &pb.OpenClient{Name: req.GetName()}}}, "", 0)
	if err != nil {
		return nil, err
	}
	return &pb.OpenClientResponse{
		Client: res.GetClient(), IdleMs: uint64(x.s.cfg.ClientIdle.Milliseconds()), Window: hastate.MaxClientWindow,
	}, nil
}

func (x *sessionServer) Put(ctx context.Context, req *pb.PutRequest) (*pb.PutResponse, error) {
	id := req.GetRequest()
	r, err := x.one(ctx, id, &pb.SessionOp{Op: &pb.SessionOp_Put{Put: req}})
	if err != nil {
		return nil, err
	}
	return &pb.PutResponse{Revision: r.GetRevision()}, nil
}

func (x *sessionServer) Append(ctx context.Context, req *pb.AppendRequest) (*pb.AppendResponse, error) {
	id := req.GetRequest()
	r, err := x.one(ctx, id, &pb.SessionOp{Op: &pb.SessionOp_Append{Append: req}})
	if err != nil {
		return nil, err
	}
	return &pb.AppendResponse{Revision: r.GetRevision(), EndOffset: r.GetEndOffset()}, nil
}

func (x *sessionServer) Delete(ctx context.Context, req *pb.DeleteRequest) (*pb.DeleteResponse, error) {
	id := req.GetRequest()
	r, err := x.one(ctx, id, &pb.SessionOp{Op: &pb.SessionOp_Delete{Delete: req}})
	if err != nil {
		return nil, err
	}
	return &pb.DeleteResponse{Deleted: r.GetDeleted(), Revision: r.GetRevision()}, nil
}

func (x *sessionServer) Touch(ctx context.Context, req *pb.TouchRequest) (*pb.TouchResponse, error) {
	id := req.GetRequest()
	r, err := x.one(ctx, id, &pb.SessionOp{Op: &pb.SessionOp_Touch{Touch: req}})
	if err != nil {
		return nil, err
	}
	return &pb.TouchResponse{Revision: r.GetRevision()}, nil
}

func (x *sessionServer) Batch(ctx context.Context, req *pb.BatchRequest) (*pb.BatchResponse, error) {
	results, err := x.apply(ctx, req.GetRequest(), req.GetOps())
	if err != nil {
		return nil, err
	}
	return &pb.BatchResponse{Results: results}, nil
}

func (x *sessionServer) Get(ctx context.Context, req *pb.GetRequest) (*pb.GetResponse, error) {
	group, err := groupName(req.GetGroup())
	if err = first(err, checkSessionID(req.GetId())); err != nil {
		return nil, err
	}
	local, err := x.s.read(ctx, req.GetLevel())
	if err != nil {
		return nil, err
	}
	session, ok, err := x.s.cfg.State.Session(group, req.GetId())
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, notFound("session %q of group %q", req.GetId(), group)
	}
	return &pb.GetResponse{Session: session, Staleness: x.s.staleness(local)}, nil
}

func (x *sessionServer) List(ctx context.Context, req *pb.ListRequest) (*pb.ListResponse, error) {
	group, err := groupName(req.GetGroup())
	if err = first(err, checkText("prefix", req.GetPrefix(), hastate.MaxSessionIDBytes)); err != nil {
		return nil, err
	}
	want := int(req.GetPageSize())
	switch {
	case want == 0:
		want = defaultPage
	case want > maxPage:
		return nil, &hastate.LimitError{Limit: "page_size", Maximum: maxPage, Actual: uint64(want)}
	}
	after, err := pageAfter(req.GetPageToken())
	if err != nil {
		return nil, err
	}
	if _, err := x.s.read(ctx, req.GetLevel()); err != nil {
		return nil, err
	}
	q := SessionQuery{Group: group, Prefix: req.GetPrefix(), After: after, Limit: want, KeysOnly: req.GetKeysOnly()}
	sessions, next, err := x.s.page(q)
	if err != nil {
		return nil, err
	}
	return &pb.ListResponse{Sessions: sessions, NextPageToken: pageToken(next)}, nil
}

// page reads up to q.Limit sessions, fewer if they are large. next is the After
// of the next page.
func (s *Services) page(q SessionQuery) (sessions []*pb.Session, next string, err error) {
	page, err := s.cfg.State.Sessions(q)
	if err != nil {
		return nil, "", err
	}
	size := 0
	for i, one := range page.Sessions {
		if size += proto.Size(one); size > pageBytes && i > 0 {
			return page.Sessions[:i], page.Sessions[i-1].GetId(), nil
		}
	}
	return page.Sessions, page.Next, nil
}

func pageToken(after string) string { return base64.RawURLEncoding.EncodeToString([]byte(after)) }

func pageAfter(token string) (string, error) {
	id, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil || len(id) > hastate.MaxSessionIDBytes {
		return "", invalid("page_token is not one that a list has returned")
	}
	return string(id), nil
}
