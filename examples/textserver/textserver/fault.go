// SPDX-License-Identifier: Apache-2.0

package textserver

import (
	"context"
	"net/http"
	"sync"
)

// fault makes the engine hang on demand, for tests and drills: nothing makes
// progress, all calls of InstanceService and all requests block, and /health
// still says 200. It is the commonest way in which model servers fail.
type fault struct {
	mu sync.Mutex // guards free
	// free is closed when the hang ends; nil without one.
	free chan struct{}
}

func (f *fault) hang() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.free == nil {
		f.free = make(chan struct{})
	}
}

func (f *fault) clear() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.free != nil {
		close(f.free)
		f.free = nil
	}
}

// wait returns at once, or when a hang ends, or with the cause of ctx.
func (f *fault) wait(ctx context.Context) error {
	f.mu.Lock()
	free := f.free
	f.mu.Unlock()
	if free == nil {
		return nil
	}
	select {
	case <-free:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// serve is POST /fault/hang and POST /fault/clear.
func (f *fault) serve(w http.ResponseWriter, r *http.Request) {
	switch r.PathValue("what") {
	case "hang":
		f.hang()
	case "clear":
		f.clear()
	default:
		writeError(w, http.StatusNotFound, "not_found", "there are the faults hang and clear")
		return
	}
	w.WriteHeader(http.StatusNoContent)
}
