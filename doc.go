// SPDX-License-Identifier: Apache-2.0

// Package hastate holds the words that all parts of hastate share: its error
// sentinels, their gRPC form, and the limits of the API. It imports nothing of
// ours but the generated protocol.
package hastate
