// SPDX-License-Identifier: Apache-2.0

package fsm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/hastate/hastate/internal/boltfile"
)

var (
	// ErrDamaged: the state file cannot be used. It is never repaired in place.
	ErrDamaged = errors.New("state file is damaged")
	// ErrNewerFormat: the state file was written by a newer program.
	ErrNewerFormat = errors.New("state file has a newer format")
	// ErrLocked: another process has the state file open.
	ErrLocked = errors.New("state file is in use by another process")
)

const (
	// formatVersion is that of the state file. Files of a newer one are refused.
	// Those of format 1 have no tally.
	formatVersion = 2
	lockTimeout   = time.Second
	// mmapBytes is address space reserved for the file: as long as the file is
	// smaller, no flush waits for a reader to let go of the old mapping.
	mmapBytes = 64 << 30
	fileMode  = 0o600

	adviceDamaged = "stop this node, move its whole data directory away, remove the node from the cluster and let it join again; if no other node is left, restore a backup"
)

var (
	bucketNames = [tableCount][]byte{
		[]byte("sessions"), []byte("groups"), []byte("instances"), []byte("history"),
		[]byte("models"), []byte("aliases"), []byte("members"),
	}
	bucketClients = []byte("clients")
	bucketMeta    = []byte("meta")
	keyMeta       = []byte("state")

	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// meta is the record that makes the other records of the file a state.
type meta struct {
	applied, term, revision uint64
	clusterID               string
	// configuration is the newest raft.Configuration, encoded, and the index of
	// its entry.
	configuration      []byte
	configurationIndex uint64
	// tally is of all other records of the file.
	tally tally
	// untallied: the file has format 1.
	untallied bool
}

const metaMagic = "hastate1"

// encode writes magic, version, the fields and a checksum over all of it.
func (m *meta) encode() []byte {
	b := []byte(metaMagic)
	b = binary.BigEndian.AppendUint32(b, formatVersion)
	for _, v := range []uint64{m.applied, m.term, m.revision, m.configurationIndex, m.tally.records, m.tally.sum} {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	b = binary.AppendUvarint(b, uint64(len(m.clusterID)))
	b = append(b, m.clusterID...)
	b = binary.AppendUvarint(b, uint64(len(m.configuration)))
	b = append(b, m.configuration...)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// decodeMeta reads what encode wrote.
func decodeMeta(b []byte) (meta, error) {
	const head = len(metaMagic) + 4
	if len(b) < head+4*8+4 || string(b[:len(metaMagic)]) != metaMagic {
		return meta{}, fmt.Errorf("%w: there is no meta record", ErrDamaged)
	}
	version := binary.BigEndian.Uint32(b[len(metaMagic):])
	if version > formatVersion {
		return meta{}, fmt.Errorf("%w: %d, this program knows formats up to %d: start a newer version", ErrNewerFormat, version, formatVersion)
	}
	body, sum := b[:len(b)-4], binary.BigEndian.Uint32(b[len(b)-4:])
	if crc32.Checksum(body, castagnoli) != sum {
		return meta{}, fmt.Errorf("%w: the checksum of the meta record is wrong", ErrDamaged)
	}
	var m meta
	rest := body[head:]
	fields := []*uint64{&m.applied, &m.term, &m.revision, &m.configurationIndex, &m.tally.records, &m.tally.sum}
	if m.untallied = version < 2; m.untallied {
		fields = fields[:4]
	}
	if version == 0 || len(rest) < 8*len(fields) {
		return meta{}, fmt.Errorf("%w: the meta record does not parse", ErrDamaged)
	}
	for _, v := range fields {
		*v, rest = binary.BigEndian.Uint64(rest), rest[8:]
	}
	id, rest, okID := cutBytes(rest)
	conf, rest, okConf := cutBytes(rest)
	if !okID || !okConf || len(rest) != 0 {
		return meta{}, fmt.Errorf("%w: the meta record does not parse", ErrDamaged)
	}
	m.clusterID = string(id)
	m.configuration = append([]byte(nil), conf...)
	return m, nil
}

// cutBytes cuts length-prefixed bytes off b.
func cutBytes(b []byte) (v, rest []byte, valid bool) {
	n, w := binary.Uvarint(b)
	if w <= 0 || n > uint64(len(b)-w) {
		return nil, nil, false
	}
	return b[w : w+int(n)], b[w+int(n):], true
}

// contents is what a look through a state file has found.
type contents struct {
	meta          meta
	counts        counts
	clients       map[uint64]*writer
	answeredBytes int
}

func boltOptions() *bolt.Options {
	return &bolt.Options{
		Timeout:        lockTimeout,
		FreelistType:   bolt.FreelistMapType,
		NoFreelistSync: true, // Rebuilt at open; writing it would dominate small flushes.
		// NoSync and NoGrowSync stay off: what a flush wrote must be on the disk.
	}
}

// openFile opens a state file that inspectFile has found good.
func openFile(path string) (*bolt.DB, error) {
	o := boltOptions()
	o.InitialMmapSize = mmapBytes
	db, err := bolt.Open(path, fileMode, o)
	if err != nil && !errors.Is(err, berrors.ErrTimeout) {
		// The address space may be limited (ulimit -v). Without the reserve a
		// growing file makes flushes wait for long readers, which is all.
		o.InitialMmapSize = 0
		db, err = bolt.Open(path, fileMode, o)
	}
	if err != nil {
		return nil, openError(path, err)
	}
	// What can be read need not be on the disk: a process that was killed in a flush
	// leaves it in the page cache. From now on it counts as flushed, and the log may be
	// truncated in favour of it.
	if err := db.Sync(); err != nil {
		return nil, errors.Join(fmt.Errorf("sync state file %s: %w", path, err), db.Close())
	}
	return db, nil
}

func openError(path string, err error) error {
	switch {
	case errors.Is(err, berrors.ErrTimeout):
		return fmt.Errorf("open state file %s: %w: is another hanode running on this data directory?", path, ErrLocked)
	case errors.Is(err, fs.ErrPermission), errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("open state file %s: %w", path, err)
	}
	return fmt.Errorf("open state file %s: %w: %w: %s", path, ErrDamaged, err, adviceDamaged)
}

// createFile makes an empty state file. It appears under its name only when it
// is complete, so that a short file is always a damaged one.
func createFile(path string) (err error) {
	temp := path + ".new"
	if err := removeStale(temp); err != nil {
		return err
	}
	db, err := bolt.Open(temp, fileMode, boltOptions())
	if err != nil {
		return fmt.Errorf("create state file %s: %w", path, err)
	}
	err = db.Update(func(tx *bolt.Tx) error {
		for _, name := range append(bucketNames[:], bucketClients, bucketMeta) {
			if _, err := tx.CreateBucket(name); err != nil {
				return fmt.Errorf("create bucket %s: %w", name, err)
			}
		}
		return tx.Bucket(bucketMeta).Put(keyMeta, (&meta{}).encode())
	})
	if err = errors.Join(err, db.Close()); err != nil {
		return fmt.Errorf("create state file %s: %w", path, err)
	}
	return install(temp, path)
}

// install puts a synced file under its name, for ever.
func install(temp, path string) error {
	if err := os.Rename(temp, path); err != nil {
		return fmt.Errorf("install state file: %w", err)
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	err = d.Sync()
	if err = errors.Join(err, d.Close()); err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	return nil
}

func removeStale(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove stale file: %w", err)
	}
	return nil
}

// verify checks what bbolt takes for granted of the pages of a state file.
func verify(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // only read
	info, err := f.Stat()
	if err != nil {
		return err
	}
	return boltfile.Verify(f, info.Size(), func(_, _ []byte) error { return nil })
}

// inspectFile looks through a whole state file, read-only. bbolt trusts its
// pages and panics, loses records, or never comes to an end, when they are wrong,
// in goroutines of its own if the file is open for writing: so this goes first.
func inspectFile(path string) (c contents, err error) {
	o := boltOptions()
	o.ReadOnly = true
	info, err := os.Stat(path)
	if err != nil {
		return contents{}, fmt.Errorf("open state file: %w", err)
	}
	if info.Size() == 0 {
		return contents{}, openError(path, errors.New("it is empty"))
	}
	// A file that is too short faults when it is read through its mapping.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			c, err = contents{}, openError(path, fmt.Errorf("%v", p))
		}
	}()
	db, err := bolt.Open(path, fileMode, o)
	if err != nil {
		return contents{}, openError(path, err)
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if err := verify(path); err != nil {
		return contents{}, openError(path, err)
	}
	tx, err := db.Begin(false)
	if err != nil {
		return contents{}, openError(path, err)
	}
	defer func() { err = errors.Join(err, tx.Rollback()) }()
	c, err = inspect(tx)
	if err != nil {
		if !errors.Is(err, ErrDamaged) {
			return contents{}, fmt.Errorf("open state file %s: %w", path, err)
		}
		return contents{}, fmt.Errorf("open state file %s: %w: %s", path, err, adviceDamaged)
	}
	return c, nil
}
