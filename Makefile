# The commands of the project. A machine needs python3 (3.11 or newer), make and a package index;
# everything else is put into .venv/ by the first command that wants it. `make help` lists them.

EXPERIMENT = dpt_bandit#  a script in experiments/, without .py
PRESET     = cpu#         a run preset: cpu, paper, or another of the experiment
ARGS       =#             more options, e.g. ARGS="--seed 1"
JAX_EXTRA  =#             cpu, cuda13, cuda12 or tpu; empty: what .venv was made for, else what this machine has
PYTHON     = python3#     the interpreter that .venv is made from

# Refused here, before .venv is made.
EXPERIMENTS := $(filter-out _% sweep,$(sort $(basename $(notdir $(wildcard experiments/*.py)))))
ifneq ($(filter train sweep,$(MAKECMDGOALS)),)
ifeq ($(filter $(EXPERIMENT),$(EXPERIMENTS)),)
$(error There is no experiment '$(EXPERIMENT)'. There are: $(EXPERIMENTS))
endif
endif

VENV := .venv
PY   := $(VENV)/bin/python

# What the targets run, in one place.
TRAIN     = $(PY) -m experiments.$(EXPERIMENT) --preset $(PRESET) $(ARGS)
SWEEP     = $(PY) -m experiments.sweep --experiment $(EXPERIMENT) --preset $(PRESET) $(ARGS)
BENCH     = $(PY) -m benchmarks.bench $(ARGS)
TEST      = JAX_PLATFORMS=cpu $(PY) -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder $(ARGS)
NOTEBOOKS = $(PY) -m pytest --nbmake --nbmake-timeout 3600 --timeout 3600 notebooks $(ARGS)

# Compiled programs are kept between runs, however quick they were to compile.
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help train sweep bench test check format notebooks venv clean force

help:
	@echo "make train       train and evaluate: EXPERIMENT=dpt_bandit PRESET=cpu ARGS=\"--seed 1\""
	@echo "make sweep       learning rates x seeds of one EXPERIMENT, one table"
	@echo "make bench       measure speed"
	@echo "make test        the whole test suite, on the CPU"
	@echo "make check       formatting, lint, types, import contract"
	@echo "make format      put the formatting right"
	@echo "make notebooks   execute the notebooks"
	@echo "make venv        only the environment, in .venv/; the other targets make it when they need it"
	@echo "make clean       remove .venv/ and caches; runs/ stays"
	@echo
	@echo "JAX_EXTRA=cpu, cuda13, cuda12 or tpu chooses the accelerator, PYTHON=python3.12 the interpreter."
	@echo "python -m experiments.<name> --help lists the options of an experiment."

train: venv
	@$(CPU_DEVICES); $(TRAIN)

sweep: venv
	@$(CPU_DEVICES); $(SWEEP)

bench: venv
	@$(CPU_DEVICES); $(BENCH)

test: venv
	@$(TEST)

check: venv
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/ruff check
	$(VENV)/bin/pyright
	$(VENV)/bin/lint-imports --no-logo

format: venv
	$(VENV)/bin/ruff format
	$(VENV)/bin/ruff check --fix

notebooks: venv
	@$(NOTEBOOKS)

clean:
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache build dist
	find icrl_jax envs experiments benchmarks tests -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# ---- The environment -------------------------------------------------------------------------------------------
# $(STAMP) is written last, and says what .venv was made for: "<extra> <this directory>". Without it (an install was
# interrupted), or when it names another accelerator or place (a copied tree), .venv is made from nothing. When it is
# only older than pyproject.toml or constraints.txt, the packages are brought up to date in place.

STAMP := $(VENV)/.complete
MADE  := $(shell test -x $(PY) && cat $(STAMP) 2>/dev/null)

# Drivers from 580 on run CUDA 13 (cards from compute capability 7.5 on), from 525 on CUDA 12.
DETECT = nvidia-smi --query-gpu=driver_version,compute_cap --format=csv,noheader 2>/dev/null | awk -F '[., ]+' ' \
  $$1 ~ /^[0-9]+$$/ { if (!n++ || $$1 < driver) driver = $$1; if ($$NF ~ /^[0-9]+$$/ \
    && $$(NF-1) * 10 + $$NF < 75) old = 1 } \
  END { print (driver >= 580 && !old ? "cuda13" : (driver >= 525 ? "cuda12" : "cpu")) }'

EXTRA := $(strip $(JAX_EXTRA))
ifeq ($(EXTRA),)
EXTRA := $(or $(firstword $(MADE)),$(shell $(DETECT)),cpu)
endif
ifeq ($(filter $(EXTRA),cpu cuda13 cuda12 tpu),)
$(error JAX_EXTRA is '$(EXTRA)'; it can be cpu, cuda13, cuda12, tpu, or empty to choose by what this machine has)
endif
ACCELERATOR := $(filter-out cpu,$(EXTRA))
WANTED := $(EXTRA) $(CURDIR)

venv: $(STAMP)
	@:

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "$(PYTHON) must be Python 3.11 or newer; here it is: $$($(PYTHON) --version 2>&1 | tail -1)." \
	       "Choose another one with PYTHON=/path/to/python3."; exit 2; } >&2
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments. On Debian and Ubuntu: apt install python3-venv"; exit 2; } >&2
	@set -e; trap 'exit 130' HUP INT TERM; \
	rm -f $(STAMP).old; \
	if [ -n "$(REMAKE)" ]; then \
	  echo "Making .venv and installing the packages for $(EXTRA), once: $(COST)."; \
	  rm -f $(STAMP); $(PYTHON) -m venv --clear $(VENV); \
	else \
	  echo "Bringing .venv up to date: a few seconds when little has changed."; \
	  mv $(STAMP) $(STAMP).old; \
	fi; \
	$(PY) -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev$(ACCELERATOR:%=,%)]' || { \
	  echo "The packages could not be installed (the message above says why). The same command tries again." >&2; \
	  if [ -f $(STAMP).old ]; then mv $(STAMP).old $(STAMP); fi; exit 1; }; \
	rm -f $(STAMP).old; echo "$(WANTED)" > $(STAMP); \
	echo "The environment in .venv is ready."

ifneq ($(MADE),$(WANTED))
REMAKE := yes
$(STAMP): force
endif
COST := $(if $(filter cuda%,$(EXTRA)),about 6 GB and several minutes,about 1.7 GB and one to five minutes)

# Without an accelerator the batch is split over one virtual device per core: at most 8, and a power of two so that
# the usual batch sizes divide.
CORES = $$($(PY) -c 'import os; n = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(); \
  print(2 ** (min(n or 1, 8).bit_length() - 1))')
CPU_DEVICES = $(if $(ACCELERATOR),:,export JAX_NUM_CPU_DEVICES=$${JAX_NUM_CPU_DEVICES:-$(CORES)})
