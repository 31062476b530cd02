// SPDX-License-Identifier: Apache-2.0

package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type state struct {
	Cut   bool              `json:"cut"`
	Links map[string]string `json:"links"`
}

// serve listens in a folder whose path is short enough.
func serve(t *testing.T, apply func(state) error) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	s, err := Listen(path, apply)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(path); err == nil {
			t.Error("the socket was left behind")
		}
	})
	return path
}

func TestSend_ReplacesTheWholeState(t *testing.T) {
	var mu sync.Mutex
	var got []state
	path := serve(t, func(s state) error {
		mu.Lock()
		defer mu.Unlock()
		got = append(got, s)
		return nil
	})
	for _, s := range []state{{Cut: true, Links: map[string]string{"n2": "x"}}, {}} {
		if err := Send(t.Context(), path, s); err != nil {
			t.Fatal(err)
		}
	}
	if len(got) != 2 || !got[0].Cut || got[0].Links["n2"] != "x" || got[1].Cut || got[1].Links != nil {
		t.Fatalf("%+v", got)
	}
}

// What is refused is answered with the reason, and the server goes on.
func TestSend_BadInput(t *testing.T) {
	applied := 0
	path := serve(t, func(s state) error {
		if s.Cut {
			return errors.New("nothing to cut")
		}
		applied++
		return nil
	})
	if err := Send(t.Context(), path, state{Cut: true}); err == nil || !strings.Contains(err.Error(), "nothing to cut") {
		t.Errorf("refused by apply: %v", err)
	}
	for raw, want := range map[string]string{
		"no":                          "one JSON object",
		`{"cutt":true}`:               "cutt",
		`{"cut":"yes"}`:               "cut",
		`{}{}`:                        "more than one",
		`{"links":"` + long():         "bytes",
		`[1]`:                         "array",
		"{\"cut\":false}\n\n  \n{}\n": "more than one",
	} {
		if got := exchange(t, path, raw); !strings.Contains(got, want) {
			t.Errorf("%.40s: answer %q, want %q in it", raw, got, want)
		}
	}
	if applied != 0 {
		t.Errorf("%d bad states were applied", applied)
	}
	if err := Send(t.Context(), path, state{}); err != nil {
		t.Error(err)
	}
}

func long() string { return string(bytes.Repeat([]byte("x"), maxState)) }

// exchange sends raw bytes and returns the error in the answer.
func exchange(t *testing.T, path, raw string) string {
	t.Helper()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte(raw)); err != nil {
		t.Fatal(err)
	}
	if err := conn.(*net.UnixConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	var a answer
	if err := json.NewDecoder(conn).Decode(&a); err != nil {
		t.Fatal(err)
	}
	return a.Error
}

// Close does not wait for somebody who says nothing.
func TestClose_EndsExchanges(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	s, err := Listen(path, func(state) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := Send(t.Context(), path, state{}); err == nil || !strings.Contains(err.Error(), "is the process up") {
		t.Errorf("after Close: %v", err)
	}
}

func TestListen_WhatIsInTheWay(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	// As a killed process leaves it.
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	s, err := Listen(path, func(state) error { return nil })
	if err != nil {
		t.Fatalf("a stale socket: %v", err)
	}
	if err := Send(context.Background(), path, state{}); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(path, func(state) error { return nil }); err == nil {
		t.Error("a file was taken for a socket")
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "precious" {
		t.Errorf("the file: %q, %v", b, err)
	}
	if _, err := Listen(filepath.Join(dir, strings.Repeat("x", 120)), func(state) error { return nil }); err == nil || !strings.Contains(err.Error(), "shorter") {
		t.Errorf("a long path: %v", err)
	}
}
