// SPDX-License-Identifier: Apache-2.0

// Command hactl is the operator's tool of hastate.
//
// It talks to the cluster through package client and the public API only. Each
// noun or verb has a file of its own; what they share is in app.go (flags and
// connection), output.go (formats) and exit.go (errors and exit codes).
package main
