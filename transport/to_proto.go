// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	pb "github.com/hastate/hastate/proto/hastate/v1"
)

func headerToProto(h raft.RPCHeader) *pb.RaftHeader {
	return &pb.RaftHeader{ProtocolVersion: int64(h.ProtocolVersion), Id: h.ID, Addr: h.Addr}
}

func logTypeToProto(t raft.LogType) (pb.RaftLogType, error) {
	switch t {
	case raft.LogCommand:
		return pb.RaftLogType_RAFT_LOG_TYPE_COMMAND, nil
	case raft.LogNoop:
		return pb.RaftLogType_RAFT_LOG_TYPE_NOOP, nil
	case raft.LogAddPeerDeprecated:
		return pb.RaftLogType_RAFT_LOG_TYPE_ADD_PEER_DEPRECATED, nil
	case raft.LogRemovePeerDeprecated:
		return pb.RaftLogType_RAFT_LOG_TYPE_REMOVE_PEER_DEPRECATED, nil
	case raft.LogBarrier:
		return pb.RaftLogType_RAFT_LOG_TYPE_BARRIER, nil
	case raft.LogConfiguration:
		return pb.RaftLogType_RAFT_LOG_TYPE_CONFIGURATION, nil
	}
	return 0, fmt.Errorf("log type %d is not known: this version cannot send it", t)
}

// unixNanos is 0 for the zero time and for times that an int64 of nanoseconds
// does not reach: the time is for people only, and is not worth an error.
func unixNanos(t time.Time) int64 {
	const first, last = 1678, 2262
	if year := t.UTC().Year(); year < first || year >= last {
		return 0
	}
	return t.UnixNano()
}

func logToProto(l *raft.Log) (*pb.RaftLog, error) {
	if l == nil {
		return nil, fmt.Errorf("log entry is nil")
	}
	t, err := logTypeToProto(l.Type)
	if err != nil {
		return nil, fmt.Errorf("encode log entry %d: %w", l.Index, err)
	}
	return &pb.RaftLog{
		Index:            l.Index,
		Term:             l.Term,
		Type:             t,
		Data:             l.Data,
		Extensions:       l.Extensions,
		AppendedAtUnixNs: unixNanos(l.AppendedAt),
	}, nil
}

func appendRequestToProto(r *raft.AppendEntriesRequest) (*pb.AppendEntriesRequest, error) {
	out := &pb.AppendEntriesRequest{
		Header:            headerToProto(r.RPCHeader),
		Term:              r.Term,
		Leader:            r.Leader,
		PrevLogEntry:      r.PrevLogEntry,
		PrevLogTerm:       r.PrevLogTerm,
		LeaderCommitIndex: r.LeaderCommitIndex,
	}
	if len(r.Entries) > 0 {
		out.Entries = make([]*pb.RaftLog, len(r.Entries))
	}
	for i, entry := range r.Entries {
		l, err := logToProto(entry)
		if err != nil {
			return nil, err
		}
		out.Entries[i] = l
	}
	return out, nil
}

func appendResponseToProto(r *raft.AppendEntriesResponse) *pb.AppendEntriesResponse {
	return &pb.AppendEntriesResponse{
		Header:         headerToProto(r.RPCHeader),
		Term:           r.Term,
		LastLog:        r.LastLog,
		Success:        r.Success,
		NoRetryBackoff: r.NoRetryBackoff,
	}
}

func voteRequestToProto(r *raft.RequestVoteRequest) *pb.RequestVoteRequest {
	return &pb.RequestVoteRequest{
		Header:             headerToProto(r.RPCHeader),
		Term:               r.Term,
		Candidate:          r.Candidate,
		LastLogIndex:       r.LastLogIndex,
		LastLogTerm:        r.LastLogTerm,
		LeadershipTransfer: r.LeadershipTransfer,
	}
}

func voteResponseToProto(r *raft.RequestVoteResponse) *pb.RequestVoteResponse {
	return &pb.RequestVoteResponse{
		Header:  headerToProto(r.RPCHeader),
		Term:    r.Term,
		Peers:   r.Peers,
		Granted: r.Granted,
	}
}

func preVoteRequestToProto(r *raft.RequestPreVoteRequest) *pb.RequestPreVoteRequest {
	return &pb.RequestPreVoteRequest{
		Header:       headerToProto(r.RPCHeader),
		Term:         r.Term,
		LastLogIndex: r.LastLogIndex,
		LastLogTerm:  r.LastLogTerm,
	}
}

func preVoteResponseToProto(r *raft.RequestPreVoteResponse) *pb.RequestPreVoteResponse {
	return &pb.RequestPreVoteResponse{
		Header:  headerToProto(r.RPCHeader),
		Term:    r.Term,
		Granted: r.Granted,
	}
}

func timeoutNowRequestToProto(r *raft.TimeoutNowRequest, drop time.Duration) *pb.TimeoutNowRequest {
	return &pb.TimeoutNowRequest{
		Header:      headerToProto(r.RPCHeader),
		DropAfterMs: uint32(max(1, drop.Milliseconds())),
	}
}

func timeoutNowResponseToProto(r *raft.TimeoutNowResponse) *pb.TimeoutNowResponse {
	return &pb.TimeoutNowResponse{Header: headerToProto(r.RPCHeader)}
}

func snapshotRequestToProto(r *raft.InstallSnapshotRequest) *pb.InstallSnapshotHeader {
	return &pb.InstallSnapshotHeader{
		Header:             headerToProto(r.RPCHeader),
		SnapshotVersion:    int64(r.SnapshotVersion),
		Term:               r.Term,
		Leader:             r.Leader,
		LastLogIndex:       r.LastLogIndex,
		LastLogTerm:        r.LastLogTerm,
		Peers:              r.Peers,
		Configuration:      r.Configuration,
		ConfigurationIndex: r.ConfigurationIndex,
		Size:               r.Size,
	}
}

func snapshotResponseToProto(r *raft.InstallSnapshotResponse) *pb.InstallSnapshotResponse {
	return &pb.InstallSnapshotResponse{
		Header:  headerToProto(r.RPCHeader),
		Term:    r.Term,
		Success: r.Success,
	}
}
