# Two commands set up all they need: `make book` and `make test`.
# On another Python: make PYTHON=python3.12 book. Another build of PyTorch: TORCH_FLAGS=..., which
# are more flags for pip.
PYTHON ?= python3
VENV   ?= .venv
JOBS   ?= 2
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
SITE   := _build/html

# One thread in each process: the stored numbers are then the same everywhere.
export OMP_NUM_THREADS := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: book test test-other-cpu notebooks runs bench gpu lint mutants lock clean

book: $(READY) _build/.fresh
	$(BIN)/python tools/notebooks.py --check
	$(BIN)/python -m tools.ledger run -- -q -n $(JOBS)
	$(BIN)/python -m tools.ledger check
	$(BIN)/jupyter-book build . -n -W --keep-going
	@echo "The book: $(SITE)/index.html"

# One chapter: make test CHAPTER=02 runs what has its name in each wing. The ledger is not asked:
# it would miss the other chapters.
ifdef CHAPTER
ROOM := $(patsubst book/$(CHAPTER)_%/index.md,%,$(wildcard book/$(CHAPTER)_*/index.md))
$(if $(ROOM),,$(error CHAPTER must be a number as in book/02_zlpr, got $(CHAPTER)))
TESTS := book/$(CHAPTER)_$(ROOM) lib/$(ROOM) tests/equations/test_$(ROOM).py \
  $(wildcard tests/test_$(ROOM).py tests/test_$(ROOM)_*.py)
endif

test: $(READY)
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile $(PYTEST_FLAGS) $(TESTS)
	$(if $(CHAPTER),,$(BIN)/python -m tools.ledger check)

# The notebooks again, with the instruction sets that an old processor has.
test-other-cpu: $(READY)
	ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE ONEDNN_MAX_CPU_ISA=SSE41 \
	OPENBLAS_CORETYPE=Nehalem NPY_DISABLE_CPU_FEATURES=X86_V3 \
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile book

# Run the chapters and store their outputs beside the text they were made from.
notebooks: $(READY)
	$(BIN)/python tools/notebooks.py --jobs $(JOBS)

# Make a stored run record anew: make runs RUN=soft_zlpr writes book/runs/soft_zlpr*.json.
runs: $(READY)
	$(BIN)/python -m experiments $(RUN)

# Measure all losses against the published ones: writes book/runs/performance-*.json.
bench: $(READY)
	$(BIN)/python -m benchmarks

# What needs a CUDA device; without one it says so and fails.
gpu: $(READY)
	$(BIN)/python -m tools.gpu

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The lock is whole, so pip need not resolve; PyTorch finds there what any build of it needs.
$(READY): requirements.txt requirements-torch.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r requirements.txt
	$(BIN)/python -m pip install --quiet $(TORCH_FLAGS) -r requirements-torch.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation \
	  --config-settings editable_mode=compat -e .
	touch $@

# Cached pages know nothing of the code that was checked for them: another lib, another build.
_build/.fresh: $(READY) $(shell find lib book/_ext tools -name '*.py') _config.yml _toc.yml
	rm -rf _build
	mkdir -p _build
	touch $@

# Break lib in many small ways, one at a time: the tests must catch each (about five minutes).
mutants: $(READY)
	$(BIN)/python -m tools.mutants

# Resolve requirements.in anew, for every platform. What belongs to one build of PyTorch is left out.
lock: requirements.in requirements-torch.txt
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet uv
	.venv-lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	  --no-header --no-annotate --output-file .venv-lock/all.txt requirements.in
	awk '/^[^ ]/ {build = /^(torch|triton|(cuda|nvidia)-[a-z0-9-]*)==/} !build' \
	  .venv-lock/all.txt > requirements.txt
	rm -rf .venv-lock

clean:
	rm -rf _build $(VENV)
