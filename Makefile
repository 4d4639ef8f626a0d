# The two commands: `make up` brings up the whole loop, `make test` runs the tests. Everything else is `labelloop --help`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
IMAGES ?=

# Hashes of every wheel, for every system and Python that we support; and the extras of the image.
LOCK  := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
         --group build $(UPGRADE)
IMAGE := azure demo gcs postgres redis

# Tests start some hundred programs, and each would compile what it imports again (.3 s) where this is set.
unexport PYTHONDONTWRITEBYTECODE

# Each process of pytest imports all files that it is given, 20 s of processor time for all tests.
# Files of few long tests come first, so that no process ends minutes before the other.
LONG = $(patsubst %,tests/system/test_%.py,learning_kinds up compose_parts export_faults learning versions story \
         learned_points adjudication ground_truth continuous qc ml_backend)
SYSTEM = $(LONG) $(filter-out $(LONG),$(sort $(shell grep -rl --include='test_*.py' 'mark\.system' tests)))

.PHONY: up test test-slow test-train setup check bench format lock clean

$(STAMP): pyproject.toml requirements/dev.lock
	@$(PYTHON) -c "import sys; (3, 11) <= sys.version_info < (3, 14) or sys.exit(\
	'labelloop needs Python 3.11 to 3.13, and $(PYTHON) is ' + sys.version.split()[0] + '. Name another: make PYTHON=python3.13 ...')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements/dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $(STAMP)

up: $(STAMP)  ## the whole loop on this machine: make up [IMAGES=folder]
	@exec $(BIN)/labelloop up $(if $(IMAGES),--images '$(IMAGES)',)

test: $(STAMP)  ## lint, types, import rules, then unit, property and system tests
	@$(MAKE) --no-print-directory --jobs 2 check setup
	$(BIN)/python -m pytest -m "not slow and not system" --ignore=tests/system --numprocesses 3 --dist worksteal
	$(BIN)/python -m pytest $(SYSTEM) -m "system and not slow" --numprocesses 2 --dist loadfile \
		--no-loadscope-reorder

test-slow: $(STAMP) setup
	$(BIN)/python -m pytest -m slow

test-train: $(STAMP)  ## fine-tuning, which needs torch: installs the extra [train], 3 GB on Linux without a CPU build
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --editable '.[dev,train]'
	$(BIN)/python -m pytest tests/ml_backend/finetune tests/ml_backend/cli/test_train.py tests/ml_backend/learning/test_trainer.py tests/test_examples.py tests/system/test_train.py

setup: $(STAMP)  ## what the system tests use besides our own virtual environment
	@sh tests/system/setup.sh

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy deploy/setup.py
	$(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/python -m bench

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock:  ## choose the releases that `make up`, `make test` and the image install; UPGRADE=--upgrade takes the newest
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9,<1'
	$(LOCK) --extra dev --output-file requirements/dev.lock pyproject.toml
	$(LOCK) $(addprefix --extra ,$(IMAGE)) --constraint requirements/dev.lock --output-file requirements/image.lock pyproject.toml

clean:
	rm -rf $(VENV) .labelloop
