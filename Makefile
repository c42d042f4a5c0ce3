# make demo   trains a small model with AttFC + AdaSin on procedural faces and verifies it (a few minutes on a CPU)
# make test   runs every test; those that need a GPU say why they do not run
# make gpu    on a machine with a GPU: builds the CUDA extension, runs the GPU tests, times the kernels (about 9 minutes)
# make bench  measures training steps of the heads and their peers by identities (25 minutes), into build/
# make lint   checks formatting
# make docs   builds the documentation into build/docs, with warnings as errors
# All of them first make .venv and install and compile the package into it, once.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Wheels of torch without CUDA exist too: TORCH="torch --index-url URL" installs another build.
TORCH ?= torch

.PHONY: demo test test-kernels gpu bench lint docs clean
.DELETE_ON_ERROR:

# Compiled again whenever a source changes.
SOURCES := setup.py pyproject.toml constraints.txt $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu')

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python $(SOURCES)
	$(BIN)/pip install --quiet --constraint constraints.txt $(TORCH) numpy setuptools wheel pybind11 ninja
	$(BIN)/pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/attfc demo

test: $(VENV)/.installed
	ATTFC_TEST_COUNTS=build/test_counts.json $(BIN)/python -m pytest
	$(MAKE) test-kernels
	$(BIN)/python tests/counting.py build/test_counts.json build/csrc/ctest.xml

# The CUDA kernels' own source, run on the CPU and compiled for every architecture; needs neither torch nor a GPU.
test-kernels: $(VENV)/.installed
	PATH="$(abspath $(BIN)):$$PATH" cmake -S . -B build/csrc -G Ninja -DPython3_EXECUTABLE=$(abspath $(BIN))/python
	PATH="$(abspath $(BIN)):$$PATH" cmake --build build/csrc
	PATH="$(abspath $(BIN)):$$PATH" ctest --test-dir build/csrc -j 2 --output-on-failure \
	  --output-junit ctest.xml --test-output-size-passed 1000000

gpu: $(VENV)/.installed
	$(BIN)/python benchmarks/gpu.py

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/run.py --output build/heads.json --overwrite --plots build/heads

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(filter-out setup.py pyproject.toml constraints.txt,$(SOURCES))

# Its libraries are an extra of their own, installed at the first build.
docs: $(VENV)/.installed
	$(BIN)/pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo written: build/docs/index.html

clean:
	rm -rf $(VENV) build dist *.egg-info attfc_cuda/_C*.so
