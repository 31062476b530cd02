// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// What a peer sends is not trusted to be well formed: each function returns an
// error for what Raft would panic on.

var errNoHeader = errors.New("the Raft header is missing")

func headerFromProto(h *pb.RaftHeader) (raft.RPCHeader, error) {
	if h == nil {
		return raft.RPCHeader{}, errNoHeader
	}
	return raft.RPCHeader{
		ProtocolVersion: raft.ProtocolVersion(h.GetProtocolVersion()),
		ID:              h.GetId(),
		Addr:            h.GetAddr(),
	}, nil
}

func logTypeFromProto(t pb.RaftLogType) (raft.LogType, error) {
	switch t {
	case pb.RaftLogType_RAFT_LOG_TYPE_COMMAND:
		return raft.LogCommand, nil
	case pb.RaftLogType_RAFT_LOG_TYPE_NOOP:
		return raft.LogNoop, nil
	case pb.RaftLogType_RAFT_LOG_TYPE_ADD_PEER_DEPRECATED:
		return raft.LogAddPeerDeprecated, nil
	case pb.RaftLogType_RAFT_LOG_TYPE_REMOVE_PEER_DEPRECATED:
		return raft.LogRemovePeerDeprecated, nil
	case pb.RaftLogType_RAFT_LOG_TYPE_BARRIER:
		return raft.LogBarrier, nil
	case pb.RaftLogType_RAFT_LOG_TYPE_CONFIGURATION:
		return raft.LogConfiguration, nil
	case pb.RaftLogType_RAFT_LOG_TYPE_UNSPECIFIED:
	}
	return 0, fmt.Errorf("log type %d is not known: upgrade this node", t)
}

func logFromProto(l *pb.RaftLog) (*raft.Log, error) {
	if l == nil {
		return nil, errors.New("decode log entry: it is missing")
	}
	t, err := logTypeFromProto(l.GetType())
	if err != nil {
		return nil, fmt.Errorf("decode log entry %d: %w", l.GetIndex(), err)
	}
	out := &raft.Log{
		Index:      l.GetIndex(),
		Term:       l.GetTerm(),
		Type:       t,
		Data:       l.GetData(),
		Extensions: l.GetExtensions(),
	}
	if ns := l.GetAppendedAtUnixNs(); ns != 0 {
		out.AppendedAt = time.Unix(0, ns)
	}
	return out, nil
}

// checkConfiguration finds out whether Raft can decode a configuration. It
// panics on one that it cannot.
func checkConfiguration(data []byte) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("decode configuration: %v", r)
		}
	}()
	raft.DecodeConfiguration(data)
	return nil
}

func appendRequestFromProto(r *pb.AppendEntriesRequest) (*raft.AppendEntriesRequest, error) {
	header, err := headerFromProto(r.GetHeader())
	if err != nil {
		return nil, fmt.Errorf("decode append request: %w", err)
	}
	out := &raft.AppendEntriesRequest{
		RPCHeader:         header,
		Term:              r.GetTerm(),
		Leader:            r.GetLeader(),
		PrevLogEntry:      r.GetPrevLogEntry(),
		PrevLogTerm:       r.GetPrevLogTerm(),
		LeaderCommitIndex: r.GetLeaderCommitIndex(),
	}
	if len(r.GetEntries()) > 0 {
		out.Entries = make([]*raft.Log, len(r.GetEntries()))
	}
	for i, entry := range r.GetEntries() {
		if out.Entries[i], err = logFromProto(entry); err != nil {
			return nil, fmt.Errorf("decode append request: %w", err)
		}
	}
	return out, nil
}

func appendResponseFromProto(r *pb.AppendEntriesResponse) (*raft.AppendEntriesResponse, error) {
	header, err := headerFromProto(r.GetHeader())
	if err != nil {
		return nil, fmt.Errorf("decode append response: %w", err)
	}
	return &raft.AppendEntriesResponse{
		RPCHeader:      header,
		Term:           r.GetTerm(),
		LastLog:        r.GetLastLog(),
		Success:        r.GetSuccess(),
		NoRetryBackoff: r.GetNoRetryBackoff(),
	}, nil
}

