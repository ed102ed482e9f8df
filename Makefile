# Every target makes the virtual environment it needs. PYTHON=python3.13 uses another interpreter, in an
# environment of its own.
PYTHON ?= python3
VENV ?= $(if $(filter python3,$(PYTHON)),.venv,.venv-$(notdir $(PYTHON)))
BIN := $(VENV)/bin
JOBS ?= 2

.DEFAULT_GOAL := help
.PHONY: help run test lint format claims bench notebooks clean

help: ## show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# One stamp per extra: an environment is brought up to date when pyproject.toml changes.
$(VENV)/.installed-%: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$*]"
	@touch $@

run: $(VENV)/.installed-experiments ## train a teacher on digits and distil it under several divergences
	$(BIN)/python -m experiments.distill $(ARGS)

test: $(VENV)/.installed-test ## run the test suite
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal $(ARGS)

lint: $(VENV)/.installed-test $(VENV)/.installed-lint ## check formatting, lints and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --strict jaxdiv

format: $(VENV)/.installed-lint ## format the code and mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

claims: $(VENV)/.installed-experiments ## run the papers' claims and write experiments/RESULTS.md
	$(BIN)/python -m experiments claims --jobs $(JOBS) $(ARGS)

bench: $(VENV)/.installed-bench ## time jaxdiv against its peers
	$(BIN)/python -m experiments.bench.composition $(ARGS)
	$(BIN)/python -m experiments.bench.ot
	$(BIN)/python -m experiments.bench.implicit
	$(BIN)/python -m experiments.bench.bilevel
	$(BIN)/python -m experiments.bench.transforms

notebooks: $(VENV)/.installed-test ## execute the notebooks
	$(BIN)/python -m pytest tests/notebooks $(ARGS)

clean: ## remove environments, caches and runs
	rm -rf .venv .venv-* runs build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
