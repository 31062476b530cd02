// SPDX-License-Identifier: Apache-2.0

package fsm

import (
	"encoding/binary"
	"strings"

	"google.golang.org/protobuf/proto"

	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// table is one kind of record.
type table uint8

// The tables. Their numbers are part of the state hash; their names are
// buckets of the state file.
const (
	tableSessions table = iota
	tableGroups
	tableInstances
	tableHistory
	tableModels
	tableAliases
	tableMembers
	tableCount
)

// kv is what the state needs of its store. Records that were put are never
// changed afterwards, neither by the state nor by the store.
type kv interface {
	// get returns nil if there is no such record.
	get(t table, key string) proto.Message
	put(t table, key string, rec proto.Message)
	del(t table, key string)
}

// env is where a command stands in the log.
type env struct {
	// index of the entry.
	index uint64
	// wall clock of the leader, Unix milliseconds. Only ever copied into records.
	wall int64
}

// counts are the numbers that limits are about. They are a function of the
// records, kept so that a limit costs no scan.
type counts struct {
	tables [tableCount]int
	// sessions has no entry for a group without sessions.
	sessions map[string]int
}

func (c *counts) add(t table, key string, d int) {
	c.tables[t] += d
	if t != tableSessions {
		return
	}
	group := firstPart(key)
	if c.sessions[group] += d; c.sessions[group] == 0 {
		delete(c.sessions, group)
	}
}

// slot is a record as one command sees it.
type slot struct {
	t             table
	key           string
	before, after proto.Message
	dirty         bool
}

type slotKey struct {
	t   table
	key string
}

// state is the replicated state: the records in kv, and what is small enough to
// be kept beside it. It is changed by apply alone. Changes of one command are
// staged in slots and reach kv only if the command succeeds.
type state struct {
	kv        kv
	clusterID string
	// revision is the number of changes of records so far.
	revision uint64
	counts   counts

	clients map[uint64]*writer
	// changedClients have to be written by the next flush; one that is not in
	// clients was removed.
	changedClients map[uint64]struct{}
	// answeredBytes is the size of all results kept for retries.
	answeredBytes int

	// events of the entry that is being applied.
	events []Event
	// renewed: the entry renewed a lease, which makes no event.
	renewed bool
	// opened are the writers opened by the entry.
	opened []uint64

	slots        []slot
	slotIndex    map[slotKey]int
	markRevision uint64
	markEvents   int
}

func newState(store kv) *state {
	return &state{
		kv:             store,
		counts:         counts{sessions: map[string]int{}},
		clients:        map[uint64]*writer{},
		changedClients: map[uint64]struct{}{},
		slotIndex:      map[slotKey]int{},
	}
}

// slot returns the place of a record among the staged ones.
func (s *state) slot(t table, key string) *slot {
	k := slotKey{t, key}
	if i, ok := s.slotIndex[k]; ok {
		return &s.slots[i]
	}
	rec := s.kv.get(t, key)
	s.slotIndex[k] = len(s.slots)
	s.slots = append(s.slots, slot{t: t, key: key, before: rec, after: rec})
	return &s.slots[len(s.slots)-1]
}

func (s *state) get(t table, key string) proto.Message { return s.slot(t, key).after }

func (s *state) put(t table, key string, rec proto.Message) {
	sl := s.slot(t, key)
	if sl.after == nil {
		s.counts.add(t, key, 1)
	}
	sl.after, sl.dirty = rec, true
}

func (s *state) del(t table, key string) {
	sl := s.slot(t, key)
	if sl.after == nil {
		return
	}
	s.counts.add(t, key, -1)
	sl.after, sl.dirty = nil, true
}

// begin starts a command.
func (s *state) begin() {
	s.markRevision, s.markEvents = s.revision, len(s.events)
}

// commit makes the staged changes.
func (s *state) commit() {
	for i := range s.slots {
		sl := &s.slots[i]
		switch {
		case !sl.dirty:
		case sl.after != nil:
			s.kv.put(sl.t, sl.key, sl.after)
		case sl.before != nil:
			s.kv.del(sl.t, sl.key)
		}
	}
	s.reset()
}

// discard forgets them.
func (s *state) discard() {
	for i := range s.slots {
		sl := &s.slots[i]
		switch {
		case sl.before == nil && sl.after != nil:
			s.counts.add(sl.t, sl.key, -1)
		case sl.before != nil && sl.after == nil:
			s.counts.add(sl.t, sl.key, 1)
		}
	}
	s.revision = s.markRevision
	clear(s.events[s.markEvents:])
	s.events = s.events[:s.markEvents]
	s.reset()
}

func (s *state) reset() {
	clear(s.slots)
	s.slots = s.slots[:0]
	clear(s.slotIndex)
}

// change takes the next revision for the change that ev describes.
func (s *state) change(e env, ev Event) {
	ev.Revision, ev.Index = s.revision, e.index
	s.events = append(s.events, ev)
}

// next is the revision of the change that is about to be made; each call must
// be followed by one call of change.
func (s *state) next() uint64 {
	s.revision++
	return s.revision
}

func (s *state) session(group, id string) *pb.Session {
	r, _ := s.get(tableSessions, pairKey(group, id)).(*pb.Session)
	return r
}

func (s *state) group(name string) *pb.Group {
	r, _ := s.get(tableGroups, name).(*pb.Group)
	return r
}

func (s *state) instance(group, node string) *pb.Instance {
	r, _ := s.get(tableInstances, pairKey(group, node)).(*pb.Instance)
	return r
}

func (s *state) transition(group string, number uint64) *pb.Transition {
	r, _ := s.get(tableHistory, numberKey(group, number)).(*pb.Transition)
	return r
}

// pairKey is the key of a record that has two names. Names have no control
// characters, so keys order as pairs do.
func pairKey(a, b string) string { return a + "\x00" + b }

// firstPart is the first name of a pairKey.
func firstPart(key string) string {
	a, _, _ := strings.Cut(key, "\x00")
	return a
}

// numberKey orders the records of one name by number.
func numberKey(name string, n uint64) string {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], n)
	return name + "\x00" + string(b[:])
}

// clone copies a record so that the copy can be changed.
func clone[M proto.Message](m M) M {
	c, ok := proto.Clone(m).(M)
	if !ok {
		panic("fsm: proto.Clone changed the type of a record")
	}
	return c
}
