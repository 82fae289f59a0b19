# make demo    set up, then the main job on a real image set, ending in a report to open
# make test    set up, then all tests
# make check   format, lint, types and the fast tests: before every commit
# make interop environments of their own for the programs that the benchmarks stand beside (.interop/)
# make interop-mmseg  MMSegmentation beside segship (.interop/mmseg), and which of its architectures become packages
#
# On Linux a plain `pip install torch` may bring gigabytes of CUDA. TORCH_INDEX names an index that has the CPU
# wheel (PyTorch's own is https://download.pytorch.org/whl/cpu):  make demo TORCH_INDEX=…
PYTHON ?= python3
VENV ?= .venv
OUT ?= out/demo
DATA ?=
BIN = $(VENV)/bin
SETUP = $(VENV)/.ready

.PHONY: setup demo test check format docs interop interop-mmseg clean

setup: $(SETUP)

$(SETUP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "segship needs Python 3.11 or newer: make PYTHON=python3.11"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX),) torch
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(SETUP)
	$(BIN)/python benchmarks/demo.py --out $(OUT) $(if $(DATA),--data $(DATA),)

test: $(SETUP)
	$(BIN)/python -m pytest -q tests

check: $(SETUP)
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/unit -m 'not slow'

format: $(SETUP)
	$(BIN)/ruff format src tests benchmarks
	$(BIN)/ruff check --fix src tests benchmarks

docs: $(SETUP)
	$(BIN)/python -c "import json; from segship.manifest import manifest_json_schema as schema; open('docs/manifest.schema.json', 'w').write(json.dumps(schema(), indent=2, sort_keys=True) + '\n')"

interop: .interop/rembg/.ready .interop/pytorch/.ready .interop/pysodmetrics/.ready .interop/nnunet/.ready

.interop/%/.ready: benchmarks/interop/%.txt
	$(PYTHON) -m venv .interop/$*
	.interop/$*/bin/python -m pip install -q $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX),) -r $<
	@touch $@

# mmseg runs in one environment with segship: its networks are exported there, and its tester loads packages there.
interop-mmseg: .interop/mmseg/.ready
	.interop/mmseg/bin/python benchmarks/mmseg_architectures.py $(if $(MINUTES),--minutes $(MINUTES),) --markdown docs/mmseg-architectures.md

.interop/mmseg/.ready: benchmarks/interop/mmseg.txt constraints.txt pyproject.toml
	$(PYTHON) -m venv .interop/mmseg
	.interop/mmseg/bin/python -m pip install -q -c constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX),) -e '.[convert,report]'
	.interop/mmseg/bin/python -m pip install -q --no-deps -r $<
	@touch $@

clean:
	rm -rf $(VENV) out build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
