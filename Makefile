# SPDX-License-Identifier: Apache-2.0
# Run `make help` for the list.

TOOLS := $(CURDIR)/bin
GOLANGCI_VERSION := v2.15.0
BUF_VERSION := v1.75.0
SEED ?=
ROUNDS ?= 50

.PHONY: help build test race process lint fmt proto verify breaking tidy soak chaos chaos-mutants demo fuzz tools flaky bench bench-failover

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

build: ## hanode, hactl and the example text server into bin/
	go build -o bin/ ./cmd/hanode ./cmd/hactl ./examples/textserver

test: ## all tests, uncached
	go test -count=1 ./...

race: ## all tests under the race detector
	go test -race -count=1 -timeout 15m ./...

process: ## the tests that start real processes
	go test -count=1 -tags process -timeout 10m ./testcluster/process/...

soak: ## three real processes, ROUNDS kill -9 under load, SEED to repeat a run
	go run ./testcluster/soak -rounds $(ROUNDS) $(if $(SEED),-seed $(SEED))

DURATION ?= 3m
FAULTS ?= all
NODES ?= 3
CHAOS = go build -o bin/chaos ./testcluster/chaos && bin/chaos
chaos: ## break real clusters for DURATION and check histories; SEED, FAULTS, NODES, ARGS
	@$(CHAOS) -duration "$(DURATION)" -faults "$(FAULTS)" -nodes "$(NODES)" $(if $(SEED),-seed "$(SEED)") $(ARGS)

chaos-mutants: ## show that the chaos suite catches seeded bugs; ARGS="-only NAME,... -quick"
	@$(CHAOS) mutants -v $(if $(SEED),-seed $(SEED)) $(ARGS)

demo: ## the main job: a stream that survives the death of its primary
	go run ./cmd/hanode demo

fmt: tools ## format
	$(TOOLS)/golangci-lint fmt ./...

lint: tools ## linters, import laws included
	$(TOOLS)/golangci-lint run --build-tags process,chaos ./...

proto: tools ## regenerate the protocol code
	PATH="$(TOOLS):$$PATH" buf generate

verify: tools ## what is generated or tidied must be what is committed
	PATH="$(TOOLS):$$PATH" buf lint
	PATH="$(TOOLS):$$PATH" buf format --diff --exit-code >/dev/null
	PATH="$(TOOLS):$$PATH" buf generate
	go mod tidy
	git diff --exit-code -- proto go.mod go.sum
	$(MAKE) breaking

breaking: tools ## the API and the log records may only grow
	PATH="$(TOOLS):$$PATH" buf breaking --against proto/baseline.binpb

tidy: ## go mod tidy
	go mod tidy

FUZZTIME ?= 20s
PARALLEL ?= 2
FUZZ ?= .
PKG ?= ./...
fuzz: ## every fuzz target for FUZZTIME, PARALLEL inputs at a time (FUZZ, PKG: only some)
	@FUZZTIME='$(FUZZTIME)' PARALLEL='$(PARALLEL)' FUZZ='$(FUZZ)' PKG='$(PKG)' scripts/fuzz.sh

N ?= 20
flaky: ## the cluster tests N times
	go test -count=$(N) -failfast ./testcluster/... ./node/...

tools: $(TOOLS)/golangci-lint-$(GOLANGCI_VERSION) $(TOOLS)/buf-$(BUF_VERSION)

$(TOOLS)/golangci-lint-$(GOLANGCI_VERSION):
	GOBIN=$(TOOLS) go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)
	@touch $@

$(TOOLS)/buf-$(BUF_VERSION):
	GOBIN=$(TOOLS) go install github.com/bufbuild/buf/cmd/buf@$(BUF_VERSION)
	@touch $@

bench: ## hastate beside etcd and ZooKeeper, in ratios; ARGS="-clients 1,64 -work put" (bench/, a module of its own)
	@cd bench && go build -o ../bin/bench . && ../bin/bench $(ARGS)

bench-failover: ## how long clients are without a primary; ARGS="-rounds 20 -profiles lan -cases host-lost,switchover"
	@cd bench && go build -o ../bin/bench . && ../bin/bench failover $(ARGS)
