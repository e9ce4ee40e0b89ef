# Everything that CI does, make does. `make help` lists the targets.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
SRC := npusim models scheduler reports training

.PHONY: help profile setup browser readers test test-fast lint types contract wheel bench peers fit docs clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip

$(VENV)/core: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e .
	@touch $@

$(VENV)/test: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e '.[test]'
	@touch $@ $(VENV)/core

profile: $(VENV)/core ## the main job on the embedded network (installs the core, without torch)
	$(BIN)/npusim profile bk-sdm-tiny --tiles auto

setup: $(VENV)/test ## install what tests, lint and types need

browser: ## Debian's Chromium, for the tests of the pages
	@command -v chromium >/dev/null 2>&1 || { apt-get update -qq && apt-get install -y -qq chromium chromium-driver >/dev/null; } \
	  || echo "chromium cannot be installed here: the browser tests will be skipped, and say so"

readers: $(VENV)/test ## environments of the tools that read our exports (onnxruntime 1.18, AIMET, polars)
	bash tools/build_readers.sh $(BIN)/python $(VENV)/readers

test: $(VENV)/test browser readers ## all tests
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-fast: $(VENV)/test ## the tests that take under two minutes
	$(BIN)/python -m pytest -n 2 -m "not slow and not training"

lint: $(VENV)/test ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/test ## mypy, strict
	$(BIN)/mypy

contract: $(VENV)/test ## who may import whom
	$(BIN)/lint-imports

wheel: $(VENV)/test ## build the wheel, install it alone, run the main job and a test from outside the checkout
	bash tools/check_wheel.sh $(BIN)/python

bench: $(VENV)/test ## benchmarks, as ratios
	$(BIN)/python -m pytest benchmarks --benchmark-only -s

peers: $(VENV)/core ## npusim beside Vela, ZigZag and Stream, each in its own environment (downloads them; minutes)
	$(BIN)/python benchmarks/peers.py --folder $(VENV)/peers

fit: $(VENV)/test ## rerun the fit that made the preset exynos2400
	$(BIN)/npusim npu fit npusim/presets/exynos2400.targets.toml

clean: ## remove what make made
	rm -rf $(VENV) build dist *.egg-info npusim-runs .pytest_cache .mypy_cache .ruff_cache .benchmarks
