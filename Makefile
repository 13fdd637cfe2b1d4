# Two commands: `make demo` and `make test`. Both make .venv, with PyPI as the only source.

PYTHON ?= python3

VENV := .venv
OLDEST := .venv-oldest
BIN := $(VENV)/bin
SOURCES := $(wildcard celery_leader tests examples benchmarks noxfile.py)
INSTALL := -m pip --quiet --disable-pip-version-check install
PIP := $(BIN)/python $(INSTALL)
# More arguments for pytest, e.g. make test PYTEST=tests/beat
PYTEST ?=
# The tests of the package: a folder for each of its rooms, and one for what is in none.
ROOMS := $(addprefix tests/,core store runtime tasks worker beat ops package)
# So many tests run side by side; most of their time they wait. With 1 they share pytest's own process.
WORKERS ?= 8
SIDE_BY_SIDE = $(if $(filter 0 1,$(WORKERS)),,-n $(WORKERS))
# Those that start nothing compute: one for each processor.
COMPUTING = $(if $(filter 0 1,$(WORKERS)),,-n auto)
# Tests start hundreds of Pythons, and without bytecode each compiles all it imports.
unexport PYTHONDONTWRITEBYTECODE
# An older Python for the oldest Celery, where there is one.
OLDEST_PYTHON ?= $(shell python3.10 -V >/dev/null 2>&1 && echo python3.10 || echo '$(PYTHON)')
BENCH ?=
# More arguments for uv, e.g. make lock LOCK=--upgrade
LOCK ?=
CHAOS ?=
CHAOS_TASKS ?=
SIMULATE ?=
EXAMPLE ?=
# Those that need this package alone, and those that need others.
PLAIN_EXAMPLES := quickstart rabbitmq sentinel systemd
LARGER_EXAMPLES := django fastapi kubernetes
EXAMPLES := $(PLAIN_EXAMPLES) $(LARGER_EXAMPLES)
MINUTES ?= 30
SOAK ?=
EXPLORE ?=
MUTANTS ?=

.DEFAULT_GOAL := help
# Two at once would install into one .venv.
.NOTPARALLEL:
.PHONY: help demo check test coverage test-oldest test-smoke chaos chaos-beats chaos-tasks simulate explore mutants lint types contract bench bench-peers soak lock clean

help:
	@echo 'See it work'
	@echo '  make demo          three workers, three beats; leaders stopped and killed'
	@echo '  make example-NAME  $(PLAIN_EXAMPLES)'
	@echo '                     $(LARGER_EXAMPLES)'
	@echo 'Change it (CONTRIBUTING.md)'
	@echo '  make check         the loop of seconds: lint types contract, tests without processes'
	@echo '  make test          all tests, on real Redis and processes; PYTEST="-x tests/store"'
	@echo '  make coverage      what the tests without processes and those of the store run'
	@echo '  make clean         remove .venv and what the tools left'
	@echo 'More tests'
	@echo '  make test-oldest   the oldest Celery, kombu and redis-py supported'
	@echo '  make test-smoke    image and Compose file in containers (or: .ci/smoke)'
	@echo 'Doubt it'
	@echo '  make chaos         faults under real fleets; CHAOS= and CHAOS_TASKS='
	@echo '  make soak          all faults for long: do processes grow? MINUTES=30'
	@echo '  make simulate      seeded schedules of faults; SIMULATE="--seed 7"'
	@echo '  make explore       every course of an election; EXPLORE="--faults 1"'
	@echo '  make mutants       bugs made on purpose; MUTANTS="--only margin"'
	@echo 'Measure and release it (docs/releasing.md)'
	@echo '  make bench         the benchmarks; BENCH=--quick; bench-peers: others, too'
	@echo '  make lock          the packages of the images; LOCK=--upgrade for newer'

demo: $(VENV)/.demo
	$(BIN)/python -m examples.demo

.PHONY: $(EXAMPLES:%=example-%)
$(PLAIN_EXAMPLES:%=example-%): $(VENV)/.demo
$(LARGER_EXAMPLES:%=example-%): $(VENV)/.examples

$(EXAMPLES:%=example-%): example-%:
	@$(BIN)/python -m examples.$*.show $(EXAMPLE)

check: lint types contract
	$(BIN)/python -m pytest -q $(COMPUTING) -m 'not real' $(ROOMS)

test: $(VENV)/.dev $(VENV)/.examples
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) $(PYTEST)

