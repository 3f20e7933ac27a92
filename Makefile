# quantgate: `make quantize RECIPE=fp8` and `make test` are all you need; `make help` lists the rest.
.DEFAULT_GOAL := help
.PHONY: help setup quantize release test test-slow test-vllm test-llama test-engines test-browser test-gpu check format docs results models simulate locks bench clean

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# with what is needed only to develop
READY_DEV := $(VENV)/.ready-dev
INSTALL = $(BIN)/python -m pip install -qq --no-compile --disable-pip-version-check --constraint constraints.txt --editable
# On all cores, which pip's own is not, and where PYTHONDONTWRITEBYTECODE is set, too: without byte code, each command
# takes twice as long to start. Some packages hold templates that are no Python.
COMPILE = $(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true

help: ## show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## make the environment in .venv, from pinned versions

$(READY): pyproject.toml constraints.txt
	$(call environment,1.6 GB; a minute or two,once)
	$(INSTALL) .
	@echo "compiling byte code, which each command starts faster with"; $(COMPILE)
	@touch $@

$(READY_DEV): pyproject.toml constraints.txt
	$(call environment,2.5 GB; two or three minutes,once)
	$(INSTALL) '.[dev]'
	@echo "compiling byte code, which each command starts faster with"; $(COMPILE)
	@touch $@ $(READY)

define environment
@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' \
  || { echo "quantgate needs Python 3.11 to 3.13; set PYTHON=/path/to/one"; exit 2; }
@echo "making the environment in $(VENV) ($(1), $(2))"
@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
endef

quantize: $(READY) ## take MODEL through RECIPE (or several) and publish into TO, e.g. make quantize RECIPE="fp8 int8"
	@$(BIN)/quantgate run $(or $(RECIPE),$(error say which: make quantize RECIPE=fp8)) \
	  $(if $(MODEL),--model '$(MODEL)') $(if $(TO),--to '$(TO)') $(foreach pair,$(SET),--set '$(pair)')

# CI jobs pass these in the environment, where make leaves them as they are; the shell gets them quoted.
release: $(READY) ## take all models through all recipes of FILE, report into OUT (DRY=1, NO_PUBLISH=1, TO=target)
	@$(if $(value FILE),,$(error say which: make release FILE=release.yaml))$(BIN)/quantgate release "$$FILE" \
	  $(if $(value OUT),--out "$$OUT") $(if $(value TO),--to "$$TO") $(if $(value DRY),--dry-run) $(if $(value NO_PUBLISH),--no-publish) \
	  $(if $(value SIGNING_KEY),--signing-key "$$SIGNING_KEY") $(if $(value SIGN_KEYLESS),--sign-keyless)

check: $(READY_DEV) ## lint, format check and types; the workflows, too
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/actionlint -shellcheck= -pyflakes= .github/workflows/*.yml examples/ci/github/*.yml

# Two processes with one thread each are faster than one with two, and do not wait for each other's threads.
test: check ## check, then the default tests (minutes)
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --maxprocesses 8 --dist worksteal

test-slow: $(READY_DEV) ## the tests that take long
	$(BIN)/pytest -m slow

test-vllm: $(READY_DEV) ## the tests that run vLLM (makes its environment: minutes and gigabytes, once)
	$(BIN)/pytest -m vllm

test-llama: $(READY_DEV) ## the tests that run llama.cpp (compiles it: minutes, once)
	$(BIN)/pytest -m llama

LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --python $(BIN)/python --generate-hashes \
  --no-annotate --override pipelines/environments/locks/no-torch.override --no-emit-package torch --no-emit-package triton \
  --custom-compile-command 'make locks'

locks: $(READY_DEV) ## resolve the locks of the engines' environments anew
	$(foreach name,$(basename $(notdir $(wildcard pipelines/environments/locks/*.in))),$(LOCK) --upgrade --output-file pipelines/environments/locks/$(name).txt pipelines/environments/locks/$(name).in &&) true

test-engines: $(READY_DEV) ## the tests that run other projects' engines (makes their environments: minutes, once)
	$(BIN)/pytest -m engines

test-gpu: $(READY_DEV) ## the tests that need a GPU (skipped without one)
	$(BIN)/pytest -m gpu

test-browser: $(READY_DEV) ## the tests that show reports in headless Chromium (Debian: apt-get install chromium)
	$(BIN)/pytest -m browser

format: $(READY_DEV) ## format the code and mend what ruff can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(READY_DEV) ## regenerate the documents that are made from code
	$(BIN)/python -m docs.generate

results: $(READY) ## the table of docs/results.md from the records of runs: make results RUNS="artifacts/SmolLM2-135M-Instruct"
	@$(BIN)/python -m docs.results $(or $(RUNS),$(error say which: make results RUNS=artifacts/SmolLM2-135M-Instruct))

models: $(READY_DEV) ## try every causal language model of transformers anew, or TYPES="llama gpt2": docs/models.md (half an hour)
	OMP_NUM_THREADS=1 $(BIN)/python -m docs.models $(TYPES)

simulate: $(READY_DEV) ## simulate the gate anew: the figures and tables of docs/gate.md (minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m docs.simulate

bench: $(READY_DEV) ## the benchmarks (see benchmarks/README.md)
	$(BIN)/python -m benchmarks.quantize
	$(BIN)/python -m benchmarks.gguf_files
	$(BIN)/python -m benchmarks.engines
	$(BIN)/python -m benchmarks.evaluate

clean: ## remove the environment and what tools left behind (not artifacts/, not the cache)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache dist
