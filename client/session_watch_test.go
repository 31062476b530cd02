// SPDX-License-Identifier: Apache-2.0

package client_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/hastate/hastate/client"
	"github.com/hastate/hastate/internal/wait"
)

func TestSessions_Watch(t *testing.T) {
	cluster := newFakeCluster("c1")
	n1, n2 := startNode(t, "n1", cluster), startNode(t, "n2", cluster)
	c := dial(t, client.Options{}, n1, n2)
	s := c.Sessions("g")
	if _, err := s.Put(t.Context(), put("a")); err != nil {
		t.Fatal(err)
	}
	var got []string
	enough := errors.New("enough")
	err := s.Watch(t.Context(), "", 0, func(change client.SessionChange) error {
		if change.Resync {
			got = append(got, "resync")
			return nil
		}
		if change.Event == nil {
			return nil
		}
		got = append(got, change.Event.GetSession().GetId())
		switch len(got) {
		case 1:
			// The watch goes on at the other node, with what comes next.
			_, err := s.Put(t.Context(), put("b"))
			n1.server.Stop()
			return err
		case 2:
			// The other node has forgotten the revision to go on from.
			cluster.mu.Lock()
			cluster.bump()
			cluster.oldest = cluster.revision + 10
			cluster.mu.Unlock()
			return nil
		}
		return enough
	})
	if !errors.Is(err, enough) {
		t.Fatal(err)
	}
	if fmt.Sprint(got) != "[a b resync a]" {
		t.Errorf("got %v", got)
	}
}

// An idle watch stays where it is as long as its node answers, and no longer.
func TestSessions_Watch_Idle(t *testing.T) {
	cluster := newFakeCluster("c1")
	n1, n2 := startNode(t, "n1", cluster), startNode(t, "n2", cluster)
	c := dial(t, client.Options{AttemptTimeout: 200 * time.Millisecond}, n1, n2)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- c.Sessions("g").Watch(ctx, "", 0, func(client.SessionChange) error { return nil })
	}()
	wait.Until(t, 10*time.Second, func() error {
		if asked := n1.called("Status") + n2.called("Status"); asked < 2 {
			return fmt.Errorf("asked %d times whether it answers", asked)
		}
		return nil
	})
	if watches := n1.called("WatchSessions"); watches != 1 || n2.called("WatchSessions") != 0 {
		t.Errorf("%d and %d watches", watches, n2.called("WatchSessions"))
	}
	n1.hang(true)
	wait.Until(t, 10*time.Second, func() error {
		if n2.called("WatchSessions") == 0 {
			return errors.New("the watch is still at the hung node")
		}
		return nil
	})
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
