// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// fillRandom gives every field, down to the last, a value that is not zero. It
// fails on a type that it does not know: a field that is new in raft must be
// looked at.
func fillRandom(tb testing.TB, v reflect.Value, rng *rand.Rand) {
	tb.Helper()
	switch v.Interface().(type) {
	case raft.LogType:
		v.SetUint(uint64(1 + rng.IntN(int(raft.LogConfiguration))))
		return
	case time.Time:
		v.Set(reflect.ValueOf(time.Unix(0, 1+rng.Int64N(1<<62))))
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			if !v.Type().Field(i).IsExported() {
				tb.Fatalf("%s has the field %s that cannot be sent", v.Type(), v.Type().Field(i).Name)
			}
			fillRandom(tb, v.Field(i), rng)
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fillRandom(tb, v.Elem(), rng)
	case reflect.Slice:
		n := 1 + rng.IntN(5)
		v.Set(reflect.MakeSlice(v.Type(), n, n))
		for i := range n {
			fillRandom(tb, v.Index(i), rng)
		}
	case reflect.Uint8, reflect.Uint64:
		v.SetUint(1 + rng.Uint64()%200)
	case reflect.Int, reflect.Int64:
		v.SetInt(1 + rng.Int64N(1<<40))
	case reflect.Bool:
		v.SetBool(true)
	default:
		tb.Fatalf("a field of raft has type %s, which the codec does not carry", v.Type())
	}
}

// through sends a message over the wire.
func through[M proto.Message](tb testing.TB, in, out M) M {
	tb.Helper()
	b, err := proto.Marshal(in)
	if err != nil {
		tb.Fatal(err)
	}
	if err := proto.Unmarshal(b, out); err != nil {
		tb.Fatal(err)
	}
	return out
}

