# The only things needed are make and Python ≥ 3.11; everything else is installed into .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Threads that wait without spinning: little slower alone, several times faster beside other work.
export OMP_WAIT_POLICY := PASSIVE

.PHONY: help demo test test-all check format docs bench bench-gpu clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-9s %s\n", $$1, $$2}'

demo: $(VENV)/.installed  ## demo data, a short training on the CPU, a picture of the result
	rm -rf runs/demo
	$(BIN)/python train.py experiment=demo hydra.run.dir=runs/demo
	@echo "The picture is runs/demo/registered.png"

test: $(VENV)/.installed  ## the test suite: all but what is slow, needs a GPU or a network
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

test-all: $(VENV)/.installed  ## the slow tests as well
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile -m 'not gpu and not network'

check: $(VENV)/.installed  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed  ## mend lint and format where that can be done by itself
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed  ## the site, without a network: site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "The site is site/index.html"

bench: $(VENV)/.installed  ## how fast it is, side by side with what it could be: runs/bench.json
	$(BIN)/python -m benchmarks

bench-gpu: $(VENV)/.installed  ## the same of a GPU: runs/bench-gpu.json
	$(BIN)/python -m benchmarks --gpu --out runs/bench-gpu.json

clean:  ## remove the environment and what tools have left; runs/ and demo_data/ stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed, found $$($(PYTHON) --version); say make PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@
