# relayd. `make demo` shows the main job, `make test` passes all tests; `make check` is what CI runs.
SHELL      := /bin/bash
GO         ?= go
VERSION    ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
COMMIT     ?= $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
LDFLAGS    := -X main.version=$(VERSION) -X main.commit=$(COMMIT)
BIN        := bin/relayd
TEST_FLAGS ?= -race -timeout 9m

.PHONY: screenshots help build demo test test-deps check fmt fmt-check vet lint shellcheck generate generate-check chaos faults bench fuzz hotsender clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

build: ## compile to bin/relayd
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN) ./cmd/relayd

demo: build ## relay, simulated Exchange Online and Entra ID in one process; two messages through it
	$(BIN) demo $(DEMO_FLAGS)

test-deps: ## install the mail clients the tests use (Debian: apt and npm), or say what is missing
	@scripts/test-deps

test: test-deps ## all tests, race detector on
	$(GO) test $(TEST_FLAGS) ./...

check: fmt-check vet lint shellcheck generate-check test ## everything CI checks

fmt: ## format all sources
	gofmt -w $$(git ls-files '*.go')

fmt-check:
	@files=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$files" ]; then echo "not formatted (make fmt): $$files"; exit 1; fi

vet:
	$(GO) vet ./...
	@$(GO) mod tidy -diff >/dev/null || { echo "go.mod is not tidy: go mod tidy"; exit 1; }

lint: ## golangci-lint, of the version in tools/go.mod
	$(GO) tool -modfile=tools/go.mod golangci-lint run

shellcheck:
	@if command -v shellcheck >/dev/null; then shellcheck .ci/run $$(git ls-files scripts); else echo "skipped: shellcheck is not installed"; fi

generate: build ## rewrite generated files (the configuration's JSON Schema, the pages of replies, the API's description)
	$(BIN) config schema > docs/relayd.schema.json
	$(BIN) config replies > docs/replies.md
	$(BIN) config token-refusals > docs/token-refusals.md
	$(BIN) config openapi > docs/openapi.json

generate-check: build
	@{ $(BIN) config schema | diff -u docs/relayd.schema.json - && $(BIN) config replies | diff -u docs/replies.md - && \
	  $(BIN) config token-refusals | diff -u docs/token-refusals.md - && $(BIN) config openapi | diff -u docs/openapi.json -; } || { echo "generated files are stale: make generate"; exit 1; }

screenshots: ## take the pictures in docs/images anew (chromium)
	mkdir -p docs/images && TEST_SCREENSHOTS=$(CURDIR)/docs/images $(GO) test -count=1 -run TestPage ./test/browser

bench: ## relayd and Postfix side by side (root, Debian package postfix)
	$(GO) run ./test/bench $(BENCH_FLAGS)

clean: ## remove what was built
	rm -rf bin dist

chaos: ## kill -9 a relay under load every 2 s for 5 minutes and print the ledger
	$(GO) run ./test/chaos $(CHAOS_FLAGS)

hotsender: ## what a sender with 90% of all mail costs the others, side by side
	$(GO) run ./test/hotsender $(HOTSENDER_FLAGS)

faults: ## 20,000 messages of 200 senders through a far end with every fault, and the ledger
	$(GO) run ./test/faults $(FAULTS_FLAGS)

FUZZTIME ?= 60s
fuzz: ## every fuzz target, FUZZTIME each
	@set -e; $(GO) list ./... | while read -r pkg; do \
	  for target in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
	    echo "== $$pkg $$target"; $(GO) test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x $$pkg </dev/null; \
	  done; done
