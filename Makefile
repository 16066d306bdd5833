# Two commands are enough for a newcomer: `make demo` and `make test`. `make help` lists the rest.

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
PIP_ARGS ?=
PARALLEL ?= 2
WORKDIR ?= runs/experiments
ONLY ?=
PINS := constraints.txt
EXTRAS := test

PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check -c $(PINS) $(PIP_ARGS)
AGAIN := make $(MAKECMDGOALS)
INSTALLED := $(VENV)/.installed
LIBTPU := $(VENV)/libtpu/.installed
INTEROP := $(VENV)/.installed-interop
GPU := $(VENV)/.installed-gpu
FAST := not slow and not interop and not gpu and not beam

.PHONY: help demo test test-slow test-interop test-gpu test-prepare beam lint bench experiments clean
.DEFAULT_GOAL := help

help:
	@echo "make demo          set up .venv and train a small multi-token model on this machine, in about five minutes"
	@echo "make test          set up .venv and run the test suite"
	@echo "make test-slow     the tests that take long"
	@echo "make test-interop  also installs torch and transformers, and compares with them"
	@echo "make test-gpu      the tests that need an NVIDIA GPU; also installs jax for CUDA"
	@echo "make test-prepare  sets up .venv-prepare with Apache Beam, and compares its output with the local one's"
	@echo "make lint          ruff and mypy"
	@echo "make bench         every benchmark; each prints one JSON line a case"
	@echo "make experiments   the paper's experiments in small; ONLY=star_graph runs one. PARALLEL=2 WORKDIR=runs/experiments"
	@echo "make clean         remove .venv, .venv-prepare and caches; runs/ stays"
	@echo
	@echo "PYTHON=python3.12 picks the interpreter of a new .venv. PIP_ARGS=... is passed to pip: on Linux torch comes with"
	@echo "CUDA (several GB) unless PIP_ARGS='--extra-index-url URL' names PyTorch's index of CPU builds."

demo: $(INSTALLED)
	@echo "Demo: trains the experiment code_bytes in runs/code_bytes, about three minutes on 2 cores; stop it with Ctrl-C,"
	@echo "run it again and it goes on from its checkpoint."
	@$(PY) -m experiments.code_bytes --workdir=runs/code_bytes

test: $(INSTALLED) $(LIBTPU)
	@echo "Running the test suite in $(JOBS) processes; it should take less than ten minutes"
	@$(PY) -m pytest -q -n $(JOBS) -m "$(FAST)"

test-slow: $(INSTALLED) $(LIBTPU)
	@echo "Running the slow tests"
	@$(PY) -m pytest -q -m slow || [ $$? -eq 5 ]

test-interop: $(INTEROP)
	@echo "Running the comparisons with torch and transformers"
	@$(PY) -m pytest -q -m interop || [ $$? -eq 5 ]

test-gpu: $(GPU)
	@echo "Running the tests that need a GPU"
	@MTP_JAX_TEST_PLATFORM=cuda,cpu $(PY) -m pytest -q -m gpu || [ $$? -eq 5 ]

# Beam asks for older versions of what constraints.txt pins, and so it gets an environment of its own.
test-prepare:
	@$(MAKE) --no-print-directory VENV=$(VENV)-prepare PINS=constraints-prepare.txt EXTRAS=test,prepare \
	  AGAIN='make test-prepare' beam

beam: $(INSTALLED)
	@echo "Running the tests of prepare on Apache Beam"
	@$(PY) -m pytest -q -m beam

lint: $(INSTALLED)
	@$(PY) -m ruff check .
	@$(PY) -m mypy

bench: $(INTEROP)
	@for file in benchmarks/[a-z]*.py; do $(PY) -m benchmarks.$$(basename $$file .py) || exit 1; done

experiments: $(INSTALLED)
	@$(PY) -m mtp_jax.study --workdir=$(WORKDIR) --parallel=$(PARALLEL) $(ONLY:%=--experiment=%)

clean:
	rm -rf $(VENV) $(VENV)-prepare build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is newer than setup.py and the pins when the environment is as they say.
$(INSTALLED): setup.py $(PINS)
	@if ! $(PY) -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	  command -v $(PYTHON) >/dev/null || \
	    { echo "$(PYTHON) was not found. Install Python 3.11 or newer, or name it: $(AGAIN) PYTHON=/path/to/python3"; exit 1; }; \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "mtp_jax needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1)."; \
	      echo "Install a newer one and name it, such as: $(AGAIN) PYTHON=python3.12"; exit 1; }; \
	  $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	    { echo "$(PYTHON) has no venv module. On Debian and Ubuntu: sudo apt install python3-venv"; \
	      echo "Then again: $(AGAIN)"; exit 1; }; \
	  echo "Making a Python environment in $(VENV)"; \
	  $(PYTHON) -m venv --clear $(VENV); \
	fi
	@echo "Installing mtp_jax and what it needs into $(VENV) (one to three minutes the first time)"
	@$(PIP) -e '.[$(EXTRAS)]'
	@touch $@

# The TPU compiler for the tests, beside the environment: inside it JAX would look for a TPU at every start.
$(LIBTPU): $(INSTALLED)
	@rm -rf $(VENV)/libtpu && mkdir -p $(VENV)/libtpu
	@if [ "$$(uname -sm)" = "Linux x86_64" ]; then \
	  echo "Downloading the TPU compiler for the tests into $(VENV)/libtpu"; \
	  $(PIP) --no-deps --target $(VENV)/libtpu libtpu; \
	else \
	  echo "libtpu is built for Linux on x86-64 alone: the tests that compile for a TPU will be skipped"; \
	fi
	@touch $@

$(INTEROP): $(INSTALLED)
	@echo "Installing torch and transformers into $(VENV) (several minutes the first time)"
	@$(PIP) -e '.[test,interop]'
	@touch $@

$(GPU): $(INSTALLED)
	@echo "Installing jax for CUDA into $(VENV) (several minutes the first time)"
	@$(PIP) -e '.[test,gpu]'
	@touch $@
