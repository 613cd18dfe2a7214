# Two commands do everything: `make demo` runs the quickstart, `make test` the tests. Both set up .venv first.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# Tests start dozens of processes, which would each compile the program anew.
unexport PYTHONDONTWRITEBYTECODE
# Without compiling all modules of all packages, of which a fifth is ever loaded: half of the time of a set-up.
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

# The type check takes a core for a minute or two: the tests run beside it.
test: $(VENV)/.installed-dev
	$(MAKE) --jobs 2 check pytest

pytest: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -n 2 --dist worksteal

# Of lines and branches of simulator/; below 95 % it fails. Tracing doubles the time of the tests, so it is no part of `make test`.
coverage: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -n 2 --dist worksteal --cov --cov-report=term:skip-covered tests/simulator tests/ciar_sim tests/laws tests/models/test_statistical.py

# Everything but whole runs and training, without coverage: for the minute between two edits.
quick: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -x tests/simulator tests/reports tests/test_docs.py

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.installed-docs
	$(BIN)/mkdocs build --strict

# A wheel, installed alone into a folder of its own and run from another one.
wheel: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -m slow tests/test_wheel.py

clean:
	rm -rf $(VENV) build site *.egg-info .mypy_cache .ruff_cache .pytest_cache .coverage
