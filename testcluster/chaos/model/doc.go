// SPDX-License-Identifier: Apache-2.0

// Package model is a fake model server for the chaos suite: it implements
// InstanceService, counts its lease itself, answers requests over HTTP as long as
// the lease is valid, and writes each of them down. A control socket breaks it in
// the ways in which model servers break: see Faults.
package model
