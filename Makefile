# `make` lists the targets. The first one that needs Python makes .venv from requirements.lock, once for each lock.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BENCH := .venv-bench
BENCH_STAMP := $(BENCH)/.installed
UV := $(shell command -v uv 2>/dev/null)
ARGS ?=
JOBS ?= 2

.PHONY: help demo test long check conformance bench torture lock clean
.DEFAULT_GOAL := help

help:  ## Lists the targets
	@sed -n 's/^\([a-z]*\):.*##  */\1|/p' $(firstword $(MAKEFILE_LIST)) | awk -F'|' '{ printf "  make %-12s %s\n", $$1, $$2 }'

demo: $(STAMP)  ## Makes sample videos, extracts features of them, shows what came out
	$(BIN)/python jobs/demo.py $(ARGS)

# As with the packages below: where imports may not write bytecode, each of the tests' processes would compile the sources.
test: $(STAMP)  ## Runs the tests, JOBS files at a time; FEATLIB_TEST_MEDIA, FEATLIB_TEST_WEIGHTS: real material
	$(BIN)/python -m compileall -q featlib tests
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

long: $(STAMP)  ## Runs the tests that `make test` leaves out for their length
	$(BIN)/python -m compileall -q featlib tests
	$(BIN)/python -m pytest -m long -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

check: $(STAMP)  ## Runs the linter, the formatter's check and the type checker
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

conformance: $(STAMP)  ## Holds every extractor to the conformance test; takes several minutes
	$(BIN)/python -m pytest -m full tests/extractors $(ARGS)

torture: $(STAMP)  ## Kills and breaks everything a thousand times; takes about two and a half hours on two cores
	$(BIN)/python -m tests.torture $(ARGS)

bench: $(BENCH_STAMP)  ## Measures featlib beside other programs and the limit of this machine; about two hours on two cores
	$(BENCH)/bin/python -m benchmarks $(ARGS)

# Daft wants an older pyarrow than featlib takes: it has a lock and an environment of its own. The copy makes uv keep
# every version of requirements.lock that it can.
lock:  ## Writes requirements.lock and requirements-bench.lock anew from pyproject.toml; needs uv
	uv pip compile --universal --generate-hashes --no-emit-index-url --no-header --extra dev \
		--python-version 3.11 pyproject.toml -o requirements.lock
	cp requirements.lock requirements-bench.lock
	uv pip compile --universal --generate-hashes --no-emit-index-url --no-header --extra dev --extra bench \
		--python-version 3.11 pyproject.toml -o requirements-bench.lock

clean:  ## Removes .venv, caches and what demo and bench wrote
	rm -rf $(VENV) $(BENCH) bench build dist demo .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find featlib jobs tests -name __pycache__ -type d -prune -exec rm -rf {} +

# uv leaves bytecode to the first import; where that may not write (PYTHONDONTWRITEBYTECODE, as in many containers) each
# of Ray's workers would compile all it imports, 4 CPU seconds a worker.
# The project itself is built with the hatchling of the lock (no build isolation), so nothing unpinned is fetched.
$(STAMP): requirements.lock pyproject.toml
ifneq ($(UV),)
	test -x $(BIN)/python || $(UV) venv --python $(PYTHON) $(VENV)
	$(UV) pip install --compile-bytecode --python $(BIN)/python --require-hashes -r requirements.lock
	$(UV) pip install --python $(BIN)/python --no-deps --no-build-isolation -e .
else
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --no-deps --no-build-isolation -e .
endif
	touch $@

# featlib itself is not installed here: the benchmarks run it from the checkout.
$(BENCH_STAMP): requirements-bench.lock
ifneq ($(UV),)
	test -x $(BENCH)/bin/python || $(UV) venv --python $(PYTHON) $(BENCH)
	$(UV) pip install --compile-bytecode --python $(BENCH)/bin/python --require-hashes -r requirements-bench.lock
else
	test -x $(BENCH)/bin/python || $(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python -m pip install --require-hashes -r requirements-bench.lock
endif
	touch $@
