// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"regexp"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/hastate/hastate/client"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

func (a *app) modelCmd() *cobra.Command {
	return noun("model", "Show and change the registry of model versions",
		a.modelListCmd(), a.modelShowCmd(), a.modelRegisterCmd(), a.modelAliasCmd())
}

var isDigest = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// parseModel reads NAME:VERSION or NAME@ALIAS.
func parseModel(text string) (*pb.GetModelRequest, error) {
	if name, alias, ok := strings.Cut(text, "@"); ok && name != "" && alias != "" {
		return &pb.GetModelRequest{Name: name, Alias: alias}, nil
	}
	if name, version, ok := strings.Cut(text, ":"); ok && name != "" && version != "" {
		return &pb.GetModelRequest{Name: name, Version: version}, nil
	}
	return nil, usagef("model %q is neither NAME:VERSION nor NAME@ALIAS", text)
}

// getModel finds a version, with its digest, and its aliases.
func getModel(ctx context.Context, c *client.Client, text string) (*pb.ModelVersion, *pb.GetModelResponse, error) {
	req, err := parseModel(text)
	if err != nil {
		return nil, nil, err
	}
	var resp *pb.GetModelResponse
	err = c.Call(ctx, client.Repeatable, func(ctx context.Context, cc grpc.ClientConnInterface) (err error) {
		resp, err = pb.NewModelServiceClient(cc).GetModel(ctx, req)
		return err
	})
	if err != nil {
		return nil, nil, fmt.Errorf("get model %q: %w", text, err)
	}
	return resp.GetModel(), resp, nil
}

func (a *app) modelListCmd() *cobra.Command {
	return &cobra.Command{
		Use: "list [NAME]", Short: "List the versions of one model, or of all", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			resp, err := call(a, cmd, client.Repeatable, client.DefaultTimeout,
				func(ctx context.Context, cc grpc.ClientConnInterface) (*pb.ListModelsResponse, error) {
					return pb.NewModelServiceClient(cc).ListModels(ctx, &pb.ListModelsRequest{Name: strings.Join(args, "")})
				})
			if err != nil {
				return fmt.Errorf("list models: %w", err)
			}
			return a.print(resp, func(t table) {
				aliases := make(map[string][]string)
				for _, al := range resp.GetAliases() {
					key := al.GetName() + ":" + al.GetVersion()
					aliases[key] = append(aliases[key], al.GetAlias())
				}
				t.row("MODEL", "ALIASES", "DIGEST", "ENGINE", "URI", "REGISTERED")
				for _, m := range resp.GetModels() {
					t.row(modelText(m.GetRef()), strings.Join(aliases[modelText(m.GetRef())], ","), m.GetRef().GetDigest(), m.GetEngine(), m.GetUri(), stamp(m.GetCreatedUnixMs()))
				}
			})
		},
	}
}

func (a *app) modelShowCmd() *cobra.Command {
	return &cobra.Command{
		Use: "show NAME:VERSION | NAME@ALIAS", Short: "Show one model version", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var resp *pb.GetModelResponse
			err := a.with(cmd, client.DefaultTimeout, func(ctx context.Context, c *client.Client) (err error) {
				_, resp, err = getModel(ctx, c, args[0])
				return err
			})
			if err != nil {
				return err
			}
			return a.print(resp, func(t table) { modelTable(t, resp.GetModel(), resp.GetAliases()) })
		},
	}
}

func modelTable(t table, m *pb.ModelVersion, aliases []string) {
	t.row("MODEL", modelText(m.GetRef()))
	t.row("ALIASES", strings.Join(aliases, ","))
	t.row("DIGEST", m.GetRef().GetDigest())
	t.row("URI", m.GetUri())
	t.row("ENGINE", m.GetEngine())
	t.row("ARGUMENTS", m.GetArgsDigest())
	t.row("TOKENIZER", m.GetTokenizerDigest())
	t.row("ADAPTERS", pairsText(m.GetAdapters()))
	t.row("LABELS", pairsText(m.GetLabels()))
	t.row("BYTES", m.GetSizeBytes())
	t.row("REGISTERED", stamp(m.GetCreatedUnixMs()))
	t.row("BY", m.GetCreatedBy())
}

