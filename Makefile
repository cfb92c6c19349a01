# Everything a newcomer needs, on a machine with only Python (3.11 to 3.13) and make.
#   make demo        set up, then the whole job on synthetic slices (kerasseg demo)
#   make test        set up, then the test suite            make lint    ruff, formatter, types
#   make test-fast   set up, then the quick tests           make bench   the benchmarks, 40 min
#   make test-rest   what make test leaves out: all that takes 8 seconds or more; wheels, documentation, notebook, browser
#   make test-all    both
#   make torture     kill -9 twenty times instead of three  make docs    the documentation, into site/
#   make fuzz        a million changed files a reader (fewer where one takes long): hours
#   make results     the job on real slices: hours; goes on where it was stopped
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Warnings are errors: pyproject.toml says so, and names the few that are not, which -W here would overrule.
# Two processes halve the time on two cores; tests that go together (module fixtures) stay together.
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadscope

.PHONY: demo test test-fast test-rest test-all torture fuzz lint format bench results docs clean
.DEFAULT_GOAL := test

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# pip below 25.1 does not know --group.
$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable . --group dev
	touch $@

test: $(STAMP)
	$(PYTEST) -m "not rest"

test-fast: $(STAMP)
	$(PYTEST) -m "not slow and not rest"

test-rest: $(STAMP)
	$(PYTEST) -m rest

test-all: test test-rest

# DEMO=--fast makes it short.
demo: $(STAMP)
	$(BIN)/kerasseg demo $(DEMO)

# Kills, full disks and pairs of processes for all commands that write; goes on where it was stopped.
torture: $(STAMP)
	KERASSEG_TORTURE=20 $(PYTEST) -m slow -k "kill"
	$(BIN)/python tests/torture.py --state torture

# Changed files for every reader of data; goes on where it was stopped, and keeps what it finds in fuzz/.
fuzz: $(STAMP)
	$(BIN)/python tests/fuzz.py --count 1000000 --state fuzz

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

results: $(STAMP)
	TF_CPP_MIN_LOG_LEVEL=3 $(BIN)/python -m benchmarks.real $(QUICK)

# Its peers (PyTorch, MONAI, ...) are no dependencies: they live in an environment of their own. QUICK=--quick for few rounds.
BENCH := .venv-bench
$(BENCH)/.installed: pyproject.toml constraints.txt benchmarks/requirements.txt
	$(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python -m pip install --quiet --constraint constraints.txt --requirement benchmarks/requirements.txt --editable .
	touch $@

bench: $(BENCH)/.installed
	$(BENCH)/bin/python -m benchmarks $(PARTS) $(QUICK)

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) $(BENCH) .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
