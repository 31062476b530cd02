// SPDX-License-Identifier: Apache-2.0

package fsm

import (
	"strings"

	"google.golang.org/protobuf/proto"

	pb "github.com/hastate/hastate/proto/hastate/v1"
)

const (
	// MaxPage bounds the sessions of one page.
	MaxPage = 1000
	// maxPageBytes bounds their values, so that a page fits into a message, and what is
	// read of the state at a time.
	maxPageBytes = 2 << 20
)

// SessionQuery selects sessions of one group.
type SessionQuery struct {
	Group string
	// Prefix of the id.
	Prefix string
	// After is the id that the page begins after.
	After string
	// Limit is the most sessions to return, at most MaxPage; 0: MaxPage.
	Limit int
	// KeysOnly leaves out the values.
	KeysOnly bool
}

// SessionPage is a part of the answer.
type SessionPage struct {
	Sessions []*pb.Session
	// Next is the After of the next page, empty on the last one.
	Next string
	// Revision of the state that the page was read from.
	Revision uint64
}

// Session returns one session.
func (m *Machine) Session(group, id string) (*pb.Session, bool, error) {
	var x *pb.Session
	err := m.read(func(v *view) error {
		r, err := v.get(tableSessions, pairKey(group, id))
		if err == nil && r != nil {
			x, _ = r.(*pb.Session)
		}
		return err
	})
	return x, x != nil, err
}

// Sessions returns a page of sessions in order of id. A page may be shorter
// than asked for when values are large.
func (m *Machine) Sessions(q SessionQuery) (SessionPage, error) {
	if q.Limit <= 0 || q.Limit > MaxPage {
		q.Limit = MaxPage
	}
	prefix := pairKey(q.Group, q.Prefix)
	from := prefix
	if after := pairKey(q.Group, q.After); q.After != "" && after+"\x00" > from {
		from = after + "\x00" // The first key behind it.
	}
	var page SessionPage
	var bytes int
	err := m.read(func(v *view) error {
		page.Revision = m.state.revision
		var bad error
		v.ascend(tableSessions, from, func(key string, load func() (proto.Message, error)) bool {
			if !strings.HasPrefix(key, prefix) {
				return false
			}
			if len(page.Sessions) == q.Limit || bytes >= maxPageBytes {
				page.Next = page.Sessions[len(page.Sessions)-1].GetId()
				return false
			}
			rec, err := load()
			if err != nil {
				bad = err
				return false
			}
			x, _ := rec.(*pb.Session)
			// A value that is left out counts too: it was read, while nothing can be applied.
			bytes += len(x.GetValue())
			if q.KeysOnly {
				x = remake(x, nil)
			}
			page.Sessions = append(page.Sessions, x)
			return true
		})
		return bad
	})
	return page, err
}
