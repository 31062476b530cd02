// SPDX-License-Identifier: Apache-2.0

// Package check judges what a chaos run has recorded. Every check is a pure
// function over records: it asks no cluster and reads no clock, so that a history
// of a run long past can be judged again.
//
// A check reports what must never be seen, and nothing else: what was not
// recorded, or cannot be told from outside, is no violation.
package check
