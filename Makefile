# Two commands need nothing but Python 3.11-3.13, pip and make:
#   make demo    set everything up, train, and show what fast weights do
#   make test    set up what the tests need, and run them
PYTHON ?= python3
VENV   ?= .venv
JOBS   ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null || echo 2)
UV     := $(shell command -v uv 2>/dev/null)
BIN    := $(VENV)/bin
comma  := ,

#: tests that need torch, transformers or lm-eval; they skip, saying so, where these are absent
PARITY := $(shell grep -rlE 'importorskip..(torch|transformers|lm_eval)' tests)

.PHONY: help demo test parity lint types check format bench-rnn bench-in-place bench-decode clean

help:
	@sed -n 's/^#   //p' Makefile

demo: $(VENV)/.run
	$(BIN)/fastweights demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(JOBS)

#   make parity  the language models beside transformers, torch and lm-evaluation-harness,
#                compiled as users compile them, which make test does not for speed
parity: $(VENV)/.parity
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 XLA_FLAGS= $(BIN)/python -m pytest -n $(JOBS) $(PARITY)

#   make check   lint, types and tests
check: lint types test

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/.dev
	$(BIN)/pyright

#   make format  rewrite the code as the linter wants it
format: $(VENV)/.dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

#   make bench-rnn  the recurrent layers beside PyTorch's and flax's
bench-rnn: $(VENV)/.bench
	$(BIN)/python benchmarks/rnn.py

#   make bench-in-place  one in-place layer beside a plain projection and its other forms
bench-in-place: $(VENV)/.bench
	$(BIN)/python benchmarks/in_place.py

#   make bench-decode  time of a new token, beside transformers
bench-decode: $(VENV)/.bench
	$(BIN)/python benchmarks/decode.py

#   make clean   remove the environment and caches, not your runs
clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache src/*.egg-info

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "fastweights needs Python 3.11 to 3.13, and $(PYTHON) is $$($(PYTHON) -V 2>&1)." >&2; \
	  echo "next: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
ifdef UV
	$(UV) venv --quiet --python $(PYTHON) $(VENV)
else
	$(PYTHON) -m venv $(VENV)
endif

# one stamp per set of extras; editing the dependency lists installs anew
define install
	@echo "installing fastweights[$(1)] into $(VENV), a minute or two the first time"
	@if [ -n "$(UV)" ]; then $(UV) pip install --quiet --python $(BIN)/python -e '.[$(1)]'; \
	 else $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$(1)]'; fi
	@touch $@
endef

$(VENV)/.run: pyproject.toml requirements.txt | $(BIN)/python
	$(call install,plot)

$(VENV)/.dev: pyproject.toml requirements.txt | $(BIN)/python
	$(call install,dev)

$(VENV)/.parity: pyproject.toml requirements.txt | $(BIN)/python
	$(call install,dev$(comma)parity$(comma)eval)

$(VENV)/.bench: pyproject.toml requirements.txt | $(BIN)/python
	$(call install,bench)
