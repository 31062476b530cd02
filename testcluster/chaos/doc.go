// SPDX-License-Identifier: Apache-2.0

// Command chaos breaks real clusters at random and checks what was recorded
// meanwhile from outside: `make chaos`. Read main, then run.go: a chapter is a
// load with a cluster under it, a round is one fault or two at once, and at the
// end of a chapter everything that must hold is checked.
//
//	chaos               run, and print one JSON object
//	chaos mutants       show that the suite catches seeded bugs
//	chaos faults        list what can be broken
//	chaos model         the fake model server (started by a run)
//	chaos burn          keep a core busy (started by a run)
//
// As root every host has a network namespace and a disk of its own, which end
// with the program, however it ends. Without root it runs on loopback, with
// faults inside the nodes, and says what it cannot break.
package main
