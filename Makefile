# The first target that needs it makes .venv. To change the Python afterwards: make clean.
PYTHON ?= python3
PROFILE ?= quick
BENCHMARKS ?= phantoms training forward lift

RUN := .venv/bin/python -m
CPU := $(if $(shell command -v nvidia-smi 2>/dev/null),,-c constraints-cpu.txt)

# Everything that tools would write to the home folder goes to build/, so that HOME may be read-only.
export XDG_CACHE_HOME := $(CURDIR)/build/.cache
export XDG_DATA_HOME := $(XDG_CACHE_HOME)/share
export XDG_STATE_HOME := $(XDG_CACHE_HOME)/state
export IPYTHONDIR := $(XDG_CACHE_HOME)/ipython
export JUPYTER_CONFIG_DIR := $(XDG_CACHE_HOME)/jupyter/config
export JUPYTER_DATA_DIR := $(XDG_CACHE_HOME)/jupyter/data
export JUPYTER_RUNTIME_DIR := $(XDG_CACHE_HOME)/jupyter/runtime
export MPLCONFIGDIR := $(XDG_CACHE_HOME)/matplotlib
export NUMBA_CACHE_DIR := $(XDG_CACHE_HOME)/numba
export PIP_CACHE_DIR := $(XDG_CACHE_HOME)/pip
export TORCHINDUCTOR_CACHE_DIR := $(XDG_CACHE_HOME)/inductor
export TRITON_CACHE_DIR := $(XDG_CACHE_HOME)/triton
export WANDB_DIR := $(CURDIR)/build
export WANDB_CACHE_DIR := $(XDG_CACHE_HOME)/wandb
export WANDB_CONFIG_DIR := $(XDG_CACHE_HOME)/wandb
export WANDB_DATA_DIR := $(XDG_CACHE_HOME)/wandb
# Another environment's packages must not shadow .venv's.
unexport PYTHONPATH PYTHONHOME PIP_USER PIP_TARGET

help:  ## list the targets (default)
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' Makefile
	@echo 'Variables: PYTHON=$(PYTHON), PROFILE=$(PROFILE) (smoke, quick or full; for workbook, bench and drafts)'

install: .venv/installed  ## make .venv and nothing else

workbook: .venv/installed | build/.cache  ## run all notebooks and write the HTML book to build/PROFILE/
	@$(RUN) dotlib workbook --profile "$(PROFILE)"

figures: .venv/installed | build/.cache  ## render figures/ from results/, and their pages to build/recorded/
	@$(RUN) dotlib figures

thesis: .venv/installed | build/.cache  ## compile a document of figures/ (DRAFT=1: marked ones too)
	@$(RUN) dotlib thesis $(if $(DRAFT),--draft $(PROFILE))

test: .venv/installed | build/.cache  ## run the tests, then the notebooks in the smoke profile
	@WANDB_MODE=disabled $(RUN) pytest
	@WANDB_MODE=disabled DOTLIB_PROFILE=smoke $(RUN) pytest --nbval-lax notebooks

browser: .venv/installed | build/.cache  ## run the tests of the pages and of JupyterLab in headless Chromium
	@$(RUN) pip install $(CPU) --quiet --editable '.[test,lint,browser]'
	@WANDB_MODE=disabled $(RUN) pytest -m browser

lint: .venv/installed | build/.cache  ## check style and formatting, and count the package's lines
	@$(RUN) ruff check .
	@$(RUN) ruff format --check .
	@find notebooks -name '.*' -prune -o -name '*.ipynb' -exec $(RUN) nbstripout --verify --keep-id {} +
	@echo "dotlib: $$(find dotlib -name '*.py' -exec cat {} + | wc -l) lines"

bench: .venv/installed | build/.cache  ## time the parts against their baselines
	@for name in $(BENCHMARKS); do $(RUN) dotlib bench "$$name" --profile "$(PROFILE)" || exit; done

lab: .venv/installed | build/.cache  ## open JupyterLab on the notebooks
	@$(RUN) jupyterlab

clean:  ## remove .venv, build/ and caches; data/, runs/, figures/ and results/ stay
	rm -rf .venv build .pytest_cache .ruff_cache *.egg-info
	find dotlib tests notebooks benchmarks \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} + 2>/dev/null || true

.PHONY: help install workbook figures thesis test browser lint bench lab clean

build/.cache:
	@mkdir -p $@

# The stamp is written last and holds the project's folder: after an interruption, or a move, .venv starts anew.
ifneq ($(shell cat .venv/installed 2>/dev/null),$(CURDIR))
.PHONY: .venv/installed
endif
.venv/installed: pyproject.toml constraints-cpu.txt
	@"$(PYTHON)" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null || \
	{ echo "dotlib needs Python 3.11 to 3.13 with venv; '$(PYTHON)' is not: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@[ "$$(cat $@ 2>/dev/null)" = "$$(pwd -P)" ] && rm $@ || "$(PYTHON)" -m venv --clear .venv
	$(RUN) pip install $(CPU) --editable '.[test,lint]'
	@pwd -P > $@
