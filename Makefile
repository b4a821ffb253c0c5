# Two commands take a bare machine (Python >= 3.10 with venv) to the end: make train, make test.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CONFIGS := bundles/reggan/configs

.PHONY: help train test test-slow lint format benchmark clean

help:
	@echo "make train      install into $(VENV), then train RegGAN on the phantom (minutes on two cores)"
	@echo "make test       install, then run the test suite"
	@echo "make test-slow  install, then run the tests that take longer"
	@echo "make lint       install, then check format, style and types"
	@echo "make format     rewrite the sources in the project's format"
	@echo "make benchmark  install, then measure step time, loop overhead, data pipeline and memory"
	@echo "make clean      remove $(VENV) and caches; data/ and outputs/ stay"

train: $(VENV)/.ready
	$(BIN)/python -m monai.bundle run training --config_file $(CONFIGS)/train.json

test: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -m "not slow"

test-slow: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.ready-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.ready-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

benchmark: $(VENV)/.ready
	$(BIN)/python scripts/benchmark.py

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "error: Python >= 3.10 is needed, $(PYTHON) is $$($(PYTHON) --version 2>&1); set PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.ready: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.ready-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@ $(VENV)/.ready

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache *.egg-info
