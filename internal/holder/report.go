// SPDX-License-Identifier: Apache-2.0

package holder

import (
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/hastate/hastate/internal/clock"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// The pace of reports to the log.
const (
	// reportEvery bounds reports of changes, but those to and from READY.
	reportEvery = 50 * time.Millisecond
	// reasonEvery bounds reports of which only the text is new.
	reasonEvery = time.Second
	// checkEvery is how often the log is compared with what was reported.
	checkEvery = time.Second
)

// reporter decides when the instance's record is written to the log. Like the
// machine it is pure.
type reporter struct {
	// want is how the instance stands, nil before it is known.
	want *pb.Instance
	// there is what the log is known to have, nil if unknown.
	there *pb.Instance
	// sent is under way; nil if nothing is.
	sent   *pb.Instance
	sentAt clock.Instant
	// tries counts failures in a row, notBefore ends their back-off.
	tries     int
	notBefore clock.Instant
	nextCheck clock.Instant
}

// at is when want is to be sent; never if nothing is to be.
func (r *reporter) at() clock.Instant {
	if r.want == nil || r.sent != nil || proto.Equal(r.want, r.there) {
		return never
	}
	at := r.notBefore
	if r.there == nil || ready(r.there) != ready(r.want) {
		return at
	}
	pace := reportEvery
	alike := proto.Clone(r.want).(*pb.Instance)
	if alike.Reason = r.there.GetReason(); proto.Equal(alike, r.there) {
		pace = reasonEvery
	}
	return max(at, r.sentAt.Add(pace))
}

// due returns what is to be sent now, nil if nothing is.
func (r *reporter) due(now clock.Instant) *pb.Instance {
	if now < r.at() || r.want == nil {
		return nil
	}
	r.sent, r.sentAt = r.want, now
	return r.sent
}

// done goes on after a report.
func (r *reporter) done(now clock.Instant, ok bool) {
	if !ok {
		r.sent = nil
		r.notBefore = now.Add(retryAfter(r.tries, firstRetry, lastRetry))
		r.tries++
		return
	}
	r.there, r.sent, r.tries, r.notBefore = r.sent, nil, 0, 0
	r.nextCheck = now.Add(checkEvery)
}

// check compares with the log: a report of unknown outcome may have overtaken a
// newer one, and somebody may have removed the record.
func (r *reporter) check(now clock.Instant, lookup func() *pb.Instance) {
	if r.there == nil || r.sent != nil || now < r.nextCheck {
		return
	}
	r.nextCheck = now.Add(checkEvery)
	found := lookup()
	if found == nil {
		r.there = nil
		return
	}
	found = proto.Clone(found).(*pb.Instance)
	found.Revision = 0
	r.there = found
}

func ready(i *pb.Instance) bool { return i.GetState() == pb.InstanceState_INSTANCE_STATE_READY }
