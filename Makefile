# Both targets work from a clean clone on a machine with only Python >= 3.11.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

SELDOM := /transformers/models/(?!auto|clip|llama|qwen3_vl|sam)|/(debugpy|fontTools|mypy|pip|tests)/

.PHONY: test demo faults fuzz launchers serving lint site studio release clean

# glibc keeps memory that was freed: giving pictures' tensors back to the system and taking them
# anew, page by page, is a tenth of a training on the CPU.
KEPT := MALLOC_MMAP_THRESHOLD_=268435456 MALLOC_TRIM_THRESHOLD_=536870912

# As many as the cores that it is meant for: a third worker on two cores made it 20 s slower.
WORKERS ?= 2

# One thread a worker: workers with two threads each fight over two cores. The types are checked
# beside the tests, when a core has nothing else to do. Python may write what it compiles of the
# code and the tests, also where the shell forbids it: every process would compile anew.
test: $(READY)
	$(BIN)/ruff check .
	nice $(BIN)/mypy & $(KEPT) PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 \
		$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal && wait $$!

# Where lisa-preflight is installed in the active environment, that one runs it.
demo:
	@if python -I -c 'import importlib.metadata as m; m.version("lisa-preflight")' 2>/dev/null; \
	then python benchmarks/demo.py; else $(MAKE) $(READY) && $(BIN)/python benchmarks/demo.py; fi

# Tiny trainings, killed, starved and damaged at random, alone and in groups: some half an hour.
faults: $(READY)
	rm -f benchmarks/faults.jsonl
	$(BIN)/python benchmarks/faults.py --rows benchmarks/faults.jsonl
	$(BIN)/python benchmarks/rank_faults.py --rows benchmarks/faults.jsonl
	$(BIN)/python benchmarks/faults.py --table
	$(BIN)/python benchmarks/rank_faults.py --table

# Whole launches by torchrun and accelerate, and two machines as network namespaces (as root): two
# minutes. `make test` starts groups of processes in the same way without a launcher.
launchers: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m launcher

# The page in a headless Chromium, from an import to the mask of an answer: two minutes.
studio: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m studio tests/studio

# Over 15 000 hostile cases, a process for each kind, and their table in docs/hostile-input.md.
fuzz: $(READY)
	$(BIN)/python benchmarks/fuzz.py --rows benchmarks/fuzz.jsonl
	$(BIN)/python benchmarks/fuzz.py --table

# lisa-segment --serve under load, killed, with hostile requests and by its description: some ten
# minutes. schemathesis has a place of its own, since pytest would load it as a plugin.
serving: $(READY)
	$(PYTHON) -m venv .serving
	.serving/bin/pip install -q schemathesis==4.32.5
	$(BIN)/python benchmarks/serve_load.py
	$(BIN)/python benchmarks/serve_groups.py
	$(BIN)/python benchmarks/serve_fuzz.py
	$(BIN)/python benchmarks/serve_schema.py --st .serving/bin/st

lint: $(READY) site
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile

# The documentation with search and reference, in site/index.html; fails on a broken link.
site: $(READY)
	$(BIN)/python tools/make_site.py

# sam2 comes without the packages that its video tools want: tests import its modules alone.
# torch comes first, at the tested version: a package that asks for plain torch is then satisfied.
# pip would compile the 13 600 files one after the other, in 35 s: compileall uses every core, and
# leaves out what is seldom imported. Some are templates, and no Python. Where Python may not write,
# each process would compile them anew. Beside it mypy reads the libraries' types, and keeps them.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt torch setuptools wheel
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt --no-build-isolation -e .[dev]
	SAM2_BUILD_CUDA=0 $(BIN)/python -m pip install -q --no-compile -c constraints.txt --no-build-isolation --no-deps sam2
	$(BIN)/mypy > /dev/null & $(BIN)/python -m compileall -qq -j 0 -x '$(SELDOM)' $(VENV)/lib; wait
	touch $(READY)

# Builds the sdist and the wheel in dist/, checks and installs them; publishes nothing.
release: $(READY)
	$(BIN)/python tools/release.py

clean:
	rm -rf $(VENV) .serving demo runs build dist site
