// SPDX-License-Identifier: Apache-2.0

// Package record is what a chaos run writes down from outside the cluster: what
// clients asked and were told, when holders believed in their leases, under which
// epoch model servers served, what watches said, and what was broken when. The
// checks read nothing else.
//
// All instants are of the machine's own CLOCK_BOOTTIME, also for processes that
// were given a clock of another rate: everything runs on one machine.
package record
