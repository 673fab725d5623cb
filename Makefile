# Every target makes the environment and installs what it needs when it is not there.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# Contended OpenMP threads run many times slower: tests run in as many processes as there are cores, one thread each.
JOBS   ?= $(shell nproc 2>/dev/null || echo 2)

.PHONY: help install demo test lint bench bench-scale bench-peers clean
help:
	@echo "make demo   train, attack and report on the embedded digits data (about a minute)"
	@echo "make test   run the tests"
	@echo "make lint   style and types"
	@echo "make bench  measure what the README claims"
	@echo "make bench-scale  time and memory of audits of 10^4 to 10^6 records"
	@echo "make bench-peers  published packages on the same arrays (LOCATION30=file.npz adds that data set)"

install: $(VENV)/.installed

# torch first and pinned: asked for by a range, pip would take the newest build with gigabytes of CUDA packages.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,federated,dp]'
	@touch $@

demo: install
	$(BIN)/memberscope audit --dataset digits --protocol random-half --epochs 60

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) $(ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install
	$(BIN)/python benchmarks/evaluation.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/federation.py

bench-scale: install
	$(BIN)/python benchmarks/scale.py $(ARGS)

bench-peers: install
	$(BIN)/python benchmarks/peers/run.py $(if $(LOCATION30),--location30 $(LOCATION30)) $(ARGS)

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
