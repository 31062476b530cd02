// SPDX-License-Identifier: Apache-2.0

// Package boltfile checks the structure of a bbolt file by its documented layout,
// before bbolt maps it. bbolt has no checksums on its pages and trusts them: it
// walks a damaged file on a goroutine of its own, where a failed assertion or a
// fault beyond the end of a truncated file cannot be recovered and ends the process
// without a word about what to do; and a flipped bit can make it lose records, or
// go round in a circle until the memory is gone.
package boltfile
