SHELL := /bin/bash
.DELETE_ON_ERROR:

# The Go command: tools/setup installs what is missing and says which one to use.
GO = $(shell tail -1 bin/go 2>/dev/null)

.PHONY: help deps build generate check test test-bypass test-deploy load race fuzz demo bench clean

help: ## list what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

deps: ## install what is missing, from Debian's packages (as root)
	@mkdir -p bin && tools/setup > bin/go

build: deps ## build bin/sallyport
	$(GO) build -o bin/sallyport ./cmd/sallyport

generate: deps ## compile the kernel side and other generated files anew
	$(GO) generate ./bpf

check: deps ## formatted, vetted, and the committed kernel objects are what their sources give
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -l $$(git ls-files '*.go'); exit 1; }
	$(GO) vet ./...
	@before=$$(sha256sum bpf/*_bpfel.*) && $(MAKE) -s generate && after=$$(sha256sum bpf/*_bpfel.*) && \
	  test "$$before" = "$$after" || { echo "the committed objects in bpf/ are not what their sources give: commit what make generate made"; exit 1; }

test: deps build ## all tests, as root
	$(GO) test -count=1 ./...

test-bypass: deps ## every known way out, tried without Sallyport and with it, and what stopped it (as root)
	@set -o pipefail; $(GO) test -count=1 -parallel 8 -v ./tools/bypass | grep -vE '^(=== |    --- PASS|--- PASS)'

test-deploy: build ## the systemd units in a virtual machine, the Kubernetes manifests against a real API server (as root)
	tools/deploy/kubernetes $(GO)
	tools/deploy/systemd bin/sallyport

load: deps ## 10,000 connections of agents open at once and 2,000 new a second, each checked for whose it is; then 9,000 sessions (as root)
	SALLYPORT_LOAD=10000 $(GO) test -count=1 -v -run TestManyConnectionsAtOnceAreAllTheirOwn ./intercept
	SALLYPORT_LOAD=9000 $(GO) test -count=1 -v -run TestManySessionsAtOnce ./cmd/sallyport

FORKING = TestAProcessThatLivesAMomentIsKnownCompletely
race: deps build ## all tests but test-bypass, with the race detector but for those that fork by hand, which that does not survive
	$(GO) test -count=1 -race -skip $(FORKING) $$($(GO) list ./... | grep -vE "/bpf$$|/tools/bypass$$")
	$(GO) test -count=1 ./bpf
	$(GO) test -count=1 -run $(FORKING) ./intercept

FUZZTIME ?= 20s
fuzz: deps ## each fuzz test for FUZZTIME
	@for p in $$($(GO) list ./...); do for f in $$($(GO) test -list '^Fuzz' $$p | grep '^Fuzz'); do \
	  echo "== $$p $$f" && $(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) $$p || exit 1; done; done

demo: build ## the whole story in a minute: masked, refused, held, approved, verified, replayed (as root)
	@tools/demo/demo bin/sallyport

bench: build ## direct, pgbouncer and Sallyport in one run, with ratios (as root)
	$(GO) run ./tools/bench -sallyport bin/sallyport

clean: ## remove what building made
	rm -rf bin
