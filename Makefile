# Every target is one line; `make serve` and `make test` need nothing before them.
VENV   ?= .venv
PYTHON ?= python3
TORCH  ?= torch==2.13.0
PORT   ?= 8000
MODEL  ?=
ARGS   ?=
BIN    := $(VENV)/bin

.PHONY: install serve test fuzz test-clients check fix bench model
.DEFAULT_GOAL := serve

install: $(VENV)/.dev

serve: $(VENV)/.core
	$(BIN)/octavo serve $(MODEL) --port $(PORT) $(ARGS)

test: $(VENV)/.dev
	$(BIN)/python -m pytest $(ARGS)

# What `make test` does with a few requests, with 300 an operation and 30 against the real engine.
fuzz: $(VENV)/.dev
	FUZZ_EXAMPLES=300 $(BIN)/python -m pytest tests/fuzz --timeout 3600 $(ARGS)

# Installs clients written for OpenAI's API, in Python and (with node and npm) JavaScript, and talks to a live server.
test-clients: $(VENV)/.dev
	$(BIN)/python -m tests.clients.run $(ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

fix: $(VENV)/.dev
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks.serving $(ARGS)

model: $(VENV)/.core
	$(BIN)/octavo demo-model $(ARGS)

# torch goes first and alone: asked for by another package, pip would take its newest build.
$(VENV)/.core: pyproject.toml $(wildcard model/kernels/cpu/*.[ch])
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[demo]"
	touch $@

$(VENV)/.dev: $(VENV)/.core
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[demo,dev,oracle,bench]"
	touch $@
