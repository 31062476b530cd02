// SPDX-License-Identifier: Apache-2.0

// Package seglog is a log of Raft entries, and of the few named values that Raft keeps
// beside them, in preallocated segment files. An append costs one write and one
// fdatasync, of blocks that the file system has already written once, so that no
// metadata has to go to the disk with it.
//
// # On disk
//
// A segment is a file of sectors of 512 bytes. Each written sector ends with the number
// of its segment, the number of its append within the segment, and a checksum over all
// of it and its position. An append occupies whole sectors: a length, then records. The
// first append of a segment begins with a header record: how far the segment before it
// goes, which indexes the log has, and the named values. So the oldest segments can go
// at any time, and a segment that has lost its end is noticed.
//
// Files are recycled: a sector that is intact and belongs to a lower segment counts as
// not written, like one of zeros.
//
// # What a crash leaves, and what is damage
//
// An append is acknowledged after its fdatasync, and the next one is written after
// that. So after a power cut only sectors of the newest append may be missing; it was
// not acknowledged and is wiped at Open. Everything else is damage and refused: a
// sector whose checksum is wrong, one of a wrong append or segment, a hole below a
// newer append, an index that a header tells of and that no segment has. This takes for
// granted that the disk writes a sector of 512 bytes whole or not at all.
//
// What was read at Open need not be on the disk: a process that was killed between
// write and fdatasync leaves it in the page cache, and a failed fdatasync leaves it
// there marked as clean. So Open writes the newest append once more and syncs it before
// anything may rest on it.
package seglog
