# The one entry: `make demo`, `make test`, `make bench`, `make docs`. Each does its own set-up.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM = false

.PHONY: help setup demo test test-ui test-vllm nightly lint unit bench docs clean \
  lint-style lint-types lint-pages unit-all unit-jaxtyping unit-torchao

help: ## this list
	@awk -F ":.*## " '/^[a-z-]+:.*## /{printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## virtual environment with all that the project needs

$(READY): pyproject.toml constraints.txt scripts/setup.sh
	@VENV=$(VENV) PYTHON=$(PYTHON) bash scripts/setup.sh
	@touch $@

demo: $(READY) ## three prompts it was never trained on become three adapters in one batch
	@$(BIN)/promptlora demo

# Each part needs one core; two run at a time, and each shows its output when it ends.
TWO_AT_A_TIME := OMP_NUM_THREADS=1 $(MAKE) --no-print-directory -j2 --output-sync=target
LINT := lint-style lint-types lint-pages

test: $(READY) ## lint, types, layers, tests
	@$(TWO_AT_A_TIME) $(LINT) unit-jaxtyping unit-torchao
	@$(MAKE) --no-print-directory unit-all

lint: $(READY) ## style, types, layers, generated pages
	@$(TWO_AT_A_TIME) $(LINT)

unit: $(READY) ## the tests
	@$(MAKE) --no-print-directory unit-all
	@$(TWO_AT_A_TIME) unit-jaxtyping unit-torchao

lint-style: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

lint-types: $(READY)
	$(BIN)/mypy
	$(BIN)/mypy benchmarks scripts
	MYPYPATH=integrations/vllm/src $(BIN)/mypy -p promptlora_vllm

# The tests check the other generated pages and build the site.
lint-pages: $(READY)
	$(BIN)/python scripts/attention_page.py --check

# conftest.py puts the longest files first; pytest-xdist would start with those that have most tests.
unit-all: $(READY)
	$(BIN)/pytest -q -n 2 --dist loadfile --no-loadscope-reorder

unit-torchao: $(READY)
	PYTHONPATH=$(VENV)/torchao $(BIN)/pytest -q tests/test_generation_hooks.py -k torchao

# Shapes and types are checked at each call. The deselected test runs programs of their own, which are not checked.
unit-jaxtyping: $(READY)
	$(BIN)/pytest -q --jaxtyping-packages=promptlora,beartype.beartype -k "not test_memory" \
	  tests/test_encoder.py tests/test_heads.py tests/test_hypernetwork.py tests/test_losses.py

test-ui: $(READY) ## the web page alone, in a real browser (apt-get install chromium)
	$(BIN)/pytest -q tests/test_ui.py tests/test_ui_browser.py

VLLM_PYTHON := $(or $(PROMPTLORA_VLLM_PYTHON),$(VENV)/vllm/bin/python)
test-vllm: $(READY) ## the plugin in a real vLLM, if .venv/vllm is there (docs/vllm.md); writes benchmarks/results/vllm.json
	@if [ -x $(VLLM_PYTHON) ]; then \
	  $(VLLM_PYTHON) -m pip install -q --no-deps ./integrations/vllm && \
	  PROMPTLORA_VLLM_PYTHON=$(VLLM_PYTHON) PROMPTLORA_VLLM_REPORT=benchmarks/results/vllm.json \
	    $(BIN)/pytest -q -m vllm tests/test_vllm_integration.py; \
	else echo "skipped: no $(VLLM_PYTHON); docs/vllm.md says how to make the environment of vLLM"; fi

nightly: $(READY) ## the long tests: the whole stress test, ten times; every file format against 2,000 damaged files
	$(BIN)/pytest -q -m nightly --timeout=3600
	$(BIN)/pytest -q --hypothesis-profile=nightly tests/test_fuzz.py

bench: $(READY) ## measure the hooks against the bare model and PEFT
	$(BIN)/python benchmarks/injection.py --rounds 5 -o benchmarks/results/injection.json

docs: $(READY) ## the documentation as a site, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "site/index.html"

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist site
