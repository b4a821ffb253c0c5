# Two commands take a bare machine (Python >= 3.10 with venv) to the end: make train, make test.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CONFIGS := bundles/reggan/configs
# MONAI Label has an environment of its own, since it wants older packages than the rest.
LABEL_VENV ?= .venv-label
LABEL_BIN := $(LABEL_VENV)/bin
STUDIES ?= data/studies
MODELS ?= reggan
PORT ?= 8000
# Not out of the environment: some shells set HOST to the machine's name, and others could reach the server then.
HOST = 127.0.0.1
TOKEN_FILE =
AUTH = on
# Processes that test side by side; the tests of one file stay together, since they share what they have trained. In the
# order of the files: xdist would leave files of one long test to the end, where one process waits for the other.
TEST_JOBS ?= 2
TEST := -m pytest -n $(TEST_JOBS) --dist loadfile --no-loadscope-reorder
SAMPLE ?= 12
COMMIT = $(shell git rev-parse --short HEAD 2>/dev/null)

.PHONY: help train test test-slow test-sample lint format benchmark label label-test label-test-dicom clean

help:
	@echo "make train      install into $(VENV), then train RegGAN on the phantom (minutes on two cores)"
	@echo "make test       install, then run the test suite"
	@echo "make test-slow  install, then run the tests that take longer"
	@echo "make test-sample  install, then run $(SAMPLE) of those, other ones for each commit"
	@echo "make lint       install, then check format, style and types"
	@echo "make format     rewrite the sources in the project's format"
	@echo "make benchmark  install, then measure step time, loop overhead, data pipeline and memory"
	@echo "make label      install MONAI Label into $(LABEL_VENV) (8 GB), then serve MODELS=$(MODELS) on STUDIES=$(STUDIES),"
	@echo "                for this machine; HOST=0.0.0.0 TOKEN_FILE=FILE (or AUTH=off) for others, PORT=$(PORT)"
	@echo "make label-test install MONAI Label, then test a real server"
	@echo "make label-test-dicom  the part with a DICOM server; needs Debian's orthanc and orthanc-dicomweb"
	@echo "make clean      remove $(VENV), $(LABEL_VENV) and caches; data/ and outputs/ stay"

train: $(VENV)/.ready
	$(BIN)/python -m monai.bundle run training --config_file $(CONFIGS)/train.json

test: $(VENV)/.ready-dev
	$(BIN)/python $(TEST) -m "not slow"

test-slow: $(VENV)/.ready-dev
	$(BIN)/python $(TEST) -m slow

test-sample: $(VENV)/.ready-dev
	$(BIN)/python $(TEST) -m slow --sample $(SAMPLE) --sample-seed "$(COMMIT)" -rap

lint: $(VENV)/.ready-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.ready-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

benchmark: $(VENV)/.ready-dev
	$(BIN)/python scripts/benchmark.py

label: $(LABEL_VENV)/.ready
	$(LABEL_BIN)/python -m pipeline.label_app.serve --studies "$(STUDIES)" --models "$(MODELS)" \
		--host "$(HOST)" --port $(PORT) --token-file "$(TOKEN_FILE)" --auth $(AUTH)

label-test: $(LABEL_VENV)/.ready
	$(LABEL_BIN)/python $(TEST) -rs tests/label_app

label-test-dicom: $(LABEL_VENV)/.ready
	$(LABEL_BIN)/python -m pytest -rs tests/label_app/test_orthanc.py

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "error: Python >= 3.10 is needed, $(PYTHON) is $$($(PYTHON) --version 2>&1); set PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.ready: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.ready-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,export]'
	@touch $@ $(VENV)/.ready

$(LABEL_BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' \
		|| { echo "error: MONAI Label needs Python 3.11 or 3.12, $(PYTHON) is $$($(PYTHON) --version 2>&1); set PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(LABEL_VENV)

$(LABEL_VENV)/.ready: pyproject.toml constraints-label.txt | $(LABEL_BIN)/python
	$(LABEL_BIN)/python -m pip install --quiet --constraint constraints-label.txt --editable '.[label]' pytest pytest-xdist
	@touch $@

clean:
	rm -rf $(VENV) $(LABEL_VENV) .mypy_cache .pytest_cache .ruff_cache *.egg-info
