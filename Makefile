# Every target sets up what it needs: a virtual environment in .venv with the package installed in editable form.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test bench stress check clean

install: .venv/.installed

.venv/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

demo: install
	$(BIN)/bossnet demo --out runs/demo --overwrite
	@echo "bossnet is in $(BIN); to type it as it stands: source $(BIN)/activate"

# One thread per worker: two workers with two threads each would only wait for one another.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile

# Writes benchmarks/results.json and README's table; nothing else should run meanwhile.
bench: install
	$(BIN)/python benchmarks/run_all.py

# Kills, corrupts and fills disks; README's table of what was tried and lost is written by: python benchmarks/reliability.py runs/stress.json
stress: install
	OMP_NUM_THREADS=1 timeout 20m $(BIN)/python -m pytest -q -n 2 -m stress tests/stress --counts runs/stress.json

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv build dist *.egg-info runs
