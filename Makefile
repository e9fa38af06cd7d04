# Everything below works on a fresh machine with Python >= 3.11 and make; the environment lives in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# With both cores busy, OpenMP threads that spin while they wait slow a step down many times over.
export OMP_WAIT_POLICY := PASSIVE
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Files are compiled once, not by every process that the tests start.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help demo test env lint types check bench bench-optimiser reliability compatibility package docs clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

env: $(VENV)/installed ## make the environment and install the package into it

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python >= 3.11 is needed, found " + sys.version.split()[0] + "; try make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (a few minutes the first time)"
	$(BIN)/python -m pip install -q -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[experiments,lightning,csv,tensorboard,bench,dev]'
	$(BIN)/python -m pip install -q -c constraints.txt einops einconv linear_operator jaxtyping opt-einsum scipy tqdm
	$(BIN)/python -m pip install -q -c constraints.txt --no-deps curvlinops-for-pytorch
	@touch $@

demo: env ## train on the embedded data by the paper's method; writes runs/demo with its summary and curves.png
	@rm -rf runs/demo
	$(BIN)/targetprop train --method iterated --out runs/demo

test: env lint ## linters, types, doctests, examples and tests: some minutes on 2 cores
	@$(MAKE) --no-print-directory -j 2 types check

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: env
	$(BIN)/basedpyright --pythonpath $(BIN)/python

check: env  # one thread for each of the two processes, which have a core each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -q

bench: env ## step time and memory against back-propagation, and MNIST accuracy if DATA=DIR is given
	$(BIN)/python benchmarks/step_time.py --out benchmarks/results/step_time.json
	$(BIN)/python benchmarks/conv_step_time.py --out benchmarks/results/conv_step_time.json
	$(BIN)/python benchmarks/memory.py --out benchmarks/results/memory.json
	$(if $(DATA),cd benchmarks && ../$(BIN)/python -m accuracy table --root $(DATA) --out results/accuracy.json)

bench-optimiser: env ## tuned optimisers on a small autoencoder, of MNIST if DATA=DIR is given
	$(BIN)/targetprop bench $(if $(DATA),autoencoder-small --root $(DATA),autoencoder-digits) --trials 10 --seeds 5 --length 0.5

reliability: env ## kills, stops, full disks, damaged files, odd input, memory: under 15 minutes on 2 cores
	cd benchmarks && OMP_NUM_THREADS=1 ../$(BIN)/python -m reliability --out results/reliability.json

compatibility: env ## every module, loss, utility and optimiser of torch, into docs/compatibility.md: 5 minutes
	cd benchmarks && OMP_NUM_THREADS=1 ../$(BIN)/python -m compatibility --out ../docs/compatibility.md

package: ## build the package, check it, and train from its wheel in an empty environment: some minutes
	PYTHON=$(PYTHON) .ci/package

docs: $(VENV)/docs-installed ## build the site into site/; a broken link or reference fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "open site/index.html"

$(VENV)/docs-installed: $(VENV)/installed
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[docs]'
	@touch $@

clean: ## remove the environment and caches
	rm -rf $(VENV) .pytest_cache .ruff_cache build dist site
