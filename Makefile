# Every target makes what it needs: Python >= 3.11 with venv and pip is all that has to be there.
# The environment is `.venv`; it is brought up to date when pyproject.toml or constraints.txt changed, and otherwise re-used.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

ifndef PYTHON
PYTHON := $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
    "$$p" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo "$$p"; break; }; done)
endif
# Two workers: each forces 8 host devices and compiles with several threads, so more of them only wait for each other.
WORKERS ?= 2
ARGS ?=
# Most of the time of the tests is compilation, and most programs run once: the back end need not polish the machine code.
# `make test-all` compiles as users do.
QUICKLY_COMPILED := --xla_backend_optimization_level=0

VENV := .venv
RUN := $(VENV)/bin/python
INSTALL := $(RUN) -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
CORE := $(VENV)/.core
DEV := $(VENV)/.dev

.PHONY: help
help: ## this list
	@echo 'make TARGET [ARGS="..."] [PYTHON=python3.12] [WORKERS=2]'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' Makefile

.PHONY: quickstart
quickstart: $(CORE) ## a language model learns by GRPO on this machine, from nothing; ARGS are passed on
	$(RUN) experiments/quickstart.py $(ARGS)

.PHONY: test
test: $(DEV) ## the tests but those marked slow
	XLA_FLAGS="$(QUICKLY_COMPILED) $$XLA_FLAGS" $(RUN) -m pytest -m "not slow" -n $(WORKERS) --durations=10 $(ARGS)

.PHONY: test-all
test-all: $(DEV) ## all the tests
	$(RUN) -m pytest -n $(WORKERS) --durations=10 $(ARGS)

.PHONY: lint
lint: $(DEV) ## format, rules and types; changes nothing
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m pyright

.PHONY: format
format: $(DEV) ## put the code into the format that lint asks for
	$(RUN) -m ruff check --fix-only .
	$(RUN) -m ruff format .

# What measures a claim in minutes; the others of benchmarks/ train for minutes a seed, or wait on purpose.
QUICK := benchmarks/advantages.py benchmarks/losses.py
BENCHMARKS := $(sort $(filter-out benchmarks/_%,$(wildcard benchmarks/*.py)))
measure = @for script in $(1); do echo "== $$script"; $(RUN) "$$script" $(ARGS) || exit; done

.PHONY: bench
bench: $(CORE) ## what advantages and losses cost, in minutes; a result is a JSON file with commit and device
	$(call measure,$(QUICK))

.PHONY: bench-all
bench-all: $(CORE) ## every script of benchmarks/: hours
	$(call measure,$(BENCHMARKS))

.PHONY: clean
clean: ## remove the environment and the caches
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache build ./*.egg-info

# Whatever stands in `.venv` without a working Python >= 3.11 and pip (half made, copied, of another version) is made again.
# Debian packs `ensurepip` apart from Python: where it is missing, the pip at hand installs one into the environment.
$(CORE): pyproject.toml constraints.txt
	@'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo 'error: no Python >= 3.11 found as "$(PYTHON)"; install one, or say where it is: make PYTHON=/path/to/python3.11' >&2; \
	    exit 4; }
	@$(RUN) -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo 'making $(VENV)'; \
	    $(PYTHON) -m venv --clear $(VENV) >/dev/null 2>&1 || { \
	        $(PYTHON) -m venv --clear --without-pip $(VENV) && \
	        $(PYTHON) -m pip --disable-pip-version-check --python $(RUN) install --quiet pip; }; }
	@echo 'installing grpo-jax and what it needs'
	@$(INSTALL) --editable .
	@touch $@

$(DEV): $(CORE)
	@echo 'installing the tools for tests and lint'
	@$(INSTALL) --editable '.[dev]'
	@touch $@
