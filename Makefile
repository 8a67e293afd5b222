# From a bare clone: every target first makes .venv with what it needs. PYTHON is the interpreter to make it with.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help demo test lint format bench clean
help:
	@echo "make demo    fit, evaluate and report on a generated material (offline once installed)"
	@echo "make test    the tests                  make bench   the micro-benchmarks"
	@echo "make lint    ruff, mypy, clang-format   make format  apply the formatters"
	@echo "make clean   remove what the others made, .venv included"

demo: $(VENV)/installed
	$(BIN)/stadfast demo

test: $(VENV)/installed-test
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	git ls-files 'csrc/*.h' 'csrc/*.c*' 'tests/cpp/*' | xargs $(BIN)/clang-format --dry-run -Werror

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	git ls-files 'csrc/*.h' 'csrc/*.c*' 'tests/cpp/*' | xargs $(BIN)/clang-format -i

# Without the `bench` extra: the peers that scripts in benchmarks/ compare with are installed by hand (its README).
bench: $(VENV)/installed-test
	$(BIN)/python -m pytest benchmarks --benchmark-only $(PYTEST_ARGS)

clean:
	rm -rf $(VENV) .venv-oldest build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks demo-output
	find stadfast tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -f stadfast/*.so

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "stadfast needs Python 3.10 or newer: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "cannot make $(VENV): on Debian and Ubuntu, apt install python3-venv" >&2; exit 1; }

$(VENV)/installed: $(BIN)/python pyproject.toml setup.py
	$(BIN)/python -m pip install -e .
	@touch $@

$(VENV)/installed-test: $(BIN)/python pyproject.toml setup.py
	$(BIN)/python -m pip install -e '.[test]'
	@touch $@ $(VENV)/installed

$(VENV)/installed-dev: $(BIN)/python pyproject.toml setup.py
	$(BIN)/python -m pip install -e '.[test,dev]'
	@touch $@ $(VENV)/installed-test $(VENV)/installed
