# make demo | test | lint | bench | bench-gpu: each makes .venv first, from PyPI, and again when pyproject.toml changes.
# PYTHON is the interpreter to start from (3.11 or newer), VENV the folder of the environment.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
JOBS ?= 2
STAMP := $(VENV)/installed
RUN := $(VENV)/bin/python -m
# what the GPU benchmark is asked for, and the interpreter it runs with: one that has PyTorch, if there is one
ARGS ?=
BENCH_PYTHON ?= $(VENV)/bin/python

.PHONY: help install demo test test-memory lint format bench bench-gpu clean

help:
	@echo "make demo    classify a photo with tuned kernels, beside onnxruntime (a few minutes)"
	@echo "make test    the test suite, on every OpenCL driver present (JOBS=$(JOBS) at a time)"
	@echo "make test-memory   every kernel family under Oclgrind (apt-get install oclgrind): stray accesses, races, barriers"
	@echo "make lint    style, types and the direction of imports"
	@echo "make bench   GEMM beside NumPy, networks beside onnxruntime and OpenVINO (ARGS as for bench-gpu)"
	@echo "make bench-gpu   networks and kernels beside PyTorch on a GPU (ARGS=\"--networks resnet50\" for a part of it)"
	@echo "make clean   remove $(VENV) and what builds leave behind"

install: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tilewright needs Python 3.11 or newer: make PYTHON=/path/to/python3.11")'
	@echo "installing into $(VENV) (a minute or two)"
	@$(PYTHON) -m venv $(VENV)
	@$(RUN) pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: $(STAMP)
	$(RUN) tilewright demo

test: $(STAMP)
	$(RUN) pytest -n $(JOBS) --dist worksteal --durations 20

test-memory: $(STAMP)
	$(RUN) pytest -n $(JOBS) -q tests/memory

lint: $(STAMP)
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	$(VENV)/bin/lint-imports --no-cache

format: $(STAMP)
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

bench: $(STAMP)
	$(VENV)/bin/python benchmarks/gemm.py
	$(VENV)/bin/python benchmarks/cpu.py --json build/cpu.json --plot build/cpu.png $(ARGS)

# PyTorch is no dependency: $(VENV)/bin/pip install torch torchvision puts it beside. Status 2 where there is no GPU.
bench-gpu: $(STAMP)
	@PYTHONPATH=. $(BENCH_PYTHON) benchmarks/gpu.py --json build/gpu.json --plot build/gpu.png $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
