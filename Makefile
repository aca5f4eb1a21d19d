# Each target sets up what it needs in .venv from the pinned requirements; a second run finds it done.
# Needs: make, and python3 of version 3.11 or later with its venv module (another one: make PYTHON=python3.12 ...).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Three processes on two cores: half of their time tests wait, for disks, for other processes, for silence.
# At least two, so that the tests are always shown to be safe side by side.
WORKERS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); [ "$$n" -ge 2 ] && echo $$((n + n / 2)) || echo 2)
# More options for one run, for example: make test ARGS='-k segment', make demo ARGS='--sessions 20000'.
ARGS ?=

# The tests start Python by the thousand, and each start would compile all that it loads anew.
export PYTHONDONTWRITEBYTECODE :=

PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
MADE := $(VENV)/.made
RUNTIME := $(VENV)/.runtime-ready
DEV := $(VENV)/.dev-ready

.DEFAULT_GOAL := help
.PHONY: help demo test check lint types imports pyright format bench lab package clean

help: ## say what each target does
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1	\2/p' Makefile | expand -t 16

demo: $(RUNTIME) ## a real cluster on this machine: traffic, kill -9 of the primary, promotion, proof
	$(BIN)/perdure demo $(ARGS)

test: $(DEV) ## all tests but the long fault runs
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup $(ARGS)

check: lint types imports ## style, types and the import contract

lint: $(DEV)
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(DEV)
	$(BIN)/mypy

imports: $(DEV)
	$(BIN)/lint-imports

pyright: $(DEV) ## a second type checker, in its strict mode
	$(BIN)/pyright

format: $(DEV) ## put the code into its standard form
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

bench: $(DEV) ## measure beside peers and limits; prints rows, writes build/bench.json, .md and plots
	$(BIN)/python -m bench $(ARGS)

lab: $(DEV) ## the long fault runs: every kill point, power cuts, crash images
	$(BIN)/python -m pytest -m lab -n $(WORKERS) --dist loadgroup $(ARGS)

package: $(DEV) ## build wheel and sdist into dist/
	$(BIN)/python -m build --no-isolation

clean: ## remove the environment, caches and builds
	rm -rf $(VENV) build dist src/perdure.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(MADE):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "perdure needs Python 3.11 or later; '$(PYTHON)' says: $$($(PYTHON) --version 2>&1 | head -n 1)" >&2; \
	  echo "Name another one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "'$(PYTHON)' has no working venv module; on Debian: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

# The installation from the checkout is editable: code changes need no new set-up, only changed
# requirements or project data do. Nothing is fetched but what the pinned files name.
$(RUNTIME): requirements.txt requirements-build.txt pyproject.toml | $(MADE)
	$(PIP) install --require-hashes -r requirements.txt -r requirements-build.txt
	$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(DEV): requirements-dev.txt $(RUNTIME) | $(MADE)
	$(PIP) install --require-hashes -r requirements-dev.txt
	@touch $@
