# Every target makes its own environment first: nothing needs to be installed by hand but Python 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo demo-full test lint check clean

demo: .venv/ready
	$(BIN)/fairway demo

# Three short seeds, audited, and what is made of them: comparison, record folder, review, report.
demo-full: .venv/ready
	$(BIN)/fairway demo --full

test: .venv/ready
	$(BIN)/python -m pytest

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# What CI runs: the linter, and the tests with the slow ones, among them the whole demo.
check: lint
	$(BIN)/python -m pytest --slow

# The constraints are the tested set. The stamp is written last, so an interrupted installation is made again.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "fairway needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

clean:
	rm -rf .venv build dist
