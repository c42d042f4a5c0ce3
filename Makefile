# make demo   trains a small model with AttFC + AdaSin on procedural faces and verifies it (a few minutes on a CPU)
# make test   tests what a change can break; tests that need a GPU say why they do not run
# make proof  the rest, for a release: every architecture, sanitizers, planted faults, long fuzzing, kills, the documentation
# make gpu    on a machine with a GPU: builds the CUDA extension, runs the GPU tests, times the kernels (about 10 minutes)
# make bench  measures training steps of the heads and their peers by identities (25 minutes), into build/
# make lint   checks formatting and types
# make docs   builds the documentation into build/docs, with warnings as errors
# make findings  shows the surprises in other packages that findings/ records; each in a folder and environment of its own
# make wheel  builds dist/*.whl with the extension compiled, for this Python and this torch, and the source archive
# make ext    compiles what has changed in the CPU extension since the last time, and nothing else
# All of them but findings first make .venv and install and compile the package into it, once.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Wheels of torch without CUDA exist too: TORCH="torch --index-url URL" installs another build.
TORCH ?= torch
# Processes that run tests: as many as there are cores, four at most (each imports torch).
WORKERS ?= auto

.PHONY: demo test proof gpu bench lint findings docs wheel ext clean
.DELETE_ON_ERROR:

# Compiled again whenever a source changes.
SOURCES := setup.py pyproject.toml constraints.txt $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu')
CPP_SOURCES := $(filter-out setup.py pyproject.toml constraints.txt,$(SOURCES)) $(wildcard tests/csrc/*.cpp tests/csrc/*.h)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python $(SOURCES)
	$(BIN)/pip install --quiet --constraint constraints.txt $(TORCH) numpy setuptools wheel pybind11 ninja
	$(BIN)/pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	@touch $@

ext: $(BIN)/python
	$(BIN)/python setup.py --quiet build_ext --inplace

demo: $(VENV)/.installed
	$(BIN)/attfc demo

# A file of tests stays in one process: what it prepares is prepared once. Proofs are few and long and prepare their
# own, so that each goes to the process that is free, but for those of an xdist_group.
PYTEST = $(BIN)/python -m pytest --numprocesses $(WORKERS) --maxprocesses 4
# The CUDA kernels' own source, run on the CPU and compiled for every architecture; needs neither torch nor a GPU.
IN_VENV = PATH="$(abspath $(BIN)):$$PATH"
CMAKE = $(IN_VENV) cmake -S . -B build/csrc -G Ninja -DPython3_EXECUTABLE=$(abspath $(BIN))/python
CTEST = $(IN_VENV) ctest --test-dir build/csrc -j 2 --output-on-failure --output-junit ctest.xml --test-output-size-passed 1000000

test: $(VENV)/.installed
	$(PYTEST) --dist loadfile -m "not proof" --reports=build/reports/test
	$(CMAKE)
	$(IN_VENV) cmake --build build/csrc --target host_plain
	$(CTEST) -LE proof
	$(BIN)/python tests/counting.py build/reports/test build/csrc/ctest.xml

proof: $(VENV)/.installed docs
	$(PYTEST) --dist loadgroup -m proof --reports=build/reports/proof
	$(CMAKE)
	$(IN_VENV) cmake --build build/csrc
	$(CTEST) -L proof
	$(BIN)/python tests/counting.py build/reports/proof build/csrc/ctest.xml

gpu: $(VENV)/.installed
	$(BIN)/python benchmarks/gpu.py

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/run.py --output build/heads.json --overwrite --plots build/heads

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CPP_SOURCES)
	$(BIN)/mypy

# Runs every script even after one has failed.
findings:
	@failed=0; for script in findings/*.sh; do \
	  if bash "$$script"; then echo "pass: $$script"; else echo "FAIL: $$script"; failed=1; fi; \
	done; exit $$failed

docs: $(VENV)/.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo written: build/docs/index.html

wheel: $(VENV)/.installed
	$(BIN)/python -m build --no-isolation --outdir dist

clean:
	rm -rf $(VENV) build dist *.egg-info attfc_cuda/_C*.so
