// SPDX-License-Identifier: Apache-2.0

package fsm

import (
	"fmt"
	"strings"

	bolt "go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"

	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// rebase makes the state of a backup one of the live cluster: sessions, groups
// and models are the backup's; members, instances, cluster id and the leases
// are the live ones. A backup knows nothing of the leases that run now, so none
// of them may look vacant or expired afterwards.
type rebase struct {
	tx   *bolt.Tx
	live *view
	// meta of the state that is being made: applied is the log index of the
	// restore.
	meta meta
	// wall is when the backup was written, for the history.
	wall int64
}

func (r *rebase) run() error {
	// Numbers of writers are revisions: those of the backup may be in use by
	// other writers now, whose requests must not be taken for repetitions.
	if err := r.empty(bucketClients); err != nil {
		return err
	}
	for _, t := range []table{tableMembers, tableInstances} {
		if err := r.empty(bucketNames[t]); err != nil {
			return err
		}
		if err := r.copyLive(t, ""); err != nil {
			return err
		}
	}
	if err := r.groups(); err != nil {
		return err
	}
	var err error
	if r.meta.tally, err = tallyOf(r.tx); err != nil {
		return fmt.Errorf("count the records: %w", err)
	}
	return r.tx.Bucket(bucketMeta).Put(keyMeta, r.meta.encode())
}

func (r *rebase) empty(bucket []byte) error {
	if err := r.tx.DeleteBucket(bucket); err != nil {
		return fmt.Errorf("empty bucket %s: %w", bucket, err)
	}
	if _, err := r.tx.CreateBucket(bucket); err != nil {
		return fmt.Errorf("empty bucket %s: %w", bucket, err)
	}
	return nil
}

// each calls fn with the live records whose keys begin with prefix.
func (r *rebase) each(t table, prefix string, fn func(key string, rec proto.Message) error) error {
	var bad error
	r.live.ascend(t, prefix, func(key string, load func() (proto.Message, error)) bool {
		if !strings.HasPrefix(key, prefix) {
			return false
		}
		rec, err := load()
		if err == nil {
			err = fn(key, rec)
		}
		bad = err
		return err == nil
	})
	return bad
}

func (r *rebase) put(t table, key string, rec proto.Message) error {
	var uncounted tally // run counts when all is done
	return putItem(&uncounted, r.tx.Bucket(bucketNames[t]), t, item{key: key, rec: rec})
}

func (r *rebase) copyLive(t table, prefix string) error {
	return r.each(t, prefix, func(key string, rec proto.Message) error { return r.put(t, key, rec) })
}

// groups rewrites the groups of the backup and adds those that live on.
func (r *rebase) groups() error {
	live := map[string]*pb.Group{}
	var order []string
	var ttl uint32
	err := r.each(tableGroups, "", func(key string, rec proto.Message) error {
		g, _ := rec.(*pb.Group)
		live[key] = g
		order = append(order, key)
		ttl = max(ttl, g.GetTtlMs())
		return nil
	})
	if err != nil {
		return err
	}
	archived, err := r.archived()
	if err != nil {
		return err
	}
	inBackup := map[string]bool{}
	for _, a := range archived {
		inBackup[a.GetName()] = true
		if err := r.endPending(a); err != nil {
			return err
		}
		if err := r.put(tableGroups, a.GetName(), rebased(a, live[a.GetName()], r.meta, ttl, r.wall)); err != nil {
			return err
		}
	}
	for _, name := range order {
		if inBackup[name] {
			continue
		}
		keep, err := r.inUse(live[name])
		if err != nil {
			return err
		}
		if !keep {
			continue
		}
		if err := r.put(tableGroups, name, rebased(live[name], live[name], r.meta, ttl, r.wall)); err != nil {
			return err
		}
		if err := r.copyLive(tableHistory, pairKey(name, "")); err != nil {
			return err
		}
	}
	return nil
}

// inUse reports whether a group that the backup does not have must stay: it has
// a holder, or instances.
func (r *rebase) inUse(g *pb.Group) (bool, error) {
	if g.GetPhase() != vacant {
		return true, nil
	}
	used := false
	err := r.each(tableInstances, pairKey(g.GetName(), ""), func(string, proto.Message) error {
		used = true
		return nil
	})
	return used, err
}

// archived are the groups of the backup.
func (r *rebase) archived() ([]*pb.Group, error) {
	var out []*pb.Group
	err := r.tx.Bucket(bucketNames[tableGroups]).ForEach(func(k, v []byte) error {
		rec, err := decodeStored(tableGroups, string(k), v)
		if err != nil {
			return err
		}
		g, _ := rec.(*pb.Group)
		out = append(out, g)
		return nil
	})
	return out, err
}

// endPending ends the transition that was under way when the backup was written:
// nobody else will.
func (r *rebase) endPending(g *pb.Group) error {
	key := numberKey(g.GetName(), g.GetTransitions())
	b := r.tx.Bucket(bucketNames[tableHistory]).Get([]byte(key))
	if b == nil {
		return nil
	}
	rec, err := decodeStored(tableHistory, key, b)
	if err != nil {
		return err
	}
	t, _ := rec.(*pb.Transition)
	if t.GetOutcome() != outcomePending {
		return nil
	}
	t.Outcome, t.EndedUnixMs, t.Detail = outcomeFailed, r.wall, "a backup was restored"
	return r.put(tableHistory, key, t)
}

// restoredReason is why the leases of before a restore are not renewed.
const restoredReason = "state restored from a snapshot"

// rebased is a group of the backup with the lease that the live cluster has
// given. live is nil if the live cluster does not know the group: then the
// backup's holder may still be running somewhere. Whoever may hold a lease is
// left in place, but cannot renew it: it is waited out from the restore on, for
// the longest lease that may be running.
func rebased(archived, live *pb.Group, at meta, ttl uint32, wall int64) *pb.Group {
	n := clone(archived)
	if live != nil {
		n.Phase, n.Holder, n.LastHolder, n.Nomination = live.GetPhase(), live.GetHolder(), live.GetLastHolder(), live.GetNomination()
		n.ReleaseReason, n.ReleasedUnixMs, n.ReleaseDetectMs = live.GetReleaseReason(), live.GetReleasedUnixMs(), live.GetReleaseDetectMs()
		n.Epoch = live.GetEpoch()
		if n.GetPhase() == vacant {
			n.Epoch = max(n.GetEpoch(), archived.GetEpoch())
		}
	}
	n.TtlMs = max(archived.GetTtlMs(), live.GetTtlMs(), ttl)
	n.LastRenew = at.applied
	if n.Revoked = n.GetPhase() != vacant; n.GetRevoked() {
		n.ReleaseReason, n.ReleasedUnixMs = restoredReason, wall
	}
	n.Revision = at.revision
	return n
}
