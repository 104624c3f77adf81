# Everything sets itself up in .venv, once, and again only when the project file or the lock changed.
# Needs Python 3.11 or newer with pip; takes uv instead of pip where it is there.
#
#   PYTHON=python3.12         another interpreter than the first that is new enough
#   TORCH_INDEX=https://download.pytorch.org/whl/cpu
#                             torch without CUDA (0.2 GB instead of 5.4 GB), where your network reaches that index; not checked against hashes

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
TORCH_INDEX ?=
SECONDS_OF_DEMO ?= 60
SEEDS ?= 2000
BASE ?=
CHAOS ?=
PYTEST := $(BIN)/python -m pytest
REST := --ignore=tests/simulation --cov --cov-report=

.PHONY: help
help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{ printf "  make %-16s %s\n", $$1, $$2 }'

.PHONY: demo
demo: $(READY) ## the daemon on an embedded broker, with a live view, for a minute
	$(BIN)/anomalyd demo --seconds $(SECONDS_OF_DEMO)

.PHONY: test
test: $(READY) ## everything: linters and all tests with coverage; against a real Kafka where java and mvn are
	@# Side by side: the simulation and what else needs processors only, and the tests that mostly wait for brokers, which go first. Kernels are
	@# compiled in front of that, once and without coverage.
	@logs=$$(mktemp -d); rm -f .cache/coverage .cache/coverage.*; \
	nice -n 15 $(PYTEST) tests/simulation >$$logs/simulation 2>&1 & simulation=$$!; alone=; \
	trap 'kill $$simulation $$alone 2>/dev/null || true; rm -rf "$$logs"' EXIT; \
	$(MAKE) lint; \
	$(BIN)/python -m anomalyd.warmup; \
	COVERAGE_FILE=.cache/coverage.alone nice -n 5 $(PYTEST) $(REST) -m "not broker" -o timeout=600 >$$logs/alone 2>&1 & alone=$$!; \
	code=0; COVERAGE_FILE=.cache/coverage.brokers $(PYTEST) $(REST) -m broker || code=$$?; \
	wait $$alone || code=$$?; echo "== the tests that need no broker"; cat $$logs/alone; \
	wait $$simulation || code=$$?; echo "== the simulation"; cat $$logs/simulation; \
	$(BIN)/coverage combine --quiet || code=$$?; $(BIN)/coverage report || code=$$?; \
	exit $$code

.PHONY: check
check: lint ## the quick loop: linters and the tests that need no broker
	$(PYTEST) -q -m "not broker and not slow"

.PHONY: chaos
chaos: $(READY) ## kills, zombies and broker failures on a real Kafka, for an hour; CHAOS='--kills 3 --points 1' for less
	$(BIN)/python -m tests.chaos $(CHAOS)

.PHONY: simulate
simulate: $(READY) ## crashes, zombies and unreliable brokers in virtual time: SEEDS=2000 of it, from BASE (default: by commit)
	$(BIN)/python -m tests.simulation --seeds $(SEEDS) $(if $(BASE),--base $(BASE))

.PHONY: test-kubernetes
test-kubernetes: $(READY) ## the Helm chart in a real control plane; the first time it is compiled: ten minutes or more, needs go and etcd
	PYTHON=$(abspath $(BIN))/python deploy/kubernetes/control-plane.sh build
	$(PYTEST) tests/deploy/kubernetes.py

.PHONY: lint
lint: $(READY) ## formatter, linter, types and the direction of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --cache-dir .cache/import-linter

.PHONY: format
format: $(READY) ## let the formatter and the linter repair what they can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: audit
audit: $(READY) ## hold the locked versions against the advisory database
	$(BIN)/python .ci/audit.py

.PHONY: sbom
sbom: $(READY) ## the bill of materials of what ships, CycloneDX, in build/anomalyd.cdx.json
	@mkdir -p build
	$(BIN)/cyclonedx-py requirements requirements.lock --pyproject pyproject.toml --output-reproducible --of JSON -o build/anomalyd.cdx.json

.PHONY: docs
docs: $(READY) ## the documentation as a site, in build/site; a link that leads nowhere is an error
	PYTHONPATH=. $(BIN)/sphinx-build -q -W --keep-going -n -b html -c docs -d build/doctrees . build/site
	@echo "build/site/index.html"

.PHONY: lock
lock: $(READY) ## resolve the dependencies again: the newest versions that pyproject.toml allows
	$(call compile,--upgrade --all-extras,requirements-dev.lock)
	$(call compile,--upgrade --constraints requirements-dev.lock,requirements.lock)

compile = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--custom-compile-command 'make lock' $(1) pyproject.toml --output-file $(2)

.PHONY: clean
clean: ## remove the environment, caches and build products
	rm -rf $(VENV) .cache build dist *.egg-info .hypothesis
	find anomalyd tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

# The lock names everything, so nothing has to be resolved (--no-deps): pip would take the newest release for a requirement with an extra,
# miss its hash, and fail.

# The one block of the lock that a CPU build of torch replaces.
WITHOUT_CUDA := awk '/^[a-z]/ { cuda = /^(torch|triton|nvidia-|cuda-)/ } !cuda'

$(READY): pyproject.toml requirements-dev.lock
	@test -n "$(PYTHON)" || { echo "anomalyd needs Python 3.11 or newer: install it, or name it with make PYTHON=…" >&2; exit 1; }
	@test -x $(BIN)/python || { echo "== environment in $(VENV) with $$($(PYTHON) --version)"; \
		$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 \
		|| { $(PYTHON) -m venv --clear --without-pip $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; }; }
	@uv=$$(command -v uv || command -v $(BIN)/uv || true); \
	if [ -n "$$uv" ]; then install="$$uv pip install --python $(BIN)/python"; else install="$(BIN)/python -m pip install --disable-pip-version-check"; fi; \
	if [ -n "$(TORCH_INDEX)" ]; then \
		echo "== torch from $(TORCH_INDEX)"; \
		lock=$$(mktemp); trap 'rm -f "$$lock"' EXIT; $(WITHOUT_CUDA) requirements-dev.lock > "$$lock"; \
		$$install --no-deps --index-url "$(TORCH_INDEX)" "$$(sed -n 's/^\(torch==[^ ]*\).*/\1/p' requirements-dev.lock)"; \
	else \
		lock=requirements-dev.lock; \
		echo "== dependencies: torch brings CUDA, 5.4 GB; about two minutes on a fast line, once"; \
	fi; \
	$$install --no-deps --require-hashes -r "$$lock"; \
	$$install --no-deps --editable .
	@touch $@