func (a *app) modelRegisterCmd() *cobra.Command {
	m := &pb.ModelVersion{Ref: &pb.ModelRef{}}
	cmd := &cobra.Command{
		Use: "register NAME:VERSION --digest sha256:...", Short: "Register an immutable model version", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, version, ok := strings.Cut(args[0], ":")
			if !ok || name == "" || version == "" {
				return usagef("%q is not NAME:VERSION", args[0])
			}
			if m.Ref.Digest == "" {
				return usagef("model register needs --digest: a version is pinned by it")
			}
			if !isDigest.MatchString(m.Ref.Digest) {
				return usagef(`--digest %q is not "sha256:" and 64 lower-case hex digits`, m.Ref.Digest)
			}
			m.Ref.Name, m.Ref.Version = name, version
			// Repeatable: the same version with the same digest again is no error.
			resp, err := call(a, cmd, client.Repeatable, client.DefaultTimeout,
				func(ctx context.Context, cc grpc.ClientConnInterface) (*pb.RegisterResponse, error) {
					return pb.NewModelServiceClient(cc).Register(ctx, &pb.RegisterRequest{Model: m})
				})
			if err != nil {
				return fmt.Errorf("register model %q: %w", args[0], err)
			}
			return a.print(resp, func(t table) { modelTable(t, resp.GetModel(), nil) })
		},
	}
	f := cmd.Flags()
	f.StringVar(&m.Ref.Digest, "digest", "", "content digest, `sha256:<hex>`")
	f.StringVar(&m.Uri, "uri", "", "where it is fetched from")
	f.StringVar(&m.Engine, "engine", "", "engine that serves it, for example vllm")
	f.StringVar(&m.ArgsDigest, "args-digest", "", "digest of the engine's arguments")
	f.StringVar(&m.TokenizerDigest, "tokenizer-digest", "", "digest of tokenizer and chat template")
	f.StringToStringVar(&m.Adapters, "adapter", nil, "`name=digest` of an adapter, may be repeated")
	f.StringToStringVar(&m.Labels, "label", nil, "`key=value`, may be repeated")
	f.Uint64Var(&m.SizeBytes, "size", 0, "size in bytes")
	f.StringVar(&m.CreatedBy, "by", "", "who registers it")
	return cmd
}

func (a *app) modelAliasCmd() *cobra.Command {
	var ifVersion string
	var remove bool
	cmd := &cobra.Command{
		Use: "alias NAME ALIAS [VERSION]", Short: "Point an alias to a version, or remove it", Args: cobra.RangeArgs(2, 3),
		Example: "  hactl model alias llama champion v7\n  hactl model alias llama candidate --delete",
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case remove && (len(args) == 3 || ifVersion != ""):
				return usagef("--delete takes no version")
			case remove:
				return a.deleteAlias(cmd, args[0], args[1])
			case len(args) == 2:
				return usagef("model alias needs a version, or --delete")
			}
			return a.setAlias(cmd, &pb.SetAliasRequest{Name: args[0], Alias: args[1], Version: args[2], IfVersion: ifVersion})
		},
	}
	cmd.Flags().StringVar(&ifVersion, "if-version", "", "only if the alias points to this `version` now")
	cmd.Flags().BoolVar(&remove, "delete", false, "remove the alias")
	return cmd
}

func (a *app) setAlias(cmd *cobra.Command, req *pb.SetAliasRequest) error {
	kind := client.Repeatable
	if req.GetIfVersion() != "" {
		kind = client.Once // a second attempt would find the version of the first
	}
	resp, err := call(a, cmd, kind, client.DefaultTimeout,
		func(ctx context.Context, cc grpc.ClientConnInterface) (*pb.SetAliasResponse, error) {
			return pb.NewModelServiceClient(cc).SetAlias(ctx, req)
		})
	if err != nil {
		return fmt.Errorf("set alias %s@%s: %w", req.GetName(), req.GetAlias(), err)
	}
	return a.print(resp, func(t table) { t.line("%s@%s is %s", req.GetName(), req.GetAlias(), resp.GetAlias().GetVersion()) })
}

func (a *app) deleteAlias(cmd *cobra.Command, name, alias string) error {
	resp, err := call(a, cmd, client.Once, client.DefaultTimeout,
		func(ctx context.Context, cc grpc.ClientConnInterface) (*pb.DeleteAliasResponse, error) {
			return pb.NewModelServiceClient(cc).DeleteAlias(ctx, &pb.DeleteAliasRequest{Name: name, Alias: alias})
		})
	if err != nil {
		return fmt.Errorf("delete alias %s@%s: %w", name, alias, err)
	}
	return a.print(resp, func(t table) { t.line("%s@%s is removed", name, alias) })
}
