# Everything runs in .venv, which `make setup` creates; a machine needs Python 3.11 and make.
PYTHON ?= python3
QUALITY ?= 40
RUN ?= runs/results
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup demo test slow results named clean

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

# docs/results.md from the sequences in DATA. Encodes are kept in RUN: goes on where it was stopped.
results: named $(READY)
	$(BIN)/rqlvc evaluate paper --data "$(DATA)" --out "$(RUN)"
	$(BIN)/rqlvc evaluate anchors --data "$(DATA)" --out "$(RUN)"
	$(BIN)/rqlvc evaluate stress --data "$(DATA)" --out "$(RUN)"
	$(BIN)/rqlvc report "$(RUN)" -o "$(RUN)/report.md" -y
	cat docs/results-preface.md "$(RUN)/report.md" > docs/results.md

named:
	@test -d "$(DATA)" || { echo "name the folder of the sequences: make results DATA=DIR" >&2; exit 2; }

clean:
	rm -rf $(VENV) demo dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
