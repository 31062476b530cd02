// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

type modelServer struct {
	pb.UnimplementedModelServiceServer
	s *Services
}

func (x *modelServer) Register(ctx context.Context, req *pb.RegisterRequest) (*pb.RegisterResponse, error) {
	m := req.GetModel()
	if err := first(checkRequestID(req.GetRequest()), checkModel(m)); err != nil {
		return nil, err
	}
	_, err := x.s.proposeAndWait(ctx, &pb.Command{Request: req.GetRequest(), Op: &pb.Command_RegisterModel{RegisterModel: &pb.RegisterModel{Model: m}}}, "")
	if err != nil {
		return nil, err
	}
	stored, err := x.stored(m.GetRef())
	if err != nil {
		return nil, err
	}
	return &pb.RegisterResponse{Model: stored}, nil
}

func (x *modelServer) stored(ref *pb.ModelRef) (*pb.ModelVersion, error) {
	m, ok := x.s.cfg.State.Model(ref.GetName(), ref.GetVersion())
	if !ok {
		return nil, notFound("version %q of model %q: register it first", ref.GetVersion(), ref.GetName())
	}
	return m, nil
}

func (x *modelServer) GetModel(ctx context.Context, req *pb.GetModelRequest) (*pb.GetModelResponse, error) {
	if err := first(
		checkName("name", req.GetName(), hastate.MaxNameBytes),
		checkText("version", req.GetVersion(), hastate.MaxNameBytes),
		checkText("alias", req.GetAlias(), hastate.MaxNameBytes)); err != nil {
		return nil, err
	}
	if (req.GetVersion() == "") == (req.GetAlias() == "") {
		return nil, invalid("give one of version and alias")
	}
	if err := x.s.cfg.Reader.Read(ctx); err != nil {
		return nil, err
	}
	var m *pb.ModelVersion
	if alias := req.GetAlias(); alias != "" {
		var ok bool
		if m, ok = x.s.cfg.State.ModelByAlias(req.GetName(), alias); !ok {
			return nil, notFound("alias %q of model %q", alias, req.GetName())
		}
	} else {
		var err error
		if m, err = x.stored(&pb.ModelRef{Name: req.GetName(), Version: req.GetVersion()}); err != nil {
			return nil, err
		}
	}
	res := &pb.GetModelResponse{Model: m}
	_, aliases := x.s.cfg.State.Models(req.GetName())
	for _, a := range aliases {
		if a.GetName() == req.GetName() && a.GetVersion() == m.GetRef().GetVersion() {
			res.Aliases = append(res.Aliases, a.GetAlias())
		}
	}
	return res, nil
}

func (x *modelServer) ListModels(ctx context.Context, req *pb.ListModelsRequest) (*pb.ListModelsResponse, error) {
	if err := checkText("name", req.GetName(), hastate.MaxNameBytes); err != nil {
		return nil, err
	}
	if err := x.s.cfg.Reader.Read(ctx); err != nil {
		return nil, err
	}
	models, aliases := x.s.cfg.State.Models(req.GetName())
	return &pb.ListModelsResponse{Models: models, Aliases: aliases}, nil
}

func (x *modelServer) SetAlias(ctx context.Context, req *pb.SetAliasRequest) (*pb.SetAliasResponse, error) {
	if err := first(
		checkRequestID(req.GetRequest()),
		checkName("name", req.GetName(), hastate.MaxNameBytes),
		checkName("alias", req.GetAlias(), hastate.MaxNameBytes),
		checkName("version", req.GetVersion(), hastate.MaxNameBytes),
		checkText("if_version", req.GetIfVersion(), hastate.MaxNameBytes)); err != nil {
		return nil, err
	}
	res, err := x.s.proposeAndWait(ctx, &pb.Command{Request: req.GetRequest(), Op: &pb.Command_SetModelAlias{SetModelAlias: &pb.SetModelAlias{
		Name: req.GetName(), Alias: req.GetAlias(), Version: req.GetVersion(), IfVersion: req.GetIfVersion(),
	}}}, "")
	if err != nil {
		return nil, err
	}
	_, aliases := x.s.cfg.State.Models(req.GetName())
	for _, a := range aliases {
		if a.GetName() == req.GetName() && a.GetAlias() == req.GetAlias() {
			return &pb.SetAliasResponse{Alias: a}, nil
		}
	}
	// It was set, and somebody has deleted it since.
	return &pb.SetAliasResponse{Alias: &pb.ModelAlias{
		Name: req.GetName(), Alias: req.GetAlias(), Version: req.GetVersion(), Revision: res.GetRevision(),
	}}, nil
}

func (x *modelServer) DeleteAlias(ctx context.Context, req *pb.DeleteAliasRequest) (*pb.DeleteAliasResponse, error) {
	if err := first(
		checkRequestID(req.GetRequest()),
		checkName("name", req.GetName(), hastate.MaxNameBytes),
		checkName("alias", req.GetAlias(), hastate.MaxNameBytes)); err != nil {
		return nil, err
	}
	_, err := x.s.propose(ctx, &pb.Command{Request: req.GetRequest(), Op: &pb.Command_DeleteModelAlias{DeleteModelAlias: &pb.DeleteModelAlias{
		Name: req.GetName(), Alias: req.GetAlias(),
	}}}, "", 0)
	if err != nil {
		return nil, err
	}
	return &pb.DeleteAliasResponse{}, nil
}
