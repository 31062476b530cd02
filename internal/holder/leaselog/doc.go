// SPDX-License-Identifier: Apache-2.0

// Package leaselog is for tests of the lease: a state machine of groups as small
// as it can be, and a log that commits at once.
package leaselog
