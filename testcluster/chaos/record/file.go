// SPDX-License-Identifier: Apache-2.0

package record

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sync"
)

// maxLine bounds one record.
const maxLine = 4 << 20

// File is a file of records, one JSON object a line. A line is written with one
// call, so that a process that is killed leaves at most its last line torn. Each
// process writes a file of its own.
type File[T any] struct {
	mu sync.Mutex // guards f
	f  *os.File
}

// NewFile makes a file, or goes on with one that was closed in good order.
func NewFile[T any](path string) (*File[T], error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644) //nolint:gosec // for people to look at
	if err != nil {
		return nil, fmt.Errorf("open record: %w", err)
	}
	return &File[T]{f: f}, nil
}

// Write adds one record. It reaches the kernel, not the disk.
func (f *File[T]) Write(v T) error {
	line, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode record: %w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, err := f.f.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("write record: %w", err)
	}
	return nil
}

// Close closes the file.
func (f *File[T]) Close() error { return f.f.Close() }

// Read reads a file. A last line without an end was torn by a kill and is left
// out; anything else that cannot be read is an error.
func Read[T any](path string) ([]T, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open record: %w", err)
	}
	defer func() { _ = f.Close() }()
	r := bufio.NewReaderSize(f, 64<<10)
	var all []T
	for {
		line, err := r.ReadBytes('\n')
		if err == io.EOF {
			return all, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read record %s: %w", path, err)
		}
		if len(line) > maxLine {
			return nil, fmt.Errorf("record %s: line %d has %d bytes, the limit is %d", path, len(all)+1, len(line), maxLine)
		}
		var v T
		if err := json.Unmarshal(line, &v); err != nil {
			return nil, fmt.Errorf("record %s: line %d: %w", path, len(all)+1, err)
		}
		all = append(all, v)
	}
}
