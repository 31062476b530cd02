// SPDX-License-Identifier: Apache-2.0

package model

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io"
)

// The rates that the clock may be given.
const minRate, maxRate = 0.5, 2

// config is what the command line says.
type config struct {
	node, group         string
	grpc, http, control string
	served, promotions  string
	rate                float64
}

// parse reads the arguments of Run.
func parse(args []string, stderr io.Writer) (config, error) {
	var c config
	fs := flag.NewFlagSet("model", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.StringVar(&c.node, "node", "", "id of the node beside it")
	fs.StringVar(&c.group, "group", "", "group that it is of (default: default)")
	fs.StringVar(&c.grpc, "grpc", "", "address of InstanceService")
	fs.StringVar(&c.http, "http", "", "address for clients")
	fs.StringVar(&c.control, "control", "", "unix socket that takes Faults")
	fs.StringVar(&c.served, "served", "", "file of the requests that it served")
	fs.StringVar(&c.promotions, "promotions", "", "file of the epochs that it was promoted under")
	fs.Float64Var(&c.rate, "clock-rate", 1, "rate of the clock of its lease")
	if err := fs.Parse(args); err != nil {
		return c, err
	}
	c.group = cmp.Or(c.group, "default")
	var errs []error
	for _, f := range [][2]string{{"node", c.node}, {"grpc", c.grpc}, {"http", c.http}, {"control", c.control}, {"served", c.served}, {"promotions", c.promotions}} {
		if f[1] == "" {
			errs = append(errs, fmt.Errorf("--%s is missing", f[0]))
		}
	}
	if !(c.rate >= minRate && c.rate <= maxRate) {
		errs = append(errs, fmt.Errorf("--clock-rate is %v: use %v to %v", c.rate, minRate, maxRate))
	}
	if fs.NArg() > 0 {
		errs = append(errs, fmt.Errorf("unexpected argument %q", fs.Arg(0)))
	}
	return c, errors.Join(errs...)
}
