# make demo | scores | test | lint | bench | fuzz | wheel      each sets up .venv by itself on a fresh machine
#
#   TORCH=2.13.0           the torch that .venv gets
#   PYTHON=/path/python    use this environment and its torch instead of .venv; nothing is installed into it
#   CUDA=AUTO|ON|OFF       CUDA kernels (AUTO: where nvcc is found and torch has CUDA)
#   SETTING=minutes|photographs|night   what make scores trains on and how long; PLACKET_DATA names the photographs
#   MUTANTS=20000 SECONDS=120   damaged JPEG files, and the time of each libFuzzer target, of make fuzz
TORCH ?= 2.13.0
CUDA ?= AUTO
SYSTEM_PYTHON ?= python3
SETTING ?= minutes
MUTANTS ?= 20000
SECONDS ?= 120

SOURCES := CMakeLists.txt pyproject.toml python/placket/_build.py.in $(shell find csrc tests/cpp -type f)

ifdef PYTHON
READY := build/existing/.ready
INTERPRETER := $(shell command -v $(PYTHON))
RUN := PYTHONPATH=$(CURDIR)/python $(INTERPRETER)
else
READY := .venv/.ready
PEERS := .venv/.peers
INTERPRETER := $(CURDIR)/.venv/bin/python
RUN := $(INTERPRETER)
export PATH := $(CURDIR)/.venv/bin:$(PATH)
endif

.PHONY: demo scores test lint bench fuzz wheel clean
.DELETE_ON_ERROR:

demo: $(READY)
	$(RUN) -m placket demo --out runs/demo

scores: $(READY)
	$(RUN) -m placket scores --setting $(SETTING) --out runs/scores-$(SETTING)

test: $(READY)
	$(RUN) -m pytest

bench: $(READY) $(PEERS)
	$(RUN) tests/bench/run.py

fuzz: $(READY)
	PYTHONPATH=$(CURDIR)/python bash tests/fuzz/run.sh $(INTERPRETER) $(MUTANTS) $(SECONDS)

lint: $(READY)
	$(RUN) -m ruff check python tests
	$(RUN) -m ruff format --check python tests
	$(RUN) -m mypy
	$(RUN) -m mypy.stubtest placket._C
	find csrc tests/cpp tests/fuzz -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' | xargs clang-format --dry-run -Werror
	cmake -S . -B build/lint -DPython_EXECUTABLE=$(INTERPRETER) -DPLACKET_CUDA=OFF -DCMAKE_UNITY_BUILD=ON > /dev/null
	sed -n 's/.*"file": "\(.*\)".*/\1/p' build/lint/compile_commands.json | xargs -P 2 -n 1 clang-tidy --quiet -p build/lint \
	    --extra-arg=-idirafter$(shell g++ -print-file-name=include) 2> build/clang-tidy.log || (cat build/clang-tidy.log; exit 1)

wheel: $(READY)
	$(RUN) -m pip wheel --no-build-isolation --no-deps -w dist -C cmake.define.PLACKET_CUDA=$(CUDA) .

clean:
	rm -rf build build-* dist .venv python/placket/_C*.so python/placket/_build.py

.venv/.torch-$(TORCH):
	$(SYSTEM_PYTHON) -m venv .venv
	.venv/bin/python -m pip install -q -U "pip>=25.1"
	echo "torch==$(TORCH)" > .venv/constraints.txt
	.venv/bin/python -m pip install -q -c .venv/constraints.txt torch numpy
	rm -f .venv/.torch-* .venv/.packages .venv/.ready
	touch $@

.venv/.packages: .venv/.torch-$(TORCH) pyproject.toml
	.venv/bin/python -m pip install -q -c .venv/constraints.txt --group build --group test --group lint
	.venv/bin/python -m pip install -q --no-deps --group test-without-dependencies
	touch $@

# OML's requirements name torchvision and NumPy 1; what it is compared by does without.
.venv/.peers: .venv/.packages
	.venv/bin/python -m pip install -q -c .venv/constraints.txt --group bench
	.venv/bin/python -m pip install -q --no-deps open-metric-learning==4.0.0 omegaconf==2.4.0 antlr4-python3-runtime==4.9.3
	touch $@

.venv/.ready: .venv/.packages $(SOURCES)
	.venv/bin/python -m pip install -q -c .venv/constraints.txt --no-build-isolation -C build-dir=build \
	    -C cmake.define.PLACKET_CUDA=$(CUDA) -C cmake.define.PLACKET_TESTS=ON \
	    -e ".[cli,tensorboard,weights,notebook]"
	touch $@

build/existing/.ready: $(SOURCES)
	cmake -S . -B build/existing -DPython_EXECUTABLE=$(INTERPRETER) -DPLACKET_CUDA=$(CUDA) \
	    -DPLACKET_TESTS=ON $(shell command -v ninja > /dev/null && echo -G Ninja)
	cmake --build build/existing -j
	mkdir -p build/existing/package && cp build/existing/_C*.so build/existing/_build.py build/existing/package
	mv build/existing/package/* python/placket/  # in one step: a process may have the old ones mapped
	touch $@
