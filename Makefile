# `make demo` and `make test` need Python 3.10 or later; everything else goes to .venv.
PYTHON ?= python3
BIN := .venv/bin
PACKAGES := models export calib cost plugins_trt runtime serve batch commands
# A process for each processor, at most four; the tests of a file share one, and what they have made.
PARALLEL := -n auto --dist loadfile --no-loadscope-reorder
PROMPT := a red circle bounces on gray
CORES := $(shell getconf _NPROCESSORS_ONLN)
START := $(shell date +%s)
# First in a recipe: says at its end, bad or good, how long make took, the installation included.
TIMED = trap 'echo "make $@: $$(($$(date +%s) - $(START))) s"' EXIT; set -e
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help install libraries browsers demo test test-all lint ruff types bench bench-quantization bench-serve bench-batch plugins native cpp cpp-dist fuzz \
        wheel pythons clean

help:
	@echo "make demo    a video of '$(PROMPT)' in out/demo.mp4"
	@echo "make test    the tests that this machine can run, but for the slow ones"
	@echo "make test-all   those as well: full-width graphs, CUDA kernels compiled for a device; and make pythons"
	@echo "make lint    ruff and mypy"
	@echo "make bench   times a chunk against PyTorch: out/benchmarks.md and .json"
	@echo "make bench-quantization   what int8 and fp8 gain and cost: out/quantization-*.md and .json; an hour"
	@echo "make bench-serve, make bench-batch   what serving costs, and how a batch scales: out/serve.json, out/batch.json"
	@echo "make plugins the scans in C++ and, where their tools are found, for ONNX Runtime, in CUDA and for TensorRT: build/plugins"
	@echo "make native  of these the operators for ONNX Runtime on a CPU: build/plugins/libvideossm_onnxruntime.so"
	@echo "make cpp     the runtime as a C and C++ library, with its examples: build/cpp"
	@echo "make cpp-dist   the same as it is installed: dist/videossm-cpp-*.tar.gz"
	@echo "make fuzz    fuzzes what reads files in C++, with clang and its libclang-rt-*-dev; FUZZ_SECONDS=600 each"
	@echo "make wheel   dist/videossm-*.whl"
	@echo "make pythons the wheel from the package index, a plan run with it, for every Python found: size, warnings"
	@echo "make clean   removes what make made, but for .venv"

install: .venv/package.stamp
libraries: .venv/scans.stamp .venv/serve.stamp browsers

.venv/requirements.stamp: requirements/dev.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("python: got %d.%d, expected 3.10 or later; \
	pass PYTHON=python3.12" % sys.version_info[:2])'
	@echo "installing the pinned requirements into .venv: some minutes, once"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -q -r requirements/dev.txt
	@touch $@

.venv/package.stamp: .venv/requirements.stamp setup.cfg pyproject.toml
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install -q --no-deps --no-build-isolation -e .
	@touch $@

# mamba-ssm of pure Python: nothing is compiled, and no wheel built elsewhere is looked for.
.venv/scans.stamp: .venv/requirements.stamp requirements/scans.txt
	@MAMBA_FORCE_BUILD=TRUE MAMBA_SKIP_CUDA_BUILD=TRUE \
	$(BIN)/python -m pip install -q --no-deps --no-build-isolation -r requirements/scans.txt
	@touch $@

.venv/serve.stamp: .venv/requirements.stamp requirements/serve.txt
	@$(BIN)/python -m pip install -q -r requirements/serve.txt
	@touch $@

# The browsers of the tests, where Debian's packages can be had; without one its tests say so and are skipped. Firefox
# decodes video by libavcodec.
browsers: | .venv/requirements.stamp
	@{ command -v chromium && command -v firefox-esr; } > /dev/null || [ "$$(id -u)" != 0 ] || ! command -v apt-get > /dev/null || \
	{ apt-get update && apt-get install -y --no-install-recommends chromium firefox-esr libavcodec-extra; } > /dev/null 2>&1 || true

demo: install
	@$(TIMED); mkdir -p out; \
	$(BIN)/videossm-export shapes --force -o out/engine.plan; \
	$(BIN)/videossm-run out/engine.plan --prompt "$(PROMPT)" --seconds 5 -o out/demo.mp4

test: install libraries
	@$(TIMED); $(BIN)/pytest $(PARALLEL) -m "not slow" --durations=10

test-all: install libraries
	@$(TIMED); $(BIN)/pytest $(PARALLEL) --durations=10
	@$(MAKE) --no-print-directory pythons

lint: ruff types

