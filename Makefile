# `make demo` and `make test` set up everything they need in .venv, once.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
OUT    ?= runs/scaling_law
EXTRAS ?= dev
READY  := $(VENV)/.ready-$(EXTRAS)

.PHONY: demo test check setup clean-runs

demo: setup
	$(BIN)/jaxdistill sweep experiments/scaling_law.py --out $(OUT)
	$(BIN)/jaxdistill fit $(OUT)

test: check $(VENV)/libtpu
	$(BIN)/python -m pytest

# The TPU's compiler, with which kernels are compiled for chips that are not here. It stands beside the packages and not
# among them: where JAX finds it, it looks for a TPU at every start and complains that there is none.
$(VENV)/libtpu: | $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps --target $@ libtpu || \
	  echo "there is no libtpu for this machine: what needs it will be skipped"

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ty check
	$(BIN)/lint-imports

setup: $(READY)

# A machine without the venv module (Debian ships it apart) gets virtualenv instead.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV) || { \
	  $(PYTHON) -m pip install --quiet --target .bootstrap virtualenv && \
	  PYTHONPATH=.bootstrap $(PYTHON) -m virtualenv --quiet $(VENV); }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	touch $@

clean-runs:
	rm -rf runs
