// SPDX-License-Identifier: Apache-2.0

// Package mutant holds seeded bugs: hanode with one guarding line taken out. A
// chaos suite that does not catch them proves nothing when it finds nothing.
//
// A mutant is not a switch in the product but a replacement of its text, laid over
// the sources for one build (docs/adr/0007-mutants-are-overlays.md). The text must
// be found exactly once, so that code that has moved on fails a test here, rather
// than leave a mutant that mutates nothing.
package mutant
