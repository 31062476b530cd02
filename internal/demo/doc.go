// SPDX-License-Identifier: Apache-2.0

// Package demo is `hanode demo`: it starts three nodes and three model servers as
// processes on loopback, streams a long completion, breaks something in
// mid-stream and shows that the stream goes on where it stopped. The figures it
// prints are measured from outside the cluster, or are the cluster's own history.
package demo
