# GRPO Lab. `make` prints this help.
SHELL := /bin/sh
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
	&& echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
TORCH := $(shell grep '^torch==' constraints.txt)
OUT ?= outputs

.DEFAULT_GOAL := help
.PHONY: help demo test check lint format types figures bench gpu-check clean

help: ## print this help
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /  \1\t/' | expand -t 14

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "GRPO Lab needs Python 3.11, 3.12 or 3.13 (PYTHON=/path/to/python make …)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch first and exactly: anything that needs it would otherwise pull the newest CUDA build.
$(VENV)/.runtime: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -q --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(VENV)/.runtime ## a sweep of 12 runs on the embedded model, with figures (minutes, CPU)
	$(BIN)/grpolab train experiment=demo output_dir=$(OUT)

test: $(VENV)/.dev ## all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist worksteal

check: $(VENV)/.dev ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

figures: $(VENV)/.runtime ## figures and tables of the latest sweep
	$(BIN)/grpolab analyze sweep=latest output_dir=$(OUT)

bench: $(VENV)/.dev ## seconds a step beside TRL on the embedded model, by phase
	$(BIN)/grpolab bench case=tiny

gpu-check: ## on a CUDA machine: the GPU tests and the step time, without MLflow or Hydra
	PYTHONPATH=src python3 experiments/benchmarks/gpu_check.py

clean: ## remove what make and the runs made (outputs stay)
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
