// SPDX-License-Identifier: Apache-2.0

// Package holder keeps the lease of one group on the node beside an instance:
// it consents to nominations, takes up grants, promotes the instance, renews,
// and fences the instance when the lease ends for whatever reason.
//
// What is decided is in a pure state machine (machine.go and the files it
// names): events in, actions out, with the time as an argument. Holder is the
// loop around it: it reads the clock, talks to the instance and to the log, and
// owns every goroutine. Run waits for all of them.
//
// What must hold, at every instant:
//
//   - Nothing that others can see (Promote, the role PRIMARY, a Serving record)
//     happens unless the lease is valid at that moment, by a clock that also runs
//     while the machine is suspended.
//   - q is read before a nomination is answered and before a renewal is sent, and
//     counts only once the grant or the renewal has committed.
//   - A grant is taken up only if its nomination was consented to by this process.
//   - Once the lease was ended here, its epoch is never acted under again.
//   - Release is proposed, and a Fence answered with true, only after the instance
//     has been silenced: demoted, killed, or certainly gone.
//
// After a restart nothing is known of former consents. If the group's record
// still names this node, its epoch is one that no process can act under: the data
// directory's lock says that the former process of this node is gone, this one
// never takes the epoch up, and no other node is its holder. What may still act
// is the instance. So it is demoted first, and then the epoch is released,
// instead of letting the group wait for the rest of the lease.
//
// Only package node imports holder.
package holder
