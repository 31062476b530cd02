// SPDX-License-Identifier: Apache-2.0

// Package election decides who is primary: when a lease is valid (the holder's
// side), when another may be granted (the leader's side), and which candidate is
// best. Everything here is a pure function of its arguments: no clock is read,
// nothing is random, nothing does I/O. The loops that feed these functions are
// in internal/holder and internal/coordinate.
//
// The log is the lease. A holder may act until q + L(1-rho), where q was read
// before it sent a renewal that has since committed. A leader may grant to
// another only when its own clock has run L(1+rho) since it stored the newest
// renewal, and the grant carries a compare-and-set on that renewal. A renewal
// that a holder relies on is committed, so it is in the log of every later
// leader, which stored it after q: no timing of elections is used.
//
// The tests named StateSpace drive these functions through every interleaving of
// small clusters, and find two primaries as soon as one of the rules is left out.
package election
