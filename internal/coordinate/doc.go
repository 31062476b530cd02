// SPDX-License-Identifier: Apache-2.0

// Package coordinate decides, on the node that leads, who becomes primary of
// each group: it waits out leases, canvasses the candidates, asks the best for
// its consent and proposes the grant; and it carries out an operator's
// switchover and failover.
//
// A Coordinator lives for one term. It must be started after an entry of that
// term has been applied here, so that what it reads reflects everything that was
// committed before. Nothing it does is unsafe if it has lost its leadership
// without knowing: a grant is a compare-and-set in the log, and only a committed
// one counts.
//
// What must hold:
//
//   - A Grant is proposed only if election.Decide says so for a view that was read
//     in the right order, with the epoch and last_renew of that view, and with a
//     consent asked for in this attempt.
//   - A Handover is proposed only after the holder has answered that it is fenced
//     under that epoch.
//   - Nothing is released here on behalf of a holder.
//
// Each group has at most one attempt or order at a time, in a goroutine of its
// own; Run waits for all of them.
package coordinate
