# Everything runs in .venv, which `make setup` creates; a machine needs Python 3.11 and make.
PYTHON ?= python3
QUALITY ?= 40
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup demo test slow clean

setup: $(READY)

# PyTorch first and alone: it is the one large download, and pip keeps it when the rest fails.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# A real clip through the codec and back: a table, and demo/demo.png.
demo: $(READY)
	$(BIN)/python -m rqlvc.evaluation.demo --folder demo --quality $(QUALITY)

test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -m "not slow"

slow: $(READY)
	$(BIN)/pytest -m slow

clean:
	rm -rf $(VENV) demo dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
