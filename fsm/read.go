// SPDX-License-Identifier: Apache-2.0

package fsm

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"

	bolterrors "go.etcd.io/bbolt/errors"
	"google.golang.org/protobuf/proto"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// Applied is the newest log entry that is in the state, and its term. Entries
// that Raft keeps to itself (no-ops, barriers) do not count.
func (m *Machine) Applied() (index, term uint64) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.applied, m.term
}

// Flushed is the newest log entry that is in the state file, on the disk.
func (m *Machine) Flushed() uint64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.flushed
}

// WaitApplied returns when an entry is in the state. The entry must be one that
// Raft gives to state machines: a command or a configuration.
func (m *Machine) WaitApplied(ctx context.Context, index uint64) error {
	for {
		progress := m.progress.wait()
		m.mu.RLock()
		applied, failed := m.applied, m.failed
		m.mu.RUnlock()
		switch {
		case applied >= index:
			return nil
		case failed != nil:
			return fmt.Errorf("wait for log entry %d: %w", index, failed)
		}
		select {
		case <-progress:
		case <-m.ctx.Done():
			return fmt.Errorf("wait for log entry %d: %w", index, hastate.ErrClosed)
		case <-ctx.Done():
			return fmt.Errorf("wait for log entry %d: %w", index, context.Cause(ctx))
		}
	}
}

// Revision is the number of the newest change.
func (m *Machine) Revision() uint64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.state.revision
}

// ClusterID is empty until the cluster was initialised.
func (m *Machine) ClusterID() string {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.state.clusterID
}

// Changed returns a channel that is closed at the next change of a group, an
// instance, a member or the configuration, renewals of leases included. Get it
// before you look.
func (m *Machine) Changed() <-chan struct{} { return m.changed.wait() }

// liveView is the state as it is while mu is held. Its tx is not set.
func (m *Machine) liveView() view {
	if m.sealed != nil {
		return view{layers: []*layer{m.active, m.sealed}}
	}
	return view{layers: []*layer{m.active}}
}

// read calls fn with the state as it is now. Nothing is applied meanwhile: fn
// must be short.
func (m *Machine) read(fn func(v *view) error) (err error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.failed != nil {
		return m.failed
	}
	tx, err := m.db.Begin(false)
	if err != nil {
		return fmt.Errorf("read the state file: %w", err)
	}
	defer func() { err = errors.Join(err, tx.Rollback()) }()
	v := m.liveView()
	v.tx = tx
	return fn(&v)
}

// snapshotView returns a state that stays as it is now while others go on. end
// must be called. also, if not nil, is called at the same point of the log.
func (m *Machine) snapshotView(also func()) (v *view, end func() error, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.failed != nil {
		return nil, nil, m.failed
	}
	tx, err := m.db.Begin(false)
	if err != nil {
		return nil, nil, fmt.Errorf("read the state file: %w", err)
	}
	v = &view{layers: []*layer{m.active.copy()}, tx: tx}
	if m.sealed != nil {
		v.layers = append(v.layers, m.sealed)
	}
	if also != nil {
		also()
	}
	return v, tx.Rollback, nil
}

// one reads a record of the small tables. A state file that cannot be read
// halts the node.
func one[M proto.Message](m *Machine, t table, key string) (rec M, found bool) {
	err := m.read(func(v *view) error {
		r, err := v.get(t, key)
		if err == nil && r != nil {
			rec, found = r.(M)
		}
		return err
	})
	m.haltOn(err)
	return rec, found
}

// many reads all records of a table whose keys begin with prefix.
func many[M proto.Message](m *Machine, t table, prefix string) []M {
	var out []M
	err := m.read(func(v *view) error {
		var bad error
		v.ascend(t, prefix, func(key string, load func() (proto.Message, error)) bool {
			if !strings.HasPrefix(key, prefix) {
				return false
			}
			r, err := load()
			if err != nil {
				bad = err
				return false
			}
			out = append(out, r.(M))
			return true
		})
		return bad
	})
	m.haltOn(err)
	return out
}

// haltOn halts the node for an error that is not the end of the Machine itself.
func (m *Machine) haltOn(err error) {
	if err == nil || errors.Is(err, bolterrors.ErrDatabaseNotOpen) {
		return
	}
	m.mu.RLock()
	failed := m.failed
	m.mu.RUnlock()
	if failed == nil {
		_ = m.halt(fmt.Errorf("%w: %w", ErrDamaged, err))
	}
}

// prefixOf selects the records of one name; all if it is empty.
func prefixOf(name string) string {
	if name == "" {
		return ""
	}
	return pairKey(name, "")
}

// Group returns a group by name.
func (m *Machine) Group(name string) (*pb.Group, bool) { return one[*pb.Group](m, tableGroups, name) }

// Groups returns all groups in order of name.
func (m *Machine) Groups() []*pb.Group { return many[*pb.Group](m, tableGroups, "") }

// Instances returns the instances of a group, or all if the name is empty.
func (m *Machine) Instances(group string) []*pb.Instance {
	return many[*pb.Instance](m, tableInstances, prefixOf(group))
}

// History returns transitions of a group, newest first, at most limit; 0: all
// that are kept.
func (m *Machine) History(group string, limit int) []*pb.Transition {
	all := many[*pb.Transition](m, tableHistory, prefixOf(group))
	if limit <= 0 {
		limit = math.MaxInt
	}
	var out []*pb.Transition
	for i := len(all) - 1; i >= 0 && len(out) < limit; i-- {
		out = append(out, all[i])
	}
	return out
}

// Model returns one version of a model.
func (m *Machine) Model(name, version string) (*pb.ModelVersion, bool) {
	return one[*pb.ModelVersion](m, tableModels, pairKey(name, version))
}

// ModelByAlias returns the version that an alias points to.
func (m *Machine) ModelByAlias(name, alias string) (*pb.ModelVersion, bool) {
	a, found := one[*pb.ModelAlias](m, tableAliases, pairKey(name, alias))
	if !found {
		return nil, false
	}
	return m.Model(name, a.GetVersion())
}

// Models returns the versions and aliases of a model, or of all if the name is
// empty.
func (m *Machine) Models(name string) ([]*pb.ModelVersion, []*pb.ModelAlias) {
	return many[*pb.ModelVersion](m, tableModels, prefixOf(name)), many[*pb.ModelAlias](m, tableAliases, prefixOf(name))
}

// Members returns the members in order of node id.
func (m *Machine) Members() []*pb.Member { return many[*pb.Member](m, tableMembers, "") }

// Records counts the records of the state: sessions, groups, instances, models
// and so on.
func (m *Machine) Records() int {
	m.mu.RLock()
	defer m.mu.RUnlock()
	n := 0
	for _, rows := range m.state.counts.tables {
		n += rows
	}
	return n
}
