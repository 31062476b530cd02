// SPDX-License-Identifier: Apache-2.0

// Package logstore keeps the Raft log and Raft's term and vote on disk: in one bbolt
// file written through raft-boltdb, or in the segments of package seglog. On top of
// that it adds what the rest of the node needs from a log:
//
//   - when each entry was first stored here (StoredAt), the base of every lease
//     decision;
//   - a cache of the newest entries that is bounded in bytes (raft's own LogCache
//     is bounded in entries, and one entry may be 1 MiB);
//   - how long the running write has been running (Stalled), for the watchdog;
//   - a checksum on every entry and every stable value, so that a flipped bit is
//     an error and not a different history;
//   - fail-stop: after the first failed write nothing is written any more, because
//     an fsync that failed once may succeed later without the data being there.
package logstore
