# Two commands do everything: `make figure8` and `make test`. Both set up their own virtual environment.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup figure8 test test-slow test-faults test-parity check clean

setup: $(VENV)/ready

$(VENV)/ready: setup.py pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

figure8: setup
	$(BIN)/sd3-jax sweep run figure8_cpu --runs runs/figure8_cpu
	$(BIN)/sd3-jax evaluate runs/figure8_cpu
	$(BIN)/sd3-jax figure 8 runs/figure8_cpu --out figures
	$(BIN)/sd3-jax figure 12 runs/figure8_cpu --out figures

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: check
	$(BIN)/pytest -n 2 --dist worksteal

test-slow: setup
	$(BIN)/pip install --quiet --editable '.[dev,trackers,gcs]' gcp-storage-emulator
	$(BIN)/pytest -n 2 --dist worksteal -m slow

test-faults: setup
	$(BIN)/pytest -m '' tests/test_resume.py -k flipped_byte
	$(BIN)/pytest -s -m slow tests/test_faults.py

test-parity: setup
	$(BIN)/pip install --quiet --editable '.[dev,parity]'
	$(BIN)/pytest -n 2 --dist worksteal -m parity

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache
