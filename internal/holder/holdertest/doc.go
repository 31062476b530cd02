// SPDX-License-Identifier: Apache-2.0

// Package holdertest is for tests: a model server that does what a test wants.
package holdertest
