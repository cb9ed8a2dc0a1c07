# `make` lists the targets. The first one that needs Python makes .venv from requirements.lock, once for each lock.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
UV := $(shell command -v uv 2>/dev/null)
ARGS ?=
JOBS ?= 2

.PHONY: help demo test check conformance lock clean
.DEFAULT_GOAL := help

help:  ## Lists the targets
	@sed -n 's/^\([a-z]*\):.*##  */\1|/p' $(firstword $(MAKEFILE_LIST)) | awk -F'|' '{ printf "  make %-12s %s\n", $$1, $$2 }'

demo: $(STAMP)  ## Makes sample videos, extracts features of them, shows what came out
	$(BIN)/python jobs/demo.py $(ARGS)

test: $(STAMP)  ## Runs the tests, JOBS files at a time; FEATLIB_TEST_MEDIA, FEATLIB_TEST_WEIGHTS: real material
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

check: $(STAMP)  ## Runs the linter, the formatter's check and the type checker
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

conformance: $(STAMP)  ## Holds every extractor to the conformance test; takes several minutes
	$(BIN)/python -m pytest -m full tests/extractors $(ARGS)

lock:  ## Writes requirements.lock anew from pyproject.toml; needs uv
	uv pip compile --universal --generate-hashes --no-emit-index-url --no-header --all-extras \
		--python-version 3.11 pyproject.toml -o requirements.lock

clean:  ## Removes .venv, caches and what the demo wrote
	rm -rf $(VENV) build dist demo .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find featlib jobs tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The project itself is built with the hatchling of the lock (no build isolation), so nothing unpinned is fetched.
$(STAMP): requirements.lock pyproject.toml
ifneq ($(UV),)
	test -x $(BIN)/python || $(UV) venv --python $(PYTHON) $(VENV)
	$(UV) pip install --python $(BIN)/python --require-hashes -r requirements.lock
	$(UV) pip install --python $(BIN)/python --no-deps --no-build-isolation -e .
else
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --no-deps --no-build-isolation -e .
endif
	touch $@
