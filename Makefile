# Only make and Python ≥ 3.11 are needed; everything else is installed into .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Waiting threads do not spin: slightly slower alone, several times faster beside other work.
export OMP_WAIT_POLICY := PASSIVE

.PHONY: help demo test test-all check format docs bench bench-gpu clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-9s %s\n", $$1, $$2}'

demo: $(VENV)/.installed  ## train briefly on demo data on the CPU and draw the result
	rm -rf runs/demo
	$(BIN)/python train.py experiment=demo hydra.run.dir=runs/demo
	@echo "The picture is runs/demo/registered.png"

test: $(VENV)/.installed  ## run the test suite, without slow tests and tests that need a GPU or a network
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

test-all: $(VENV)/.installed  ## run the test suite with the slow tests
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile -m 'not gpu and not network'

check: $(VENV)/.installed  ## check lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed  ## fix formatting and simple lint errors
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed  ## the site, without a network: site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "The site is site/index.html"

bench: $(VENV)/.installed  ## how fast it is, side by side with what it could be: runs/bench.json
	$(BIN)/python -m benchmarks

bench-gpu: $(VENV)/.installed  ## measure speed on a GPU: runs/bench-gpu.json
	$(BIN)/python -m benchmarks --gpu --out runs/bench-gpu.json

clean:  ## delete the environment and the tools' caches; keep runs/ and demo_data/
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed, found $$($(PYTHON) --version): use make PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@
