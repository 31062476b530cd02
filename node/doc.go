// SPDX-License-Identifier: Apache-2.0

// Package node assembles one hanode: Raft, its log and state machine, the
// transport, the lease holder beside each instance, the leader's coordinator,
// the API and the HTTP port. It is the only owner of long-lived goroutines:
// Open binds and opens synchronously, Run serves until its context ends, Close
// releases what Open took. A Go process may embed it.
package node
