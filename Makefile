# One target for each thing a person does first. Every target sets up what it needs and can be repeated.
# Other settings: make test PYTEST="-m 'not slow'"    make quickstart VENV=~/envs/gpt2    make test PYTHON=python3.12

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help quickstart test lint clean

VENV := .venv
PYTHON :=
PYTEST :=
python := $(VENV)/bin/python
ready := $(VENV)/requirements.txt

help:
	@echo "make quickstart   text, shards, a small model trained by two processes, its scores and text: five minutes on a CPU"
	@echo "make test         the whole test suite"
	@echo "make lint         ruff, as CI runs it"
	@echo "make clean        remove the environment, caches and the quickstart's data and run; other data and runs stay"

# The copy of requirements.txt says which requirements are whole; `incomplete` marks an install that was interrupted.
$(ready): requirements.txt
	@for candidate in $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11) none; do \
	    $$candidate -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null && break; \
	done; \
	[ $$candidate != none ] || { echo "error: no Python 3.11 or newer found: install one, or name it: make PYTHON=/path/to/python3"; exit 1; }; \
	$$candidate -c 'import ensurepip, venv' 2> /dev/null || { \
	    echo "error: $$candidate cannot make environments: apt-get install python3-venv, or name another: make PYTHON=..."; exit 1; }; \
	echo "== Environment: $(VENV) from $$($$candidate --version), packages of requirements.txt (a minute or two, once)"; \
	if [ -e $(VENV)/incomplete ]; then rm -rf $(VENV); fi; \
	mkdir -p $(VENV) && touch $(VENV)/incomplete && $$candidate -m venv $(VENV) \
	    && $(python) -m pip install --quiet --disable-pip-version-check -r requirements.txt \
	    && cp requirements.txt $@ && rm $(VENV)/incomplete

test: $(ready)
	@echo "== Tests"
	@$(python) -m pytest $(PYTEST)

lint: $(ready)
	@echo "== Lint"
	@$(python) -m ruff check .

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -rf data/shakespeare_bpe runs/quickstart
