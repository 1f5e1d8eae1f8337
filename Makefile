# Everything a contributor does.  Each target prints the one real command that it runs.
PYTHON ?= python
CLANG_FORMAT_FILES = $$(find src_c csoftmax/include csoftmax/_pages.? csoftmax/_quick.? csoftmax/_xla.? csoftmax/_cuda tests/c tests/embed tests/cuda_model -name '*.[ch]' -o -name '*.cu' -o -name '*.cuh' -o -name '*.cpp')

.DEFAULT_GOAL := help
.PHONY: help dev test test-long free-threaded bench lint format accuracy asv golden ci

help:  ## this list
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/: .*## /\t/' | expand -t 14

dev:  ## editable install with everything that tests and lint need
	$(PYTHON) -m pip install -e '.[test,lint,bench]'

test:  ## the fast tests
	$(PYTHON) -m pytest

test-long:  ## the marked tests: every float, every C case, big shapes, 1,000 forks
	$(PYTHON) -m pytest -m long

free-threaded:  ## build a free-threaded CPython (once) and run the tests there
	tests/tools/free_threaded.sh

bench:  ## speed beside every installed peer
	$(PYTHON) -m csoftmax bench

lint:  ## ruff, clang-format, cython-lint
	ruff check .
	ruff format --check .
	clang-format --dry-run -Werror $(CLANG_FORMAT_FILES)
	! grep -nE '^.{121}' $(CLANG_FORMAT_FILES)  # clang-format leaves comments as they are
	cython-lint csoftmax/*.pyx csoftmax/*.pxd tests/embed/*.pyx

format:  ## rewrite Python and C in the project's style
	ruff check --fix . && ruff format . && clang-format -i $(CLANG_FORMAT_FILES)

accuracy:  ## measure ACCURACY.md again
	$(PYTHON) tests/make_accuracy.py

golden:  ## write the golden hashes again (a change of bits is a logged decision)
	$(PYTHON) tests/make_golden.py

asv:  ## quick run of the benchmarks and their web page
	cd asv_bench && asv run --quick --python=same --set-commit-hash=$$(git rev-parse HEAD) && asv publish

ci:  ## the gate
	.ci/run
