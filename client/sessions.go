// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"fmt"
	"iter"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// Sessions reads and writes the sessions of one group.
//
// Writes go over one stream that all Sessions of a Client share. A write that was
// not answered, because a node hung, stopped, or lost its leader, is sent again
// with the same number and is applied once. A write ends with
//
//   - nil: it was applied, once;
//   - an OutcomeUnknownError: the deadline passed, or the cluster forgot this
//     writer, after it may have been applied. Read back;
//   - any other error: it was not applied.
//
// A context without a deadline gets DefaultTimeout.
type Sessions struct {
	c     *Client
	group string
	err   error // of the group's name, returned by every call
}

// Sessions returns the sessions of a group; an empty name is the default group.
func (c *Client) Sessions(group string) *Sessions {
	group, err := checkGroup(group)
	return &Sessions{c: c, group: group, err: err}
}

// Put writes a whole session, see pb.PutRequest. The group may be left out.
func (s *Sessions) Put(ctx context.Context, req *pb.PutRequest) (*pb.SessionOpResult, error) {
	return s.one(ctx, "put", &pb.SessionOp{Op: &pb.SessionOp_Put{Put: req}})
}

// Append adds to the stream of a session at an offset, see pb.AppendRequest.
func (s *Sessions) Append(ctx context.Context, req *pb.AppendRequest) (*pb.SessionOpResult, error) {
	return s.one(ctx, "append", &pb.SessionOp{Op: &pb.SessionOp_Append{Append: req}})
}

// Delete removes a session; one that is not there is no error.
func (s *Sessions) Delete(ctx context.Context, req *pb.DeleteRequest) (*pb.SessionOpResult, error) {
	return s.one(ctx, "delete", &pb.SessionOp{Op: &pb.SessionOp_Delete{Delete: req}})
}

// Touch restarts the time to live of a session.
func (s *Sessions) Touch(ctx context.Context, req *pb.TouchRequest) (*pb.SessionOpResult, error) {
	return s.one(ctx, "touch", &pb.SessionOp{Op: &pb.SessionOp_Touch{Touch: req}})
}

func (s *Sessions) one(ctx context.Context, verb string, op *pb.SessionOp) (*pb.SessionOpResult, error) {
	results, err := s.Batch(ctx, op)
	if err != nil {
		return nil, fmt.Errorf("%s session: %w", verb, err)
	}
	return results[0], nil
}

// Batch does several operations atomically: all or none. The results are in the
// order of the operations.
func (s *Sessions) Batch(ctx context.Context, ops ...*pb.SessionOp) ([]*pb.SessionOpResult, error) {
	pending, err := s.Go(ctx, ops...)
	if err != nil {
		return nil, err
	}
	return pending.Wait()
}

// Go begins a Batch and returns without waiting for its answer, so that many can
// be under way. It waits while the window of unanswered writes is full. Operations
// that are begun one after the other are sent in that order, but when a node
// fails a later one may be applied first: an Append then ends with a
// ConflictError and can be done again.
//
// ctx bounds the whole operation; the resources of an operation that nobody waits
// for are freed at its end.
func (s *Sessions) Go(ctx context.Context, ops ...*pb.SessionOp) (*Pending, error) {
	if s.err != nil {
		return nil, s.err
	}
	ops, size, err := s.checkOps(ops)
	if err != nil {
		return nil, err
	}
	return s.c.writer.submit(ctx, ops, size)
}

// checkOps checks operations and copies them with the group filled in: the caller
// may change its own before they are sent again.
func (s *Sessions) checkOps(ops []*pb.SessionOp) ([]*pb.SessionOp, int, error) {
	if len(ops) == 0 {
		return nil, 0, fmt.Errorf("%w: no operation", hastate.ErrInvalid)
	}
	if len(ops) > hastate.MaxBatchOps {
		return nil, 0, &hastate.LimitError{Limit: "batch operations", Maximum: hastate.MaxBatchOps, Actual: uint64(len(ops))}
	}
	size := 0
	copies := make([]*pb.SessionOp, len(ops))
	for i, op := range ops {
		copies[i] = proto.CloneOf(op)
		if err := s.checkOp(copies[i]); err != nil {
			return nil, 0, err
		}
		size += proto.Size(copies[i])
	}
	if size > hastate.MaxEntryBytes {
		return nil, 0, &hastate.LimitError{Limit: "batch bytes", Maximum: hastate.MaxEntryBytes, Actual: uint64(size)}
	}
	return copies, size, nil
}

