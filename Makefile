# make demo     the first run: set-up, a small sweep, a leaderboard, an exported model that predicts
# make test     everything that CI runs
#
# The first target to need it makes .venv; it is renewed when pyproject.toml or constraints.txt has changed.

.DEFAULT_GOAL := help
BIN := .venv/bin

.PHONY: help
help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' Makefile

.PHONY: demo
demo: .venv/installed  ## a whole sweep on synthetic images; no network, GPU, bucket or account
	$(BIN)/tlray demo

.PHONY: test
test: check  ## check, then the unit and integration tests
	$(BIN)/python -m pytest tests/unit tests/integration -m "not slow and not gpu" -n 2 --dist loadgroup

.PHONY: test-fast
test-fast: .venv/installed  ## the unit tests that start no Ray
	$(BIN)/python -m pytest tests/unit -m "not slow and not gpu and not ray" -n 2

.PHONY: test-slow
test-slow: .venv/installed  ## the tests that take minutes each
	$(BIN)/python -m pytest -m slow

.PHONY: chaos
chaos: .venv/installed  ## 100 rounds of kills, outages and damage, compared with undisturbed runs
	$(BIN)/python -m tests.chaos --rounds 100 --seed $(or $(SEED),1)

.PHONY: test-gpu
test-gpu: .venv/installed  ## the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu

.PHONY: check
check: .venv/installed  ## linter, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: format
format: .venv/installed  ## mend what the linter and the formatter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: docs
docs: .venv/installed  ## write docs/cli.md and docs/models.md anew
	$(BIN)/python scripts/cli_docs.py
	$(BIN)/python -m scripts.make_models_doc

.PHONY: lock
lock:  ## bring constraints.txt up to date with pyproject.toml
	scripts/lock

.PHONY: clean
clean:  ## remove .venv and caches
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache

.venv/installed: pyproject.toml constraints.txt scripts/install
	@PYTHON="$(PYTHON)" scripts/install
