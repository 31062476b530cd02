// SPDX-License-Identifier: Apache-2.0

package seglog

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	suffix    = ".seg"
	newSuffix = ".new"
	fileMode  = 0o600
	dirMode   = 0o700
	// maxSegmentBytes bounds a file, and with it what Open reads at once.
	maxSegmentBytes = 1 << 30
	// zeroChunk is how much of a new file is written at once: a disk that is busy with
	// it makes appends wait.
	zeroChunk = 1 << 20
)

// segment is one file of the log.
type segment struct {
	number uint32
	file   *os.File
	// capacity in sectors.
	capacity uint32
	// end is where the next append goes. Owned by whoever holds Log.writing.
	end end
	// live is how many entries of the log lie here. Guarded by Log.mu.
	live int
}

func fileName(number uint32) string { return fmt.Sprintf("%010d%s", number, suffix) }

// listSegments returns the numbers of the files in a folder, rising without a gap. What
// a crash has left of files that were being made is removed.
func listSegments(dir string) ([]uint32, error) {
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read the folder of the log: %w", err)
	}
	var numbers []uint32
	for _, f := range files {
		if strings.HasSuffix(f.Name(), newSuffix) {
			if err := os.Remove(filepath.Join(dir, f.Name())); err != nil {
				return nil, fmt.Errorf("remove what a crash has left: %w", err)
			}
			continue
		}
		n, err := strconv.ParseUint(strings.TrimSuffix(f.Name(), suffix), 10, 32)
		if err != nil || n == 0 || fileName(uint32(n)) != f.Name() {
			return nil, fmt.Errorf("%q is not a file of the log: move it out of %s", f.Name(), dir)
		}
		numbers = append(numbers, uint32(n))
	}
	slices.Sort(numbers)
	for i := 1; i < len(numbers); i++ {
		if numbers[i] != numbers[i-1]+1 {
			return nil, fmt.Errorf("%s is missing", fileName(numbers[i-1]+1))
		}
	}
	return numbers, nil
}

// openSegment opens a file that is there.
func openSegment(dir string, number uint32) (*segment, error) {
	f, err := os.OpenFile(filepath.Join(dir, fileName(number)), os.O_RDWR, fileMode)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && (info.Size() == 0 || info.Size()%sectorBytes != 0 || info.Size() > maxSegmentBytes) {
		err = fmt.Errorf("%s has %d bytes, which no segment has", fileName(number), info.Size())
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &segment{number: number, file: f, capacity: uint32(info.Size() / sectorBytes)}, nil
}

// createSegment makes a file of zeros. Blocks that have been written once cost no
// metadata when they are written again, those of fallocate do.
func createSegment(dir string, number uint32, size int64) (s *segment, err error) {
	path := filepath.Join(dir, fileName(number))
	f, err := os.OpenFile(path+newSuffix, os.O_RDWR|os.O_CREATE|os.O_TRUNC, fileMode)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close(), removeIfThere(path+newSuffix))
		}
	}()
	if err := extend(f, 0, size); err != nil {
		return nil, err
	}
	if err := os.Rename(path+newSuffix, path); err != nil {
		return nil, err
	}
	if err := syncDir(dir); err != nil {
		return nil, err
	}
	return &segment{number: number, file: f, capacity: uint32(size / sectorBytes)}, nil
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// extend writes zeros from a size on to another, and syncs them.
func extend(f *os.File, from, to int64) error {
	// The size first, at once: a crash leaves a file of the old size or of the new one.
	if err := f.Truncate(to); err != nil {
		return err
	}
	zeros := make([]byte, min(zeroChunk, to-from))
	for at := from; at < to; {
		n, err := f.WriteAt(zeros[:min(int64(len(zeros)), to-at)], at)
		if err != nil {
			return err
		}
		at += int64(n)
		// Chunk by chunk, so that an append does not wait for all of it.
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			return fmt.Errorf("fdatasync: %w", err)
		}
	}
	return f.Sync()
}

// grow makes room for an append that is larger than a segment.
func (s *segment) grow(sectors uint32) error {
	if int64(sectors)*sectorBytes > maxSegmentBytes {
		return fmt.Errorf("an append of %d sectors is larger than a segment may be", sectors)
	}
	if err := extend(s.file, int64(s.capacity)*sectorBytes, int64(sectors)*sectorBytes); err != nil {
		return err
	}
	s.capacity = sectors
	return nil
}

// write makes sealed sectors durable at the end of the segment.
func (s *segment) write(sectors []byte) error {
	if _, err := s.file.WriteAt(sectors, int64(s.end.sectors)*sectorBytes); err != nil {
		return err
	}
	if err := unix.Fdatasync(int(s.file.Fd())); err != nil {
		return fmt.Errorf("fdatasync: %w", err)
	}
	s.end.sectors += uint32(len(sectors) / sectorBytes)
	s.end.appends++
	return nil
}

// settle makes what was read of the newest segment durable, and removes the remains of
// an append that was never acknowledged. See the package's text.
func (s *segment) settle(file []byte, found scanned) error {
	if found.appends > 0 {
		from, to := int64(found.last)*sectorBytes, int64(found.sectors)*sectorBytes
		if _, err := s.file.WriteAt(file[from:to], from); err != nil {
			return err
		}
	}
	if found.torn > 0 {
		if _, err := s.file.WriteAt(make([]byte, int64(found.torn)*sectorBytes), int64(found.sectors)*sectorBytes); err != nil {
			return err
		}
	}
	return s.file.Sync()
}

// recycle gives the file of a segment that nothing lies in any more to a later one.
func (s *segment) recycle(dir string, number uint32) (*segment, error) {
	if err := os.Rename(filepath.Join(dir, fileName(s.number)), filepath.Join(dir, fileName(number))); err != nil {
		return nil, err
	}
	if err := syncDir(dir); err != nil {
		return nil, err
	}
	return &segment{number: number, file: s.file, capacity: s.capacity}, nil
}

// remove deletes the file. After an error it may be called again.
func (s *segment) remove(dir string) error {
	if err := os.Remove(filepath.Join(dir, fileName(s.number))); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := s.file.Close(); err != nil && !errors.Is(err, fs.ErrClosed) {
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
