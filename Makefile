# Every target makes its own environment first: python3 and make are all that has to be there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
READY := $(VENV)/.ready

.PHONY: demo test lint format bench bench-report bench-scale bench-fleet faults field docs pictures frameworks integrations compat soak clean

demo: $(READY)  # train an RNN, an LSTM and a GRU on handwritten digits and say what their gradients did
	$(BIN)/gradscope demo

test: $(READY)  # all tests
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses auto

lint: $(READY)  # style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(READY)  # mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)  # what gradscope costs, measured here
	$(BIN)/python benchmarks/bench.py

bench-report: $(READY)  # a report on ten million rows: how long, and how much memory
	$(BIN)/python benchmarks/long_run.py --findings

bench-scale: $(READY)  # extremes of size in one table, into docs/scaling.md
	$(BIN)/python benchmarks/scale.py --write

bench-fleet: $(READY)  # the table of 1,000 small runs, and of few long ones: how long, and how much memory
	$(BIN)/python benchmarks/fleet.py
	$(BIN)/python benchmarks/fleet.py --runs 20 --steps 100000

faults: $(READY)  # how often findings are right, on several hundred small trainings; about an hour the first time
	$(BIN)/python -W ignore -m benchmarks.faults

field: $(READY)  # the same on trainings of practitioners' size and kind; under three hours of one core the first time
	$(BIN)/python -W ignore -m benchmarks.field

docs: $(READY)  # the documentation, as pages in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --site-dir build/site

pictures: $(READY)  # the pictures in the documentation, from trainings that are watched
	$(BIN)/python docs/pictures.py

frameworks: $(READY)  # install what the integrations are for; tests that need it are skipped otherwise
	$(PIP) install --constraint constraints.txt --editable '.[frameworks]'

integrations: frameworks  # test them, and say what was found in docs/integrations.md
	GRADSCOPE_INTEGRATIONS=build/integrations $(BIN)/python -m pytest tests/frameworks
	PYTHONPATH=tests $(BIN)/python -m frameworks.table build/integrations

compat:  # the suites nearest to torch with other versions of torch and Python; some 20 GB, and hours the first time
	$(PYTHON) tests/compat.py

soak: $(READY)  # kills, faults and memory over very many steps, under 20 minutes; `make test` has it in short
	PYTHONPATH=tests $(BIN)/python -W ignore -m reliability.soak

clean:  # remove the environment and everything built; runs stay
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis

# torch goes first and pinned: a package that pulls it in unpinned would fetch another build of it.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --constraint constraints.txt torch
	$(PIP) install --constraint constraints.txt --editable '.[dev]'
	touch $@