func voteRequestFromProto(r *pb.RequestVoteRequest) (*raft.RequestVoteRequest, error) {
	header, err := headerFromProto(r.GetHeader())
	if err != nil {
		return nil, fmt.Errorf("decode vote request: %w", err)
	}
	return &raft.RequestVoteRequest{
		RPCHeader:          header,
		Term:               r.GetTerm(),
		Candidate:          r.GetCandidate(),
		LastLogIndex:       r.GetLastLogIndex(),
		LastLogTerm:        r.GetLastLogTerm(),
		LeadershipTransfer: r.GetLeadershipTransfer(),
	}, nil
}

func voteResponseFromProto(r *pb.RequestVoteResponse) (*raft.RequestVoteResponse, error) {
	header, err := headerFromProto(r.GetHeader())
	if err != nil {
		return nil, fmt.Errorf("decode vote response: %w", err)
	}
	return &raft.RequestVoteResponse{
		RPCHeader: header,
		Term:      r.GetTerm(),
		Peers:     r.GetPeers(),
		Granted:   r.GetGranted(),
	}, nil
}

func preVoteRequestFromProto(r *pb.RequestPreVoteRequest) (*raft.RequestPreVoteRequest, error) {
	header, err := headerFromProto(r.GetHeader())
	if err != nil {
		return nil, fmt.Errorf("decode pre-vote request: %w", err)
	}
	return &raft.RequestPreVoteRequest{
		RPCHeader:    header,
		Term:         r.GetTerm(),
		LastLogIndex: r.GetLastLogIndex(),
		LastLogTerm:  r.GetLastLogTerm(),
	}, nil
}

func preVoteResponseFromProto(r *pb.RequestPreVoteResponse) (*raft.RequestPreVoteResponse, error) {
	header, err := headerFromProto(r.GetHeader())
	if err != nil {
		return nil, fmt.Errorf("decode pre-vote response: %w", err)
	}
	return &raft.RequestPreVoteResponse{
		RPCHeader: header,
		Term:      r.GetTerm(),
		Granted:   r.GetGranted(),
	}, nil
}

// timeoutNowRequestFromProto also returns how long after its arrival the
// request may be acted on.
func timeoutNowRequestFromProto(r *pb.TimeoutNowRequest) (*raft.TimeoutNowRequest, time.Duration, error) {
	header, err := headerFromProto(r.GetHeader())
	if err != nil {
		return nil, 0, fmt.Errorf("decode timeout-now request: %w", err)
	}
	if r.GetDropAfterMs() == 0 {
		return nil, 0, errors.New("decode timeout-now request: drop_after_ms is 0")
	}
	return &raft.TimeoutNowRequest{RPCHeader: header}, time.Duration(r.GetDropAfterMs()) * time.Millisecond, nil
}

func timeoutNowResponseFromProto(r *pb.TimeoutNowResponse) (*raft.TimeoutNowResponse, error) {
	header, err := headerFromProto(r.GetHeader())
	if err != nil {
		return nil, fmt.Errorf("decode timeout-now response: %w", err)
	}
	return &raft.TimeoutNowResponse{RPCHeader: header}, nil
}

func snapshotRequestFromProto(r *pb.InstallSnapshotHeader) (*raft.InstallSnapshotRequest, error) {
	header, err := headerFromProto(r.GetHeader())
	if err != nil {
		return nil, fmt.Errorf("decode snapshot header: %w", err)
	}
	if r.GetSize() < 0 {
		return nil, fmt.Errorf("decode snapshot header: the size is %d", r.GetSize())
	}
	return &raft.InstallSnapshotRequest{
		RPCHeader:          header,
		SnapshotVersion:    raft.SnapshotVersion(r.GetSnapshotVersion()),
		Term:               r.GetTerm(),
		Leader:             r.GetLeader(),
		LastLogIndex:       r.GetLastLogIndex(),
		LastLogTerm:        r.GetLastLogTerm(),
		Peers:              r.GetPeers(),
		Configuration:      r.GetConfiguration(),
		ConfigurationIndex: r.GetConfigurationIndex(),
		Size:               r.GetSize(),
	}, nil
}

func snapshotResponseFromProto(r *pb.InstallSnapshotResponse) (*raft.InstallSnapshotResponse, error) {
	header, err := headerFromProto(r.GetHeader())
	if err != nil {
		return nil, fmt.Errorf("decode snapshot response: %w", err)
	}
	return &raft.InstallSnapshotResponse{
		RPCHeader: header,
		Term:      r.GetTerm(),
		Success:   r.GetSuccess(),
	}, nil
}
