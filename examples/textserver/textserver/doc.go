// SPDX-License-Identifier: Apache-2.0

// Package textserver is a small but real language-model server that is made
// highly available with hastate: an n-gram model with an OpenAI-compatible HTTP
// API, whose sessions go on, token for token, on another server after a
// failover. It shows all that a model server has to do, and is what demos and
// tests are run with.
//
// What holds:
//
//   - Token i of an answer is a pure function of (model, seed, prompt, tokens
//     before i). Whoever continues an answer says what the first server would
//     have said.
//   - A token is in the session, on a majority of the cluster's disks, before
//     it is sent to the client. A client that has N tokens finds at least N in
//     the session, whichever server it asks.
//   - Only the primary answers. It checks its lease on the suspend-proof clock
//     before each token that it sends, and it stops by itself when the lease has
//     passed. An epoch that was demoted or fenced never comes back.
//
// Concurrency: a Server is run once; Run owns all goroutines and waits for them.
package textserver
