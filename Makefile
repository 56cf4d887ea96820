# Needs Python 3.11 or newer, make and git. Everything else is installed into .venv from requirements.lock.
# Telemetry of DVC, Prefect and MLflow is off: pipeline/basin/environment.py and .dvc/config say how to turn it on.

PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export UV_COMPILE_BYTECODE := 1

.DEFAULT_GOAL := help
.PHONY: help setup repro flow serve ui report check lint types imports test test-all chaos bench bench-gpu test-cpus audit docs lock clean

help: ## what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: .venv/installed ## install into .venv (the other targets do this themselves)

.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	test -x $(BIN)/uv || $(BIN)/python -m pip install -q --disable-pip-version-check "$$(grep -o '^uv==[^ ]*' requirements.lock)"
	$(BIN)/uv pip install -q --python $(BIN)/python --require-hashes -r requirements.lock
	$(BIN)/uv pip install -q --python $(BIN)/python --no-deps --no-build-isolation -e .
	touch $@

repro: setup ## the main job: dvc repro, then the result
	basin repro

flow: setup ## the same graph as a Prefect flow, in parallel
	basin flow

serve: setup ## offer repro, sweep, evaluate and nightly on Prefect's pages (:4200) and work on their runs until Ctrl-C
	basin serve

ui: setup ## MLflow on :5000 and Prefect on :4200, this machine only; Ctrl-C ends both
	basin ui

report: setup ## the report alone, from the outcomes that are there
	basin repro report

check: lint types imports ## everything that reads the code without running it

lint: setup ## ruff: mistakes and form
	ruff check
	ruff format --check

types: setup ## mypy
	mypy

imports: setup ## the layers of the code
	lint-imports

test: setup ## the tests, in minutes: two files at a time
	pytest -n 2 --dist loadfile

test-all: setup ## the slow tests too
	pytest -m "slow or not slow"

chaos: setup ## SIGKILLs at random moments: 50 of a run, 10 of Prefect's worker, 10 of MLflow's server (CHAOS_KILLS, CHAOS_SEED)
	pytest -m slow -s tests/chaos

bench: setup ## how fast, in ratios, beside floors and peers: minutes; says what moved since docs/results/speed.json
	python -m benchmarks.speed --peers

bench-gpu: setup ## what a GPU has of it; goes on where it was stopped
	python -m benchmarks.speed --device cuda --resume

test-cpus: setup ## the tests as other processors compute: the matrix library's compatible kernels, then without AVX-512
	MKL_CBWR=COMPATIBLE pytest -n 2 --dist loadfile
	ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 pytest -n 2 --dist loadfile

audit: setup ## known holes in what requirements.lock installs; needs PyPI's own service, and fails where a package could not be asked about
	uv tool run pip-audit --strict --disable-pip --require-hashes -r requirements.lock

docs: setup ## these pages and the Python reference as a site: site/index.html; a link that leads nowhere fails
	python docs/site.py site

lock: setup ## pin the newest versions that pyproject.toml allows
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url --no-annotate \
		pyproject.toml --extra servers --extra ray --extra timm --group dev --upgrade -o requirements.lock

clean: ## remove what can be made again; the DVC cache, MLflow's database and the models stay
	rm -rf .venv .basin/checkpoints .mypy_cache .ruff_cache .pytest_cache *.egg-info
