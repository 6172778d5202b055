# Every target does its own set-up into .venv/ and reuses it. Needed beforehand: Python >= 3.11 and make.
SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
# The first Python that is new enough and can make virtual environments.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 /usr/bin/python3; do \
	$$p -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.DEFAULT_GOAL := help
.PHONY: help serve test torture check lint format bench evals docs clean

help:
	@echo 'make serve    start the service on http://127.0.0.1:8000'
	@echo 'make test     run every test'
	@echo 'make torture  kill, stop and cut off real processes for half an hour'
	@echo 'make check    format, lint, types, tests'
	@echo 'make bench    measure latency, memory and start-up'
	@echo 'make evals    measure recall and cost on the committed data'
	@echo 'make docs     build the documentation into site/'

$(BIN)/python:
	@test -n '$(PYTHON)' || { echo 'no Python >= 3.11 with venv and ensurepip was found; set PYTHON=…' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install --constraint constraints.txt --editable '.[dev]'
	@touch $@ $(VENV)/.run

# exec: signals reach the service itself, in make's own process group.
serve: $(VENV)/.run
	@exec $(BIN)/strata serve

# Two processes: much of the time one waits. Tests of one file stay in one process.
WORKERS ?= 2
# What takes minutes (a session of 2,000 turns, 500 stuck clients) runs in `make torture`.
test: $(VENV)/.dev
	@$(BIN)/python -m pytest -m 'not slow' -n $(WORKERS) --dist loadfile

# SEED=N repeats a run of it; the tests marked slow come last.
torture: $(VENV)/.dev
	@PYTHONPATH=tests $(BIN)/python -m torture $(if $(SEED),--seed $(SEED))
	@$(BIN)/python -m pytest -s -m slow

lint: $(VENV)/.dev
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

check: lint test

format: $(VENV)/.dev
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(VENV)/.run
	@$(BIN)/python -m evals bench

evals: $(VENV)/.run
	@$(BIN)/python -m evals recall --budgets 256,512,1024 --out out/recall
	@$(BIN)/python -m evals cost --out out/cost

# What is generated from the code is renewed first. A warning fails the build. The variable only silences an advertisement about MkDocs 2.
docs: $(VENV)/.dev
	@$(BIN)/python docs/generate.py
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) out dist build site
