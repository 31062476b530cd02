// SPDX-License-Identifier: Apache-2.0

// Package load is what the clients of a chaos run do: they write and read
// sessions, append exactly once, ask the primary of each group, and watch; and
// they write down what they asked and were told (see package record). They judge
// nothing. Some go on at another node when theirs fails; others keep to one node.
package load
