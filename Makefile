# `make demo` runs the quickstart, `make test` the tests. Both set up .venv first.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# Tests start dozens of processes. Without byte code on disk, each would compile the program again.
unexport PYTHONDONTWRITEBYTECODE
# --no-compile saves half of the set-up time: only a fifth of the packages' modules is ever imported.
PIP := $(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable

.PHONY: demo test pytest quick coverage check docs wheel clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) ".[dev]"
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(PIP) ".[docs]"
	touch $@

demo: $(VENV)/.installed
	$(BIN)/ciar-sim run scenarios/quickstart.yaml
	@echo "Open runs/quickstart/report.html"

# The type check takes a core for a minute or two, so the tests run at the same time.
test: $(VENV)/.installed-dev
	$(MAKE) --jobs 2 check pytest

pytest: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -n 2 --dist worksteal

# Line and branch coverage of simulator/; fails below 95 %. Not part of `make test`, because tracing doubles the time of the tests.
coverage: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -n 2 --dist worksteal --cov --cov-report=term:skip-covered tests/simulator tests/ciar_sim tests/laws tests/models/test_statistical.py

# The fast tests, for use between edits: no whole runs, no training, no coverage.
quick: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -x tests/simulator tests/reports tests/test_docs.py

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.installed-docs
	$(BIN)/mkdocs build --strict

# Builds a wheel, installs it on its own and runs it from another folder.
wheel: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -m slow tests/test_wheel.py

clean:
	rm -rf $(VENV) build site *.egg-info .mypy_cache .ruff_cache .pytest_cache .coverage