// TestCodecCarriesEveryField breaks when a field is added to one of raft's
// structs that the codec does not carry.
func TestCodecCarriesEveryField(t *testing.T) {
	cases := map[string]func(*rand.Rand) (in, out any, err error){
		"log": func(rng *rand.Rand) (any, any, error) {
			in := &raft.Log{}
			fillRandom(t, reflect.ValueOf(in).Elem(), rng)
			m, err := logToProto(in)
			if err != nil {
				return nil, nil, err
			}
			out, err := logFromProto(through(t, m, &pb.RaftLog{}))
			return in, out, err
		},
		"append request": func(rng *rand.Rand) (any, any, error) {
			in := &raft.AppendEntriesRequest{}
			fillRandom(t, reflect.ValueOf(in).Elem(), rng)
			m, err := appendRequestToProto(in)
			if err != nil {
				return nil, nil, err
			}
			out, err := appendRequestFromProto(through(t, m, &pb.AppendEntriesRequest{}))
			return in, out, err
		},
		"append response": func(rng *rand.Rand) (any, any, error) {
			in := &raft.AppendEntriesResponse{}
			fillRandom(t, reflect.ValueOf(in).Elem(), rng)
			out, err := appendResponseFromProto(through(t, appendResponseToProto(in), &pb.AppendEntriesResponse{}))
			return in, out, err
		},
		"vote request": func(rng *rand.Rand) (any, any, error) {
			in := &raft.RequestVoteRequest{}
			fillRandom(t, reflect.ValueOf(in).Elem(), rng)
			out, err := voteRequestFromProto(through(t, voteRequestToProto(in), &pb.RequestVoteRequest{}))
			return in, out, err
		},
		"vote response": func(rng *rand.Rand) (any, any, error) {
			in := &raft.RequestVoteResponse{}
			fillRandom(t, reflect.ValueOf(in).Elem(), rng)
			out, err := voteResponseFromProto(through(t, voteResponseToProto(in), &pb.RequestVoteResponse{}))
			return in, out, err
		},
		"pre-vote request": func(rng *rand.Rand) (any, any, error) {
			in := &raft.RequestPreVoteRequest{}
			fillRandom(t, reflect.ValueOf(in).Elem(), rng)
			out, err := preVoteRequestFromProto(through(t, preVoteRequestToProto(in), &pb.RequestPreVoteRequest{}))
			return in, out, err
		},
		"pre-vote response": func(rng *rand.Rand) (any, any, error) {
			in := &raft.RequestPreVoteResponse{}
			fillRandom(t, reflect.ValueOf(in).Elem(), rng)
			out, err := preVoteResponseFromProto(through(t, preVoteResponseToProto(in), &pb.RequestPreVoteResponse{}))
			return in, out, err
		},
		"timeout-now request": func(rng *rand.Rand) (any, any, error) {
			in := &raft.TimeoutNowRequest{}
			fillRandom(t, reflect.ValueOf(in).Elem(), rng)
			out, drop, err := timeoutNowRequestFromProto(through(t, timeoutNowRequestToProto(in, 1500*time.Millisecond), &pb.TimeoutNowRequest{}))
			if drop != 1500*time.Millisecond {
				return nil, nil, fmt.Errorf("the time to drop it is %v", drop)
			}
			return in, out, err
		},
		"timeout-now response": func(rng *rand.Rand) (any, any, error) {
			in := &raft.TimeoutNowResponse{}
			fillRandom(t, reflect.ValueOf(in).Elem(), rng)
			out, err := timeoutNowResponseFromProto(through(t, timeoutNowResponseToProto(in), &pb.TimeoutNowResponse{}))
			return in, out, err
		},
		"snapshot request": func(rng *rand.Rand) (any, any, error) {
			in := &raft.InstallSnapshotRequest{}
			fillRandom(t, reflect.ValueOf(in).Elem(), rng)
			out, err := snapshotRequestFromProto(through(t, snapshotRequestToProto(in), &pb.InstallSnapshotHeader{}))
			return in, out, err
		},
		"snapshot response": func(rng *rand.Rand) (any, any, error) {
			in := &raft.InstallSnapshotResponse{}
			fillRandom(t, reflect.ValueOf(in).Elem(), rng)
			out, err := snapshotResponseFromProto(through(t, snapshotResponseToProto(in), &pb.InstallSnapshotResponse{}))
			return in, out, err
		},
	}
	for name, exchange := range cases {
		t.Run(name, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(1, 2))
			for range 50 {
				in, out, err := exchange(rng)
				if err != nil {
					t.Fatal(err)
				}
				if !reflect.DeepEqual(in, out) {
					t.Fatalf("sent     %+v\nreceived %+v", in, out)
				}
			}
		})
	}
}

func TestCodecZeroTime(t *testing.T) {
	for _, at := range []time.Time{{}, time.Date(1, 2, 3, 0, 0, 0, 0, time.UTC), time.Date(9000, 1, 1, 0, 0, 0, 0, time.UTC)} {
		m, err := logToProto(&raft.Log{AppendedAt: at})
		if err != nil {
			t.Fatal(err)
		}
		l, err := logFromProto(m)
		if err != nil {
			t.Fatal(err)
		}
		if !l.AppendedAt.IsZero() {
			t.Errorf("%v became %v", at, l.AppendedAt)
		}
	}
}

