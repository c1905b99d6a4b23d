# Two commands do everything on a fresh machine with Python 3.11+ and pip: make demo, make test.
PYTHON ?= python3
VENV := .venv
NEWEST := .venv-newest
BIN := $(VENV)/bin
# Wheels only, so that no package is built with what nobody pinned; one thread each for two tests side by side.
INSTALL := -m pip install --quiet --only-binary :all:
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

.PHONY: demo test check slow lock newest wheel clean

demo: $(VENV)/installed
	$(BIN)/medley demo --out demo-run

test: $(VENV)/installed
	$(PYTEST) -m "not slow and not data"

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

slow: $(VENV)/installed
	$(PYTEST) --dist worksteal -m "slow and not data"

# Every package, transitive ones too, at the version in constraints.txt; tests/test_install.py holds it to that.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(INSTALL) --constraint constraints.txt torch setuptools
	$(BIN)/python $(INSTALL) --constraint constraints.txt --no-build-isolation --editable ".[dev]"
	touch $@

# Resolve constraints.txt again, for Python 3.11 and newer, Linux and macOS. torch moves only when this line does.
lock: $(VENV)/installed
	echo "torch==2.13.0" | $(BIN)/uv pip compile --universal --python-version 3.11 --all-extras --upgrade --no-annotate \
		--no-emit-index-url --custom-compile-command "make lock" --output-file constraints.txt pyproject.toml -

# The fast suite on the newest versions that pyproject.toml allows, as `pip install` without the lock gives them
# (torch aside, whose newest is gigabytes where there is a GPU). It tells what comes; it is no gate.
newest:
	rm -rf $(NEWEST)
	$(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/python $(INSTALL) --constraint constraints.txt torch
	$(NEWEST)/bin/python $(INSTALL) setuptools
	$(NEWEST)/bin/python $(INSTALL) --upgrade --no-build-isolation --editable ".[dev]"
	$(NEWEST)/bin/python -m pip check
	OMP_NUM_THREADS=1 $(NEWEST)/bin/python -m pytest -n 2 -m "not slow and not data and not locked"

wheel: $(VENV)/installed
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

clean:
	rm -rf $(VENV) $(NEWEST) demo-run build dist .pytest_cache .mypy_cache .ruff_cache
