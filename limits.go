// SPDX-License-Identifier: Apache-2.0

package hastate

// Limits of the API and of the replicated state. They are checked where a
// request enters and again by the state machine; both use these numbers.
const (
	// DefaultGroup is the group of requests that name none.
	DefaultGroup = "default"

	// MaxNameBytes bounds ids of nodes and names of groups, models, versions
	// and aliases.
	MaxNameBytes = 128
	// MaxSessionIDBytes bounds session ids.
	MaxSessionIDBytes = 256
	// MaxTextBytes bounds free text: reasons, owners, client names.
	MaxTextBytes = 256
	// MaxURIBytes bounds URIs and addresses.
	MaxURIBytes = 1024
	// MaxMapEntries bounds labels, pointers and adapters of one record.
	MaxMapEntries = 16

	// DefaultSessionValueBytes is the largest session value unless a group's
	// node configuration says otherwise.
	DefaultSessionValueBytes = 64 << 10
	// MaxSessionValueBytes is the largest session value that may be set.
	MaxSessionValueBytes = 512 << 10
	// MaxSessionsPerGroup bounds the sessions of one group.
	MaxSessionsPerGroup = 2_000_000
	// MaxGroups bounds the groups.
	MaxGroups = 4096
	// MaxModelVersions bounds the registry.
	MaxModelVersions = 10_000
	// MaxHistory is how many transitions are kept per group.
	MaxHistory = 200

	// MaxClients bounds the writers in the de-duplication table.
	MaxClients = 20_000
	// MaxClientWindow bounds the unanswered requests of one writer.
	MaxClientWindow = 4096

	// MaxBatchOps bounds the operations of one SessionService.Batch.
	MaxBatchOps = 256
	// MaxEntryCommands and MaxEntryBytes bound one log entry.
	MaxEntryCommands = 4096
	MaxEntryBytes    = 1 << 20
	// MaxMessageBytes bounds one gRPC message of the public API.
	MaxMessageBytes = 4 << 20

	// MinTTLMillis and MaxTTLMillis bound a lease.
	MinTTLMillis = 100
	MaxTTLMillis = 60_000
)
