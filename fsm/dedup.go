// SPDX-License-Identifier: Apache-2.0

package fsm

import (
	"fmt"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// maxAnsweredBytes bounds the results kept for retries, of all writers.
const maxAnsweredBytes = 256 << 20

// writer is one writer's de-duplication window: a pb.ClientRecord in the form
// that is quick to change.
type writer struct {
	number uint64
	name   string
	// ackedBelow: results below are forgotten, the client has seen them.
	ackedBelow uint64
	highestSeq uint64
	// answered is ordered by seq; no seq is below ackedBelow.
	answered []answer
}

// answer is the serialised Result of one request.
type answer struct {
	seq    uint64
	result []byte
}

// recall returns the Result of a request that must not be applied: it was
// before, or cannot be told apart from one that was. It returns nil if the
// request is new. A Result with an index is one that was stored.
func (s *state) recall(id *pb.RequestId) *pb.Result {
	if id.GetClient() == 0 || id.GetSeq() == 0 {
		return invalid("request id: client and seq must not be 0")
	}
	if id.GetAckedBelow() > id.GetSeq() {
		return invalid("request id: acked_below %d is above seq %d", id.GetAckedBelow(), id.GetSeq())
	}
	w := s.clients[id.GetClient()]
	if w == nil {
		return &pb.Result{
			Code: pb.ResultCode_RESULT_CODE_CLIENT_EXPIRED, Client: id.GetClient(),
			Message: fmt.Sprintf("client %d is not known", id.GetClient()),
		}
	}
	s.acknowledge(w, id.GetAckedBelow())
	if id.GetSeq() < w.ackedBelow {
		return &pb.Result{Code: pb.ResultCode_RESULT_CODE_ALREADY_ACKED, Client: w.number}
	}
	if i, found := w.find(id.GetSeq()); found {
		res := &pb.Result{}
		if err := proto.Unmarshal(w.answered[i].result, res); err != nil {
			panic(fmt.Sprintf("fsm: stored result of client %d, seq %d: %v", w.number, id.GetSeq(), err))
		}
		return res
	}
	if n := len(w.answered); n >= hastate.MaxClientWindow {
		return overLimit("unconfirmed requests of the client", hastate.MaxClientWindow, uint64(n)+1)
	}
	if s.answeredBytes >= maxAnsweredBytes {
		return overLimit("bytes of unconfirmed results of all clients", maxAnsweredBytes, uint64(s.answeredBytes))
	}
	return nil
}

// remember keeps the Result of a request that was applied, refusals included.
func (s *state) remember(id *pb.RequestId, res *pb.Result) {
	w := s.clients[id.GetClient()]
	if w == nil {
		return // The command itself removed the writer.
	}
	b, err := encodeRecord(res)
	if err != nil {
		panic(fmt.Sprintf("fsm: encode result: %v", err))
	}
	i, _ := w.find(id.GetSeq())
	w.answered = slices.Insert(w.answered, i, answer{seq: id.GetSeq(), result: b})
	w.highestSeq = max(w.highestSeq, id.GetSeq())
	s.answeredBytes += len(b)
	s.changedClients[w.number] = struct{}{}
}

// acknowledge forgets the results below a sequence number.
func (s *state) acknowledge(w *writer, below uint64) {
	if below <= w.ackedBelow {
		return
	}
	w.ackedBelow = below
	n, _ := w.find(below)
	for _, a := range w.answered[:n] {
		s.answeredBytes -= len(a.result)
	}
	clear(w.answered[:n])
	w.answered = w.answered[n:]
	s.changedClients[w.number] = struct{}{}
}

func (w *writer) find(seq uint64) (int, bool) {
	// Requests mostly come in order.
	if n := len(w.answered); n == 0 || w.answered[n-1].seq < seq {
		return n, false
	}
	return slices.BinarySearchFunc(w.answered, seq, func(a answer, seq uint64) int {
		switch {
		case a.seq < seq:
			return -1
		case a.seq > seq:
			return 1
		}
		return 0
	})
}

func (s *state) openClient(e env, c *pb.OpenClient) *pb.Result {
	if bad := checkText("name", c.GetName(), hastate.MaxTextBytes); bad != nil {
		return bad
	}
	if n := len(s.clients); n >= hastate.MaxClients {
		return overLimit("clients", hastate.MaxClients, uint64(n)+1)
	}
	w := &writer{number: s.next(), name: c.GetName(), ackedBelow: 1}
	s.change(e, Event{})
	s.clients[w.number] = w
	s.changedClients[w.number] = struct{}{}
	s.opened = append(s.opened, w.number)
	res := ok()
	res.Client = w.number
	return res
}

// forget removes a writer.
func (s *state) forget(e env, w *writer) {
	for _, a := range w.answered {
		s.answeredBytes -= len(a.result)
	}
	delete(s.clients, w.number)
	s.changedClients[w.number] = struct{}{}
	s.next()
	s.change(e, Event{})
}

// encode writes the writer as a pb.ClientRecord, fields in order of number.
func (w *writer) encode() []byte {
	var b []byte
	b = appendUint(b, 1, w.number)
	if w.name != "" {
		b = protowire.AppendTag(b, 2, protowire.BytesType)
		b = protowire.AppendString(b, w.name)
	}
	b = appendUint(b, 3, w.ackedBelow)
	b = appendUint(b, 4, w.highestSeq)
	for _, a := range w.answered {
		size := protowire.SizeTag(1) + protowire.SizeVarint(a.seq) + protowire.SizeTag(2) + protowire.SizeBytes(len(a.result))
		b = protowire.AppendTag(b, 5, protowire.BytesType)
		b = protowire.AppendVarint(b, uint64(size))
		b = appendUint(b, 1, a.seq)
		b = protowire.AppendTag(b, 2, protowire.BytesType)
		b = protowire.AppendBytes(b, a.result)
	}
	return b
}

func appendUint(b []byte, field protowire.Number, v uint64) []byte {
	if v == 0 {
		return b
	}
	b = protowire.AppendTag(b, field, protowire.VarintType)
	return protowire.AppendVarint(b, v)
}

// decodeWriter reads what encode wrote.
func decodeWriter(b []byte) (*writer, error) {
	rec := &pb.ClientRecord{}
	if err := proto.Unmarshal(b, rec); err != nil {
		return nil, fmt.Errorf("decode client record: %w", err)
	}
	w := &writer{number: rec.GetClient(), name: rec.GetName(), ackedBelow: rec.GetAckedBelow(), highestSeq: rec.GetHighestSeq()}
	var last uint64
	for _, a := range rec.GetAnswered() {
		if a.GetSeq() <= last || a.GetSeq() < w.ackedBelow || a.GetSeq() > w.highestSeq {
			return nil, fmt.Errorf("decode client record %d: sequence number %d is out of order", w.number, a.GetSeq())
		}
		last = a.GetSeq()
		res, err := encodeRecord(a.GetResult())
		if err != nil {
			return nil, fmt.Errorf("decode client record: %w", err)
		}
		w.answered = append(w.answered, answer{seq: a.GetSeq(), result: res})
	}
	return w, nil
}
