# `make demo` and `make test` work in a fresh clone: each first makes .venv and installs the package in it.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test lint types check smoke docs dist check-all lowest accelerator accelerator-smoke clean
install: .venv/installed

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev,docs]"
	touch $@

demo: install
	$(BIN)/robustgen demo --out demo-report

test: lint types check  # a smoke run of the demo is one of the tests

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

check: install
	$(BIN)/python -m pytest -n auto --dist loadfile

smoke: install
	$(BIN)/robustgen demo --smoke --out "$$(mktemp -d)"

# The site, in site/; a warning, or anything that a page would load from elsewhere, is an error.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

# What pip gives a user: sdist and wheel, the wheel in an empty environment, the demo from there.
dist: install
	rm -rf dist build
	$(BIN)/python -m build --outdir dist . > /dev/null
	empty="$$(mktemp -d)" && trap 'rm -rf "$$empty"' EXIT && $(PYTHON) -m venv "$$empty/env" \
	&& "$$empty/env/bin/python" -m pip install --quiet --disable-pip-version-check dist/*.whl \
	&& cd "$$empty" && env/bin/robustgen demo --smoke --quiet --out report && env/bin/robustgen --version

# Everything that a change has to pass.
check-all: docs test dist

# The tests with the lowest versions that pyproject.toml allows: make lowest PYTHON=python3.10. These use what newer
# versions of their own dependencies deprecate.
lowest:
	empty="$$(mktemp -d)" && trap 'rm -rf "$$empty"' EXIT && $(PYTHON) -m venv "$$empty/env" \
	&& sed -n '/^dependencies/,/^]/p; /^dev =/p' pyproject.toml | grep -o '"[a-z-]*>=[0-9.]*"' | tr -d '"' \
	| sed 's/>=/==/' > "$$empty/lowest.txt" \
	&& "$$empty/env/bin/python" -m pip install --quiet --disable-pip-version-check -r "$$empty/lowest.txt" \
	&& PYTHONPATH=. "$$empty/env/bin/python" -m pytest -p no:cacheprovider -W ignore::DeprecationWarning

# On a GPU, eight minutes: make accelerator ARGS="--data-root DIR". An interpreter that has torch is used as it is,
# without .venv: where nothing can be installed, make accelerator PYTHON=python3.
accelerator accelerator-smoke:
	@set -e; if $(PYTHON) -c "import torch" 2> /dev/null; then python=$(PYTHON); \
	else $(MAKE) install; python=$(BIN)/python; fi; \
	PYTHONPATH=. $$python benchmarks/accelerator.py $(if $(findstring smoke,$@),--smoke) $(ARGS)

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis demo-report site build dist *.egg-info