func (s *Sessions) checkOp(op *pb.SessionOp) error {
	var id string
	var group *string
	var request *pb.RequestId
	switch o := op.GetOp().(type) {
	case *pb.SessionOp_Put:
		if o.Put.GetSession() == nil {
			return fmt.Errorf("%w: put without a session", hastate.ErrInvalid)
		}
		id, group, request = o.Put.Session.Id, &o.Put.Session.Group, o.Put.Request
	case *pb.SessionOp_Append:
		if o.Append == nil {
			return fmt.Errorf("%w: empty append", hastate.ErrInvalid)
		}
		id, group, request = o.Append.Id, &o.Append.Group, o.Append.Request
	case *pb.SessionOp_Delete:
		if o.Delete == nil {
			return fmt.Errorf("%w: empty delete", hastate.ErrInvalid)
		}
		id, group, request = o.Delete.Id, &o.Delete.Group, o.Delete.Request
	case *pb.SessionOp_Touch:
		if o.Touch == nil {
			return fmt.Errorf("%w: empty touch", hastate.ErrInvalid)
		}
		id, group, request = o.Touch.Id, &o.Touch.Group, o.Touch.Request
	default:
		return fmt.Errorf("%w: empty operation", hastate.ErrInvalid)
	}
	if *group == "" {
		*group = s.group
	}
	switch {
	case *group != s.group:
		return fmt.Errorf("%w: operation on group %q among the sessions of group %q", hastate.ErrInvalid, *group, s.group)
	case request != nil:
		return fmt.Errorf("%w: the client numbers its requests itself: leave request unset", hastate.ErrInvalid)
	}
	return checkSessionID(id)
}

func checkSessionID(id string) error {
	if id == "" || len(id) > hastate.MaxSessionIDBytes {
		return fmt.Errorf("%w: a session id has 1 to %d bytes, this one has %d", hastate.ErrInvalid, hastate.MaxSessionIDBytes, len(id))
	}
	return nil
}

// Get reads one session at a level (0: linearizable). hastate.ErrNotFound if there
// is none.
func (s *Sessions) Get(ctx context.Context, id string, level pb.ReadLevel) (*pb.Session, error) {
	if s.err != nil {
		return nil, s.err
	}
	if err := checkSessionID(id); err != nil {
		return nil, err
	}
	var session *pb.Session
	err := s.c.Call(ctx, Repeatable, func(ctx context.Context, cc grpc.ClientConnInterface) error {
		resp, err := pb.NewSessionServiceClient(cc).Get(ctx, &pb.GetRequest{Group: s.group, Id: id, Level: level})
		session = resp.GetSession()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("get session %s/%s: %w", s.group, id, err)
	}
	return session, nil
}

// ListOptions choose what List returns.
type ListOptions struct {
	// Prefix of the ids.
	Prefix string
	// PageSize is how many are asked for at once; 0: the node's default.
	PageSize uint32
	// KeysOnly leaves out the values.
	KeysOnly bool
	Level    pb.ReadLevel
}

// List returns sessions in order of id, a page at a time. The first error ends
// it. Each page gets DefaultTimeout if ctx has no deadline.
func (s *Sessions) List(ctx context.Context, o ListOptions) iter.Seq2[*pb.Session, error] {
	return func(yield func(*pb.Session, error) bool) {
		if s.err != nil {
			yield(nil, s.err)
			return
		}
		req := &pb.ListRequest{Group: s.group, Prefix: o.Prefix, PageSize: o.PageSize, KeysOnly: o.KeysOnly, Level: o.Level}
		for {
			var page *pb.ListResponse
			err := s.c.Call(ctx, Repeatable, func(ctx context.Context, cc grpc.ClientConnInterface) (err error) {
				page, err = pb.NewSessionServiceClient(cc).List(ctx, req)
				return err
			})
			if err != nil {
				yield(nil, fmt.Errorf("list sessions of group %q: %w", s.group, err))
				return
			}
			for _, session := range page.GetSessions() {
				if !yield(session, nil) {
					return
				}
			}
			if page.GetNextPageToken() == "" {
				return
			}
			if page.GetNextPageToken() == req.GetPageToken() {
				// It would go round for as long as the caller has time.
				yield(nil, fmt.Errorf("list sessions of group %q: node %q sends on to the page that it was asked for", s.group, page.GetHeader().GetNodeId()))
				return
			}
			req.PageToken = page.GetNextPageToken()
		}
	}
}
