// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.yaml.in/yaml/v3"
)

// stubEnv makes the test program stand in for hanode and for the model server.
const stubEnv = "RIG_TEST_STUB"

func TestMain(m *testing.M) {
	if os.Getenv(stubEnv) != "" {
		if err := stub(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1) //nolint:forbidigo // a main like any other
		}
		return
	}
	code, entered, err := Enter(os.Args[1:])
	switch {
	case errors.Is(err, ErrUnsupported): // the tests that need root skip themselves
	case err != nil:
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1) //nolint:forbidigo // a main like any other
	case !entered:
		os.Exit(code) //nolint:forbidigo // a main like any other
	}
	if dir := os.Getenv(holdEnv); dir != "" {
		if err := hold(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1) //nolint:forbidigo // a main like any other
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// endCode is the exit code of a stub that was told to end.
const endCode = 7

// stub prints what it is told on its control socket, echoes on its own port, and
// with the argument "write" writes to its data folder.
func stub(args []string) error {
	var address, data string
	socket := os.Getenv("HANODE_CHAOS_SOCKET")
	if args[0] == "run" {
		text, err := os.ReadFile(args[slices.Index(args, "--config")+1])
		if err != nil {
			return err
		}
		var c config
		if err := yaml.Unmarshal(text, &c); err != nil {
			return err
		}
		address, data = c.Listen, c.DataDir
	} else {
		socket, address = args[slices.Index(args, "--control")+1], args[slices.Index(args, "--http")+1]
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	go echo(listener)
	controls, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	go obey(controls)
	fmt.Println("up", args)
	for _, name := range []string{"RATE", "LEASES", "WATCHDOG_OFF"} {
		fmt.Println(name, os.Getenv("HANODE_CHAOS_"+name))
	}
	if args[len(args)-1] == "write" {
		if err := writeData(data); err != nil {
			return err
		}
	}
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM)
	<-end
	return nil
}

func echo(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			_, _ = io.Copy(conn, conn)
			conn.Close()
		}()
	}
}

func obey(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		var body json.RawMessage
		answer := map[string]string{"error": ""}
		if err := json.NewDecoder(conn).Decode(&body); err != nil {
			answer["error"] = err.Error()
		}
		fmt.Printf("told %s\n", body)
		if bytes.Contains(body, []byte(`"end"`)) { // as a server does that ends: its socket is closed before it has
			l.Close()
			conn.Close()
			time.AfterFunc(50*time.Millisecond, func() { os.Exit(endCode) }) //nolint:forbidigo // that is what it is told
			return
		}
		if bytes.Contains(body, []byte(`"bad"`)) {
			answer["error"] = "no such field"
		}
		_ = json.NewEncoder(conn).Encode(answer)
		conn.Close()
	}
}

// writeData leaves synced and unsynced bytes and files, and goes on to write.
func writeData(dir string) error {
	f, err := os.Create(filepath.Join(dir, "file"))
	if err != nil {
		return err
	}
	if _, err := f.WriteString("synced"); err != nil {
		return err
	}
	if err := errors.Join(f.Sync(), syncFolder(dir)); err != nil {
		return err
	}
	if _, err := f.WriteString(", not synced"); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "lost"), []byte("not synced"), 0o600); err != nil {
		return err
	}
	// As programs replace a file that forget to fsync it.
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "new"), []byte("not synced"), 0o600), os.Rename(filepath.Join(dir, "new"), filepath.Join(dir, "renamed"))); err != nil {
		return err
	}
	fmt.Println("written")
	for i := 0; ; i++ {
		if err := os.WriteFile(filepath.Join(dir, "again"), fmt.Append(nil, i), 0o600); err != nil {
			fmt.Println("write fails:", err)
			return nil
		}
	}
}
