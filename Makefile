# make demo    set up, then the main job on a real image set, ending in a report to open
# make test    set up, then all tests
# make check   format, lint, types and the fast tests: before every commit
# make cpp     the C++ runner, cpp/build/segship-run (docs/cpp.md lists the Debian packages it needs)
# make test-cpp  the C++ runner beside Python, stage by stage; test-cpp-sanitized the same under sanitizers, fuzz-cpp fuzzes it
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

# OpenVINO for the C++ runner: the pip wheel's, or the cmake folder of a system install.
OPENVINO_DIR ?= $(shell $(BIN)/python -c 'from openvino.utils import get_cmake_path; print(get_cmake_path())' 2>/dev/null)
CPP_BUILD ?= cpp/build
CPP_SANITIZED = $(CPP_BUILD)/sanitized
CLANG := $(shell command -v clang++ 2>/dev/null)
FUZZ_SECONDS ?= 60
# one compiler a core: without a number make starts one for every file, a third of a gigabyte each
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
CPP_CONFIGURE = cmake -S cpp -DOpenVINO_DIR=$(OPENVINO_DIR)

.PHONY: setup demo test check format docs interop interop-mmseg clean cpp test-cpp cpp-sanitized test-cpp-sanitized fuzz-cpp

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
	$(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile tests

check: $(SETUP)
	$(BIN)/ruff format --check src tests benchmarks examples
	$(BIN)/ruff check src tests benchmarks examples
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/unit -m 'not slow'

format: $(SETUP)
	$(BIN)/ruff format src tests benchmarks examples
	$(BIN)/ruff check --fix src tests benchmarks examples

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

cpp: $(if $(OPENVINO_DIR),,$(SETUP))
	$(CPP_CONFIGURE) -B $(CPP_BUILD)
	cmake --build $(CPP_BUILD) --parallel $(JOBS)

test-cpp: $(SETUP) cpp
	SEGSHIP_REQUIRE_CPP=1 SEGSHIP_RUN=$(CPP_BUILD)/segship-run $(BIN)/python -m pytest -q tests/cpp $(if $(CHOSEN),-k '$(CHOSEN)')

# One build for the tests under sanitizers and for the fuzzers, which only clang has; without it g++ builds the former.
cpp-sanitized: $(if $(OPENVINO_DIR),,$(SETUP))
	$(CPP_CONFIGURE) -B $(CPP_SANITIZED) -DCMAKE_BUILD_TYPE=None -DCMAKE_CXX_FLAGS=-O1 \
		$(if $(CLANG),-DSEGSHIP_FUZZ=ON -DCMAKE_C_COMPILER=clang -DCMAKE_CXX_COMPILER=clang++,-DSEGSHIP_SANITIZE=ON)
	cmake --build $(CPP_SANITIZED) --parallel $(JOBS)

test-cpp-sanitized: $(SETUP) cpp-sanitized
	SEGSHIP_REQUIRE_CPP=1 SEGSHIP_RUN=$(CPP_SANITIZED)/segship-run $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile tests/cpp -m 'not slow' $(if $(CHOSEN),-k '$(CHOSEN)')

fuzz-cpp: $(SETUP) cpp-sanitized
	@test -n "$(CLANG)" || { echo "fuzz-cpp needs clang++ (Debian: apt-get install clang)"; exit 2; }
	$(BIN)/python cpp/fuzz/seeds.py $(CPP_SANITIZED)/corpus
	cd $(CPP_SANITIZED) && for target in package manifest nifti volume image; do \
		./fuzz_$$target -max_total_time=$(FUZZ_SECONDS) -max_len=65536 -print_final_stats=1 corpus/$$target || exit 1; done

clean:
	rm -rf $(VENV) $(CPP_BUILD) out build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
