// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"context"
	"errors"
	"net"
	"time"

	"github.com/hashicorp/raft"

	"github.com/hastate/hastate/internal/clock"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// secondAfter: a question is asked again over another connection after this part of its
// timeout.
const secondAfter = 6

// reply is what came of a question on one of the connections.
type reply[R any] struct {
	r    R
	err  error
	kind int
}

// askTwice is ask for questions that may be asked more than once, and whose answer an
// election waits for. After a cut of the network that has healed, a connection may say
// nothing for as long as TCP waits before it sends again what was lost: seconds, of which
// neither side knows. Between followers nobody notices, until the leader stops and they
// need each other. So if there is no answer in a part of the heartbeat timeout, or the
// connection breaks, the question goes over the connection for snapshots too, on which
// nearly always nothing was under way that could have been lost. The first answer counts.
// A control connection that is proved dead by that is made anew: everything else that the
// nodes ask each other goes over it.
func askTwice[R raft.WithRPCHeader](t *Transport, id raft.ServerID, what string, timeout time.Duration, exchange func(context.Context, pb.RaftServiceClient) (R, error)) (R, clock.Instant, error) {
	var none R
	p, err := t.peer(id)
	if err != nil {
		return none, 0, err
	}
	ctx, cancel := context.WithTimeout(p.ctx, timeout)
	sentAt, asked := t.opts.Clock.Now(), p.dialledNow(controlConn) // the time is that of the earlier of both
	replies := make(chan reply[R], connCount)                      // none waits to be read
	question := func(kind int) {
		if !t.start(func() {
			r, err := exchange(ctx, p.clients[kind])
			if err == nil {
				err = p.checkSender(r)
			}
			replies <- reply[R]{r, err, kind}
		}) {
			replies <- reply[R]{none, errClosed, kind}
		}
	}
	question(controlConn)
	waiting, second := 1, false
	again := time.NewTimer(timeout / secondAfter)
	defer again.Stop()
	for {
		var got reply[R]
		select {
		case got = <-replies:
			waiting--
		case <-again.C:
			got.err = context.DeadlineExceeded
		}
		if got.err != nil && !second && noPeer(got.err) && ctx.Err() == nil {
			second = true
			waiting++
			question(snapshotConn)
		}
		if got.err != nil && waiting > 0 {
			continue
		}
		err := p.settle(ctx, what, sentAt, got.err)
		if err == nil && got.kind != controlConn && waiting > 0 &&
			t.start(func() { defer cancel(); closeUnanswered(ctx, p, replies, asked) }) {
			return got.r, sentAt, nil
		}
		cancel()
		return got.r, sentAt, err
	}
}

// closeUnanswered closes a control connection if the question over it has no reply until
// its deadline, although the peer has answered the same question over another one: a peer
// that is only slow keeps it.
func closeUnanswered[R any](ctx context.Context, p *peer, replies <-chan reply[R], asked net.Conn) {
	got := <-replies // at the latest at the deadline of ctx
	if got.err == nil || !errors.Is(ctx.Err(), context.DeadlineExceeded) || !p.forget(controlConn, asked) {
		return
	}
	p.t.logger.Info("a connection to the peer is dead: it is made anew", "peer", p.id)
	_ = asked.Close() // it is of no use any more
}

// dialledNow is the byte stream of a connection, nil if there is none.
func (p *peer) dialledNow(kind int) net.Conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.streams[kind].conn
}

// forget drops a byte stream that is about to be closed. False: it is not that of the
// connection any more, or nobody knows whether the peer can be reached.
func (p *peer) forget(kind int, conn net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if conn == nil || p.unreachable || p.streams[kind].conn != conn {
		return false
	}
	p.streams[kind] = dialled{}
	return true
}
