// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/hastate/hastate/internal/proc"
)

// burn keeps one core busy until it is ended; with the name of a file, the disk.
func burn(ctx context.Context, args []string) error {
	if len(args) > 0 {
		return burnDisk(ctx, args[0])
	}
	x := uint64(1)
	for n := uint64(0); ; n++ {
		x = x*6364136223846793005 + 1442695040888963407
		if n%(1<<20) == 0 && ctx.Err() != nil {
			return nil
		}
	}
}

// burnDisk writes a MiB and makes it durable, over and over in the same 64 MiB.
func burnDisk(ctx context.Context, path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	block := make([]byte, 1<<20)
	for n := int64(0); ctx.Err() == nil; n++ {
		if _, err := f.WriteAt(block, n%64*int64(len(block))); err != nil {
			return err
		}
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			return err
		}
	}
	return nil
}

// burners are processes that take what the machine has.
type burners []*proc.Process

func startBurners(o options, dir string) (burners, error) {
	var all burners
	start := func(name string, args ...string) error {
		p, err := proc.Start(proc.Spec{Name: name, Path: o.self, Args: append([]string{"burn"}, args...)})
		if err == nil {
			all = append(all, p)
		}
		return err
	}
	var errs []error
	for i := range o.burn {
		errs = append(errs, start(fmt.Sprintf("burner %d", i)))
	}
	for i := range o.burnDisk {
		errs = append(errs, start(fmt.Sprintf("disk burner %d", i), filepath.Join(dir, fmt.Sprintf("burn-%d", i))))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, errors.Join(err, all.stop())
	}
	return all, nil
}

func (b burners) stop() error {
	var errs []error
	for _, p := range b {
		errs = append(errs, p.Kill())
	}
	return errors.Join(errs...)
}
