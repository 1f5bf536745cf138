# `make demo` and `make test` work in a fresh clone: each first makes .venv and installs the package in it.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test lint types check smoke clean
install: .venv/installed

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@

demo: install
	$(BIN)/robustgen demo --out demo-report

test: lint types check smoke

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

check: install
	$(BIN)/python -m pytest -n auto --dist loadfile

smoke: install
	$(BIN)/robustgen demo --smoke --out "$$(mktemp -d)"

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis demo-report build *.egg-info
