// SPDX-License-Identifier: Apache-2.0

package load

import (
	"path/filepath"
	"slices"
	"sync"

	"github.com/hastate/hastate/testcluster/chaos/record"
)

// log keeps records in memory and in a file.
type log[T any] struct {
	file *record.File[T]

	mu  sync.Mutex // guards all below
	all []T
	err error // the first that could not be written
}

func newLog[T any](dir, name string) (*log[T], error) {
	f, err := record.NewFile[T](filepath.Join(dir, name+".jsonl"))
	if err != nil {
		return nil, err
	}
	return &log[T]{file: f}, nil
}

func (l *log[T]) add(v T) {
	err := l.file.Write(v)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, v)
	if l.err == nil {
		l.err = err
	}
}

// since copies the records from an index on.
func (l *log[T]) since(i int) []T {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.all[min(max(i, 0), len(l.all)):])
}

func (l *log[T]) close() error {
	err := l.file.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return l.err
	}
	return err
}