coverage: $(VENV)/.dev $(VENV)/.examples
	$(BIN)/coverage run -m pytest -q $(COMPUTING) -m 'not real or store'
	$(BIN)/coverage combine -q
	$(BIN)/coverage report

test-oldest: $(OLDEST)/.test
	$(OLDEST)/bin/python -m pytest $(SIDE_BY_SIDE) $(PYTEST) $(if $(findstring tests/,$(PYTEST)),,$(ROOMS))

test-smoke: $(VENV)/.dev
	$(BIN)/python -m pytest tests/smoke $(PYTEST)

chaos: chaos-beats chaos-tasks

chaos-beats: $(VENV)/.dev
	$(BIN)/python -m tests.chaos $(CHAOS)

chaos-tasks: $(VENV)/.dev
	$(BIN)/python -m tests.chaos.tasks $(CHAOS_TASKS)

simulate: $(VENV)/.dev
	$(BIN)/python -m tests.simulation $(SIMULATE)

explore: $(VENV)/.dev
	$(BIN)/python -m tests.explorer $(EXPLORE)

mutants: $(VENV)/.dev
	$(BIN)/python -m tests.mutants $(MUTANTS)

lint: $(VENV)/.dev
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)

types: $(VENV)/.dev
	$(BIN)/mypy

contract: $(VENV)/.dev
	$(BIN)/lint-imports

# Pins stay as they are in the files unless LOCK says --upgrade; the files serve every Python.
LOCKED = $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-annotate \
	--python-version 3.10 --custom-compile-command 'make lock' $(LOCK)
lock: $(VENV)/.dev
	$(PIP) uv
	$(LOCKED) pyproject.toml --extra prometheus -o requirements/image.txt
	$(LOCKED) pyproject.toml --extra prometheus --resolution lowest-direct -o requirements/image-celery-5.5.txt
	echo 'celery==5.6.*' | $(LOCKED) pyproject.toml - --extra prometheus -o requirements/image-celery-5.6.txt
	echo 'flower>=2' | $(LOCKED) pyproject.toml - --extra prometheus -o requirements/image-flower.txt
	echo 'hatchling>=1.18' | $(LOCKED) - -o requirements/build.txt

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks.run $(BENCH)
	$(BIN)/python -m benchmarks.dispatch $(BENCH)

bench-peers: $(VENV)/.bench
	$(BIN)/python -m benchmarks.peers $(BENCH)

soak: $(VENV)/.bench
	$(BIN)/python -m tests.soak --minutes $(MINUTES) $(SOAK)

clean:
	rm -rf $(VENV) $(OLDEST) .nox .*_cache .coverage* demo-report.json soak-report.*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp for each set of packages; a new pyproject.toml makes .venv anew.

$(VENV)/.demo: $(VENV)/.made
	$(PIP) --editable '.[demo]'
	@touch $@

$(VENV)/.examples: $(VENV)/.made
	$(PIP) --editable '.[examples]'
	@touch $@

$(VENV)/.dev: $(VENV)/.made
	$(PIP) --editable '.[dev]'
	@touch $@

$(OLDEST)/.test: pyproject.toml tests/oldest.txt
	rm -rf $(OLDEST)
	'$(OLDEST_PYTHON)' -m venv $(OLDEST)
	$(OLDEST)/bin/python $(INSTALL) 'pip>=21.3'
	$(OLDEST)/bin/python $(INSTALL) --constraint tests/oldest.txt --editable '.[test,demo]'
	@touch $@

$(VENV)/.bench: $(VENV)/.dev
	$(PIP) --editable '.[bench]'
	@touch $@

$(VENV)/.made: pyproject.toml
	@command -v '$(PYTHON)' >/dev/null || \
	  { echo 'There is no $(PYTHON) here; name a Python 3.10 or newer: make PYTHON=/path/to/python3' >&2; exit 1; }
	@'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "$$('$(PYTHON)' -V 2>&1) is too old; name a Python 3.10 or newer: make PYTHON=/path/to/python3" >&2; exit 1; }
	@'$(PYTHON)' -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo 'This $(PYTHON) cannot make virtual environments (on Debian and Ubuntu: apt-get install python3-venv)' >&2; exit 1; }
	@rm -rf $(VENV)
	'$(PYTHON)' -m venv $(VENV)
	@# The pip of some Python 3.10 cannot install an editable project without a setup.py.
	$(PIP) 'pip>=21.3'
	@touch $@
