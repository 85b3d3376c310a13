# make run: set up and run the demo; make test: set up and test; make lint: style and types
VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN = $(abspath $(VENV))/bin
WITH_VENV = PATH="$(BIN):$$PATH"

.PHONY: run test lint setup clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

run: setup
	$(WITH_VENV) snakemake --cores all

test: setup
	$(WITH_VENV) pytest -n 2

lint: setup
	$(WITH_VENV) ruff check .
	$(WITH_VENV) ruff format --check .
	$(WITH_VENV) snakefmt --check Snakefile workflow
	$(WITH_VENV) mypy
	$(WITH_VENV) snakemake --lint

clean:
	rm -rf $(VENV) .snakemake .pytest_cache .mypy_cache .ruff_cache
