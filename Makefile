# Everything runs from a virtual environment that `make setup` creates; only Python and make need to be there.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

RUN := runs/digits
SAMPLES := runs/digits-samples

.DEFAULT_GOAL := help
.PHONY: help setup demo test slow torture lint types browser docs bench

help:  ## show this list
	@echo "make TARGET, where TARGET is one of"
	@grep -E '^[a-z]+: .*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  \1\t/' | expand -t 12
	@echo "Variables: PYTHON=$(PYTHON) (creates the environment), VENV=$(VENV) (where it lies)"

setup: $(STAMP)  ## create the virtual environment and install the package with its tools

# Done once, and again when a dependency changes.
$(STAMP): pyproject.toml constraints.txt
	@echo "installing into $(VENV); the first time takes some minutes, most of them for torch"
	@$(if $(UV),,command -v uv > /dev/null && echo "uv is here, and quicker: make setup UV=uv" || true)
	@$(PYTHON) -m venv $(VENV)
	@$(if $(UV),$(UV) pip install --quiet --python $(BIN)/python,$(BIN)/python -m pip install --quiet --disable-pip-version-check) \
		-c constraints.txt -e '.[dev]'
	@touch $@

# Training resumes or returns at once when it is run again; the samples are made anew, because generate.py overwrites
# nothing. How many threads train is measured (vqstack/threads.py).
demo: $(STAMP)  ## train on scikit-learn's handwritten digits, then draw 100 samples
	$(BIN)/accelerate launch recipes/train_stack.py --out $(RUN)
	@rm -rf $(SAMPLES)
	$(BIN)/python tools/generate.py $(RUN) --num 100 --label 0 1 2 3 4 5 6 7 8 9 --out $(SAMPLES)
	@echo "the samples: $(SAMPLES)/grid.png   the ledger: $(RUN)/ledger.json"

test: $(STAMP)  ## run the tests
	@$(BIN)/python -m pytest -n auto --dist loadfile

slow: $(STAMP)  ## run the tests that take minutes: every kind of model exported, Ray, Spark, the script for a GPU
	@$(BIN)/python -m pytest -m slow

# One part: make torture PART=kills (writes, cuts, damage, mutants, memory). FORM=--short takes five minutes, writes nothing.
torture: $(STAMP)  ## kill, fill, damage and mutate everything; counts go to tests/torture/latest.json
	@OMP_NUM_THREADS=1 $(BIN)/python tests/torture/run.py $(PART) $(or $(FORM),--out tests/torture/latest.json)

lint: $(STAMP)  ## check style and formatting
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(STAMP)  ## check types
	@$(BIN)/mypy vqstack recipes tools
	@MYPYPATH=benchmarks $(BIN)/mypy --disable-error-code union-attr --disable-error-code index \
		--disable-error-code operator benchmarks

# What tests/test_explorer.py drives; elsewhere than on Debian and its like, install Chromium as the system does.
browser:  ## install the browser of the tests, where apt-get can
	@command -v chromium chromium-browser google-chrome > /dev/null || { \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium > /dev/null; }

# Its packages are installed the first time, here and not in setup: nothing else needs them.
docs: $(VENV)/.docs  ## build the documentation site into site/, without warnings
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "the site: site/index.html"

$(VENV)/.docs: $(STAMP)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $@

bench: $(STAMP)  ## measure speed and quality against the baselines
	@$(BIN)/python benchmarks/run.py
