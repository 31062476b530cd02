// SPDX-License-Identifier: Apache-2.0

package fsm

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// errUnknownCommand: there is something that this program cannot apply.
var errUnknownCommand = errors.New("a command or field that this program does not know: it comes from a newer one, upgrade this node")

// CheckCommand refuses a command that a state machine of this version would
// not know completely. Proposers call it before a command gets into the log: one
// that is in the log and is not known stops every node.
func CheckCommand(cmd *pb.Command) error {
	if cmd.GetOp() == nil || !known(cmd.ProtoReflect()) {
		return errUnknownCommand
	}
	ops, isSessions := cmd.GetOp().(*pb.Command_Sessions)
	if !isSessions {
		return nil
	}
	for _, op := range ops.Sessions.GetOps() {
		if op.GetOp() == nil {
			return errUnknownCommand
		}
	}
	return nil
}

// decodeEntry reads the payload of a log entry. It refuses what it would not
// apply completely: going on without it would silently make this node's state
// another one than that of the others.
func decodeEntry(data []byte) (*pb.Entry, error) {
	entry := &pb.Entry{}
	if err := proto.Unmarshal(data, entry); err != nil {
		return nil, fmt.Errorf("decode entry: %w", err)
	}
	if len(entry.ProtoReflect().GetUnknown()) > 0 {
		return nil, fmt.Errorf("decode entry: %w", errUnknownCommand)
	}
	for i, cmd := range entry.GetCommands() {
		if err := CheckCommand(cmd); err != nil {
			return nil, fmt.Errorf("decode command %d: %w", i, err)
		}
	}
	return entry, nil
}

// apply runs one command. It takes over cmd: parts of it become records. The
// Result depends on the state before and on the arguments alone.
func (s *state) apply(e env, cmd *pb.Command) *pb.Result {
	id := cmd.GetRequest()
	if id != nil {
		if answer := s.recall(id); answer != nil {
			if answer.GetIndex() == 0 {
				answer.Revision, answer.Index = s.revision, e.index
			}
			return answer
		}
	}
	s.begin()
	res := s.run(e, cmd)
	if res.GetCode() == pb.ResultCode_RESULT_CODE_OK {
		s.commit()
	} else {
		s.discard()
	}
	res.Revision, res.Index = s.revision, e.index
	if id != nil {
		s.remember(id, res)
	}
	return res
}

// run dispatches. decodeEntry has refused unknown operations.
func (s *state) run(e env, cmd *pb.Command) *pb.Result {
	switch op := cmd.GetOp().(type) {
	case *pb.Command_Sessions:
		return s.sessionOps(e, op.Sessions)
	case *pb.Command_OpenClient:
		return s.openClient(e, op.OpenClient)
	case *pb.Command_Expire:
		return s.expire(e, op.Expire)
	case *pb.Command_Grant:
		return s.grant(e, op.Grant)
	case *pb.Command_Renew:
		return s.renew(e, op.Renew)
	case *pb.Command_Release:
		return s.release(e, op.Release)
	case *pb.Command_Handover:
		return s.handover(e, op.Handover)
	case *pb.Command_Revoke:
		return s.revoke(e, op.Revoke)
	case *pb.Command_Serving:
		return s.serving(e, op.Serving)
	}
	return s.runRegistry(e, cmd)
}

func (s *state) runRegistry(e env, cmd *pb.Command) *pb.Result {
	switch op := cmd.GetOp().(type) {
	case *pb.Command_ConfigureGroup:
		return s.configureGroup(e, op.ConfigureGroup)
	case *pb.Command_PauseGroup:
		return s.pauseGroup(e, op.PauseGroup)
	case *pb.Command_ResumeGroup:
		return s.resumeGroup(e, op.ResumeGroup)
	case *pb.Command_Calm:
		return s.calm(e, op.Calm)
	case *pb.Command_ReportInstance:
		return s.reportInstance(e, op.ReportInstance)
	case *pb.Command_RemoveInstance:
		return s.removeInstance(e, op.RemoveInstance)
	case *pb.Command_RegisterModel:
		return s.registerModel(e, op.RegisterModel)
	case *pb.Command_SetModelAlias:
		return s.setModelAlias(e, op.SetModelAlias)
	case *pb.Command_DeleteModelAlias:
		return s.deleteModelAlias(e, op.DeleteModelAlias)
	case *pb.Command_InitCluster:
		return s.initCluster(e, op.InitCluster)
	case *pb.Command_SetMember:
		return s.setMember(e, op.SetMember)
	case *pb.Command_DeleteMember:
		return s.deleteMember(e, op.DeleteMember)
	}
	panic(fmt.Sprintf("fsm: command %T passed decodeEntry but is not applied", cmd.GetOp()))
}

func ok() *pb.Result { return &pb.Result{Code: pb.ResultCode_RESULT_CODE_OK} }

func invalid(format string, args ...any) *pb.Result {
	return &pb.Result{Code: pb.ResultCode_RESULT_CODE_INVALID, Message: fmt.Sprintf(format, args...)}
}

func notFound(format string, args ...any) *pb.Result {
	return &pb.Result{Code: pb.ResultCode_RESULT_CODE_NOT_FOUND, Message: fmt.Sprintf(format, args...)}
}

func overLimit(what string, maximum, actual uint64) *pb.Result {
	return &pb.Result{Code: pb.ResultCode_RESULT_CODE_LIMIT, Message: what, Limit: what, LimitMaximum: maximum, LimitActual: actual}
}

func conflict(key string, revision uint64, why string) *pb.Result {
	return &pb.Result{Code: pb.ResultCode_RESULT_CODE_CONFLICT, ConflictKey: key, CurrentRevision: revision, Message: why}
}

// fenced names the newest epoch of a group that may be nil.
func fenced(g *pb.Group, why string) *pb.Result {
	return &pb.Result{Code: pb.ResultCode_RESULT_CODE_FENCED, Epoch: g.GetEpoch(), Holder: g.GetHolder(), Message: why}
}
