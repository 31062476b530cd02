// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hastate/hastate"
)

func (a *app) contextCmd() *cobra.Command {
	list := &cobra.Command{
		Use: "list", Short: "List the contexts of the configuration file", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return a.listContexts() },
	}
	use := &cobra.Command{
		Use: "use NAME", Short: "Make a context the current one", Args: cobra.ExactArgs(1),
		ValidArgsFunction: completeContexts,
		RunE:              func(_ *cobra.Command, args []string) error { return a.useContext(args[0]) },
	}
	set := &cobra.Command{
		Use: "set NAME --endpoints ...", Short: "Make or change a context from the global flags", Args: cobra.ExactArgs(1),
		Long: `Make or change a context: it gets the endpoints and TLS settings that the global
flags of this command say. The first context becomes the current one.`,
		Example: "  hactl context set prod --endpoints a:7001,b:7001 --tls-ca ca.pem",
		RunE:    func(_ *cobra.Command, args []string) error { return a.setContext(args[0]) },
	}
	return noun("context", "Choose between clusters", list, use, set)
}

// contextView is one context as list shows it.
type contextView struct {
	Name      string   `json:"name"`
	Current   bool     `json:"current"`
	Endpoints []string `json:"endpoints"`
	TLS       bool     `json:"tls"`
}

func (a *app) listContexts() error {
	cfg, err := loadConfig()
	if err != nil {
		return err
	}
	views := []contextView{}
	for _, name := range slices.Sorted(maps.Keys(cfg.Contexts)) {
		t := cfg.Contexts[name]
		views = append(views, contextView{name, name == cfg.Current, t.Endpoints, t.usesTLS()})
	}
	if a.format != formatTable {
		raw, err := json.Marshal(map[string]any{"contexts": views})
		if err != nil {
			return fmt.Errorf("format output: %w", err)
		}
		return a.printJSON(raw, false)
	}
	return a.printTable(func(t table) {
		t.row("NAME", "CURRENT", "TLS", "ENDPOINTS")
		for _, v := range views {
			t.row(v.Name, yesNo(v.Current), yesNo(v.TLS), strings.Join(v.Endpoints, ","))
		}
	})
}

func (a *app) useContext(name string) error {
	cfg, err := loadConfig()
	if err != nil {
		return err
	}
	if _, ok := cfg.Contexts[name]; !ok {
		return adviceError{fmt.Errorf("context %q: %w", name, hastate.ErrNotFound), "see hactl context list, or make it with hactl context set"}
	}
	cfg.Current = name
	if err := cfg.save(); err != nil {
		return err
	}
	return a.printContext(cfg, name, "is the current one", "")
}

// printContext says what was done to a context.
func (a *app) printContext(cfg config, name, done, also string) error {
	t := cfg.Contexts[name]
	if a.format != formatTable {
		raw, err := json.Marshal(contextView{name, name == cfg.Current, t.Endpoints, t.usesTLS()})
		if err != nil {
			return fmt.Errorf("format output: %w", err)
		}
		return a.printJSON(raw, false)
	}
	return a.printTable(func(out table) {
		out.line("context %s %s: endpoints %s, TLS %s%s", name, done, strings.Join(t.Endpoints, ","), yesNo(t.usesTLS()), also)
	})
}

func (a *app) setContext(name string) error {
	if len(a.target.Endpoints) == 0 && !a.target.usesTLS() && !a.target.Plaintext {
		return usagef("context set needs --endpoints or TLS flags")
	}
	cfg, err := loadConfig()
	if err != nil {
		return err
	}
	if cfg.Contexts == nil {
		cfg.Contexts = make(map[string]target)
	}
	done := "made"
	if _, ok := cfg.Contexts[name]; ok {
		done = "changed"
	}
	cfg.Contexts[name] = a.target.over(cfg.Contexts[name])
	var also string
	switch cfg.Current {
	case "":
		cfg.Current, also = name, "; it became the current one"
	case name:
		also = "; it is the current one"
	default:
		also = "; the current one is still " + cfg.Current
	}
	if err := cfg.save(); err != nil {
		return err
	}
	return a.printContext(cfg, name, done, also)
}

func completeContexts(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	cfg, err := loadConfig()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	return slices.Sorted(maps.Keys(cfg.Contexts)), cobra.ShellCompDirectiveNoFileComp
}
