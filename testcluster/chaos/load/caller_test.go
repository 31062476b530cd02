// SPDX-License-Identifier: Apache-2.0

package load

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
)

// TestCaller_KeepsConnections: a server that accepts no connections any more is still
// asked over the one that there is, whether it has served or refused before.
func TestCaller_KeepsConnections(t *testing.T) {
	var primary atomic.Bool
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if !primary.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		fmt.Fprint(w, `{"node":"n1","group":"g","epoch":5}`)
	}))
	t.Cleanup(server.Close)
	c := newCaller(&Load{o: Options{CallTimeout: patience}}, nil, "g")
	t.Cleanup(c.http.CloseIdleConnections)
	for i, serves := range []bool{true, false, true, false} {
		primary.Store(serves)
		got, err := c.askAt(t.Context(), server.Listener.Addr().String())
		switch {
		case serves && (err != nil || got.Epoch != 5):
			t.Errorf("request %d: %+v, %v", i, got, err)
		case !serves && (err == nil || !strings.Contains(err.Error(), "answered 503")):
			t.Errorf("request %d, which should be refused: %+v, %v", i, got, err)
		}
		if i == 0 {
			server.Listener.Close()
		}
	}
}