ruff: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy cannot follow the editable install, which maps videossm.x to the folder x by an import hook;
# in build/mypy the same folders lie under the names that they are imported by.
types: install .venv/serve.stamp
	@mkdir -p build/mypy/videossm
	@for folder in $(PACKAGES); do ln -sfn ../../../$$folder build/mypy/videossm/$$folder; done
	$(BIN)/mypy -p videossm
	$(BIN)/mypy benchmarks examples training

bench: install
	@$(TIMED); mkdir -p out; \
	$(BIN)/videossm-export shapes --force -o out/engine.plan; \
	$(BIN)/python benchmarks/bench.py out/engine.plan --out out/benchmarks.md --json out/benchmarks.json; \
	cat out/benchmarks.md

bench-quantization: install
	@$(TIMED); mkdir -p out; \
	$(BIN)/python benchmarks/quantization_speed.py --out out/quantization-speed.md --json out/quantization-speed.json; \
	$(BIN)/python benchmarks/quantization_accuracy.py --evaluate rollouts-mse rollouts-mse-smoothquant \
	  --out out/quantization-accuracy.md --json out/quantization-accuracy.json

bench-serve bench-batch: install libraries
	@$(TIMED); mkdir -p out; \
	$(BIN)/videossm-export shapes --force -o out/engine.plan; \
	$(BIN)/python benchmarks/$(@:bench-%=%).py out/engine.plan --json out/$(@:bench-%=%).json

# ONNXRUNTIME_ROOT=... names ONNX Runtime's own; else it is set up from its package and Debian's header. TensorRT_ROOT=...
# names TensorRT's headers.
ONNXRUNTIME_ROOT ?= build/onnxruntime
ROOTS := -DONNXRUNTIME_ROOT=$(abspath $(ONNXRUNTIME_ROOT)) $(if $(TensorRT_ROOT),-DTensorRT_ROOT=$(TensorRT_ROOT))
CPP := cmake -S runtime/cpp $(ROOTS)

build/onnxruntime: install
	@sh runtime/cpp/onnxruntime.sh $@ $(BIN)/python || echo "left out: what is built for ONNX Runtime"

# Says at its end what it left out, and why. `native` sets ONNX Runtime's header up where it can; `plugins` takes what is there.
plugins: PLUGINS := all
native: PLUGINS := videossm_onnxruntime
native: $(ONNXRUNTIME_ROOT)
plugins native:
	cmake -S plugins_trt -B build/plugins -DCMAKE_BUILD_TYPE=Release $(ROOTS)
	cmake --build build/plugins --target $(PLUGINS) --parallel $(CORES)

cpp: $(ONNXRUNTIME_ROOT)
	$(CPP) -B build/cpp
	cmake --build build/cpp --parallel $(CORES)

cpp-dist: cpp
	cd build/cpp && cpack -B ../../dist

FUZZ_SECONDS ?= 600
FUZZ_TARGETS := manifest state tokenizer
fuzz: install
	$(CPP) -B build/fuzz -DCMAKE_CXX_COMPILER=clang++ -DCMAKE_C_COMPILER=clang -DVIDEOSSM_FUZZERS=ON -DVIDEOSSM_EXAMPLES=OFF \
	  -DVIDEOSSM_ONNXRUNTIME=OFF -DVIDEOSSM_TENSORRT=OFF -DVIDEOSSM_SANITIZE=address,undefined -DBUILD_SHARED_LIBS=OFF
	cmake --build build/fuzz --parallel $(CORES)
	@for target in $(FUZZ_TARGETS); do \
	  mkdir -p build/fuzz/found/$$target; \
	  build/fuzz/fuzz_$$target -max_total_time=$(FUZZ_SECONDS) -timeout=10 -max_len=65536 -dict=runtime/cpp/fuzz/words.dict \
	    -print_final_stats=1 -artifact_prefix=build/fuzz/ build/fuzz/found/$$target runtime/cpp/fuzz/corpus/$$target || exit 1; \
	done

# What setuptools left in build/ would come back into the wheel, deleted modules included.
wheel: install
	rm -rf build/lib build/bdist.*
	$(BIN)/python -m pip wheel -q --no-deps --no-build-isolation -w dist .

# What `pip install` gives today, not what .venv has pinned.
pythons: wheel
	@$(TIMED); mkdir -p out; \
	$(BIN)/videossm-export shapes --lowering standard --force -o out/standard.plan; \
	$(BIN)/python tests/pythons.py "$$(ls -t dist/videossm-*.whl | head -1)" out/standard.plan

clean:
	rm -rf build dist out videossm.egg-info .mypy_cache .pytest_cache .ruff_cache
