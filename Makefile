# make demo   sets up and runs the main job        make test   sets up and runs every check and test
# make check  formatting, types, floors, stubs     make bench  the figures
# make proto  the stubs anew                       make oldest the tests on the oldest libraries we allow
# make soak   a million rounds with faults, a kill at every commit, a million spoiled inputs: hours
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PROTO_VENV ?= .venv-proto
PROTOS := $(wildcard protos/koinon_core/wire/v1/*.proto)
PIP := -m pip install --quiet --disable-pip-version-check
export OMP_WAIT_POLICY = passive

.PHONY: help demo test check bench soak oldest proto clean
.DEFAULT_GOAL := help

help: ## the targets
	@sed -n 's/^# //p' Makefile

# A stamp an extra: nothing is installed again until pyproject.toml changes.
$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("Koinon needs Python >= 3.11, this is " + sys.version.split()[0] + "; set PYTHON=..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python $(PIP) -e '.[demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python $(PIP) -e '.[dev]'
	@touch $@ $(VENV)/.demo

# The stubs are made by the oldest generator of our range, so that users' older stacks load them too; it wants
# an older protobuf than we run with, hence a venv of its own.
$(PROTO_VENV)/.ready: | $(VENV)/bin/python
	$(BIN)/python -m venv $(PROTO_VENV)
	$(PROTO_VENV)/bin/python $(PIP) 'grpcio-tools==1.74.*'
	@touch $@

demo: $(VENV)/.demo
	$(BIN)/koinon demo

check: $(VENV)/.dev $(PROTO_VENV)/.ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	PROTO_PYTHON=$(abspath $(PROTO_VENV))/bin/python sh deploy/protos.sh --check

# A file of tests stays with one process: what its tests share is made once.
test: check
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

# The other end of our ranges: everything but torch, as old as pyproject.toml allows.
oldest:
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python $(PIP) 'grpcio==1.74.*' 'grpcio-health-checking==1.74.*' 'protobuf==6.31.*' 'numpy==2.0.*' \
	  'sqlalchemy==2.0.40' \
	  'alembic==1.14.*' 'cryptography==43.*' 'zstandard==0.23.*' 'safetensors==0.5.*' 'rich==13.9.*' 'typer==0.15.*' \
	  'structlog==24.4.*' 'pytest>=8.3' 'pytest-timeout>=2.3' 'hypothesis>=6.120'
	.venv-oldest/bin/python $(PIP) --no-deps -e .
	.venv-oldest/bin/pytest tests/core tests/coordinator tests/edge tests/client/test_simulate.py \
	  tests/client/test_import.py tests/system/test_bad_input.py tests/system/test_blobs.py

bench: $(VENV)/.dev
	$(BIN)/python -m tests.bench

soak: $(VENV)/.dev
	$(BIN)/python -m tests.faults --rounds 1000000
	for rule in weighted examples poisson latest cohorts; do \
	  $(BIN)/python -m tests.faults --rounds 10000 --rule $$rule || exit 1; done
	$(BIN)/pytest tests/soak/kill.py -s
	HYPOTHESIS_PROFILE=soak $(BIN)/pytest tests/core tests/coordinator/test_collecting.py tests/client/test_outbox.py --timeout 7200
	$(BIN)/python -m tests.soak.resume
	$(BIN)/python -m tests.soak.fuzz

proto: $(PROTO_VENV)/.ready
	PROTO_PYTHON=$(abspath $(PROTO_VENV))/bin/python sh deploy/protos.sh

clean:
	rm -rf $(VENV) $(PROTO_VENV) .venv-oldest .mypy_cache .ruff_cache .pytest_cache