func TestCodecRefusesUnknownAndMissing(t *testing.T) {
	if _, err := logToProto(&raft.Log{Type: raft.LogConfiguration + 1}); err == nil {
		t.Error("a log type that is not known was sent")
	}
	if _, err := appendRequestToProto(&raft.AppendEntriesRequest{Entries: []*raft.Log{nil}}); err == nil {
		t.Error("a nil entry was sent")
	}
	for _, bad := range []pb.RaftLogType{0, 7, -1} {
		if _, err := logFromProto(&pb.RaftLog{Type: bad}); err == nil {
			t.Errorf("log type %d was accepted", bad)
		}
	}
	errs := make(map[string]error)
	_, errs["append request"] = appendRequestFromProto(nil)
	_, errs["append response"] = appendResponseFromProto(nil)
	_, errs["vote request"] = voteRequestFromProto(&pb.RequestVoteRequest{})
	_, errs["vote response"] = voteResponseFromProto(&pb.RequestVoteResponse{})
	_, errs["pre-vote request"] = preVoteRequestFromProto(nil)
	_, errs["pre-vote response"] = preVoteResponseFromProto(nil)
	_, _, errs["timeout-now request"] = timeoutNowRequestFromProto(nil)
	_, errs["timeout-now response"] = timeoutNowResponseFromProto(nil)
	_, errs["snapshot request"] = snapshotRequestFromProto(nil)
	_, errs["snapshot response"] = snapshotResponseFromProto(nil)
	for what, err := range errs {
		if err == nil || !strings.Contains(err.Error(), "header") {
			t.Errorf("%s without a header: %v", what, err)
		}
	}
	if _, _, err := timeoutNowRequestFromProto(&pb.TimeoutNowRequest{Header: &pb.RaftHeader{}}); err == nil {
		t.Error("a timeout-now that is never late was accepted")
	}
	if err := checkConfiguration([]byte("no msgpack")); err == nil {
		t.Error("bytes that are no configuration were accepted")
	}
	if err := checkConfiguration(raft.EncodeConfiguration(raft.Configuration{Servers: []raft.Server{{ID: "a", Address: "a"}}})); err != nil {
		t.Error(err)
	}
}

// seeds are messages of each kind, good and bad.
func seeds(f *testing.F, m proto.Message) {
	f.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:len(b)/2])
	f.Add([]byte{})
}

func FuzzDecodeAppendRequest(f *testing.F) {
	r := appendOf("n1", 3, 4, 2)
	r.Entries[0].AppendedAt = time.Unix(0, 5)
	r.Entries[1].Type, r.Entries[1].Data = raft.LogConfiguration, raft.EncodeConfiguration(raft.Configuration{})
	m, err := appendRequestToProto(r)
	if err != nil {
		f.Fatal(err)
	}
	seeds(f, m)
	f.Fuzz(func(t *testing.T, b []byte) {
		var m pb.AppendEntriesRequest
		if proto.Unmarshal(b, &m) != nil {
			return
		}
		r, err := appendRequestFromProto(&m)
		if err != nil {
			return
		}
		_ = checkAppend(r)
		_ = split(r, 1)
		again, err := appendRequestToProto(r)
		if err != nil {
			t.Fatal(err)
		}
		back, err := appendRequestFromProto(again)
		if err != nil || !reflect.DeepEqual(r, back) {
			t.Fatalf("%+v became %+v, %v", r, back, err)
		}
	})
}

func FuzzDecodeSnapshotHeader(f *testing.F) {
	seeds(f, snapshotRequestToProto(&raft.InstallSnapshotRequest{RPCHeader: header("n1"), SnapshotVersion: 1, Term: 2, Configuration: raft.EncodeConfiguration(raft.Configuration{}), Size: 9}))
	f.Fuzz(func(t *testing.T, b []byte) {
		var m pb.InstallSnapshotHeader
		if proto.Unmarshal(b, &m) != nil {
			return
		}
		if r, err := snapshotRequestFromProto(&m); err == nil {
			_ = checkConfiguration(r.Configuration)
		}
	})
}

func FuzzDecodeSmallRequests(f *testing.F) {
	seeds(f, voteRequestToProto(&raft.RequestVoteRequest{RPCHeader: header("n1"), Term: 2}))
	seeds(f, timeoutNowRequestToProto(&raft.TimeoutNowRequest{RPCHeader: header("n1")}, time.Second))
	f.Fuzz(func(_ *testing.T, b []byte) {
		var vote pb.RequestVoteRequest
		if proto.Unmarshal(b, &vote) == nil {
			_, _ = voteRequestFromProto(&vote)
		}
		var pre pb.RequestPreVoteRequest
		if proto.Unmarshal(b, &pre) == nil {
			_, _ = preVoteRequestFromProto(&pre)
		}
		var timeout pb.TimeoutNowRequest
		if proto.Unmarshal(b, &timeout) == nil {
			_, _, _ = timeoutNowRequestFromProto(&timeout)
		}
		var resp pb.AppendEntriesResponse
		if proto.Unmarshal(b, &resp) == nil {
			_, _ = appendResponseFromProto(&resp)
		}
	})
}
