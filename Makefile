# Every target is one line; `make serve` and `make test` need nothing before them.
VENV   ?= .venv
PYTHON ?= python3
PORT   ?= 8000
MODEL  ?=
ARGS   ?=
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# These two are installed by version alone, since their builds differ from index to index. They ask for what they need of
# NVIDIA's by version, too. All else is locked with hashes in requirements/, which `make lock` writes.
TORCH  ?= torch==2.13.0
TRITON ?= triton==3.7.1; platform_system == 'Linux' and platform_machine == 'x86_64'
# An index for torch beside pip's own: PyTorch's of CPU builds where that is sensible. `make TORCH_INDEX=` leaves it to pip.
TORCH_INDEX ?= $$(requirements/torch-index $(BIN)/python)

# A file of tests stays in one process, so that its fixtures are made once. OpenMP's threads sleep while they wait: awake
# they would take the cores from the other processes.
PYTEST := OMP_WAIT_POLICY=passive $(BIN)/python -m pytest --numprocesses auto --dist loadscope --no-loadscope-reorder
EXTRAS := $(addprefix --extra ,demo dev oracle bench)

.PHONY: install serve test quick fuzz test-clients check fix bench model lock
.DEFAULT_GOAL := serve

install: $(VENV)/.dev

serve: $(VENV)/.core
	$(BIN)/octavo serve $(MODEL) --port $(PORT) $(ARGS)

test: $(VENV)/.dev
	$(PYTEST) $(ARGS)

# The tests of the house, the server and the engine in under a minute: all but the files that run whole models or
# thousands of random loads.
LONG := $(addprefix tests/engine/,test_equivalence.py test_invariance.py schedule/test_properties.py)
quick: $(VENV)/.dev
	$(PYTEST) tests/test_house.py tests/server tests/engine $(addprefix --ignore ,$(LONG)) $(ARGS)

# What `make test` does with a few requests, with 300 an operation and 30 against the real engine; then MINUTES of rough
# requests against the real engine, with a bystander.
MINUTES ?= 30
fuzz: $(VENV)/.dev
	FUZZ_EXAMPLES=300 $(BIN)/python -m pytest tests/fuzz --timeout 3600 $(ARGS)
	$(BIN)/python -m tests.fuzz.soak --minutes $(MINUTES)

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

# torch goes first and alone: pip would take the newest build of it for another package.
$(VENV)/.core: pyproject.toml requirements/serve.txt $(wildcard model/kernels/cpu/*.[ch])
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	index="$(TORCH_INDEX)"; $(PIP) $${index:+--extra-index-url "$$index"} "$(TORCH)"
	$(PIP) --no-deps --require-hashes --requirement requirements/serve.txt
	$(PIP) --no-deps --no-build-isolation --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.core requirements/dev.txt
	$(PIP) "$(TRITON)"
	$(PIP) --no-deps --require-hashes --requirement requirements/dev.txt
	touch $@

# Writes the newest versions that fit pyproject.toml, for every platform, with the hashes of all their files.
lock: $(VENV)/.core
	$(PIP) uv
	$(call locked,requirements/serve.txt,--extra demo)
	$(call locked,requirements/dev.txt,$(EXTRAS) --constraint requirements/serve.txt)

define locked
printf '%s\n' "$(TORCH)" setuptools | $(BIN)/uv pip compile --quiet --no-config --universal --python-version 3.11 \
	--upgrade --generate-hashes --no-header --no-annotate --no-emit-index-url $(2) pyproject.toml - > $(1).all
awk 'BEGIN { print "# Written by `make lock`: what torch and triton need of NVIDIA they name themselves." } \
	/^[^ ]/ { unlocked = /^(torch|triton)==|^(nvidia|cuda)-/ } !unlocked' $(1).all > $(1)
rm $(1).all
endef
