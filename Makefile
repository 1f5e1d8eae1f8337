# Everything a contributor does.  Each target prints the command that it runs.
PYTHON ?= python
ASV = $(PYTHON) -m asv
CLANG_FORMAT_FILES = $$(git ls-files '*.[ch]' '*.cu' '*.cuh' '*.cpp')

.DEFAULT_GOAL := help
.PHONY: help dev test test-long free-threaded bench lint format generate accuracy speed asv golden ci

help:  ## list the targets
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/: .*## /\t/' | expand -t 14

dev:  ## editable install with everything that tests and lint need
	$(PYTHON) -m pip install -e '.[test,lint,bench]'

test:  ## run the default tests
	$(PYTHON) -m pytest

test-long:  ## run the tests marked long: every float, every C case, large shapes, 1,000 forks
	$(PYTHON) -m pytest -m long

free-threaded:  ## build a free-threaded CPython (once) and run the tests there
	tests/tools/free_threaded.sh

bench:  ## measure speed against every installed peer
	$(PYTHON) -m csoftmax bench

lint:  ## ruff, mypy, clang-format, cython-lint
	ruff check .
	ruff format --check .
	mypy csoftmax
	clang-format --dry-run -Werror $(CLANG_FORMAT_FILES)
	! grep -nE '^.{121}' $(CLANG_FORMAT_FILES)  # clang-format does not break comments
	cython-lint csoftmax/*.pyx csoftmax/_cpu/*.pyx csoftmax/_cpu/*.pxi csoftmax/*.pxd tests/build/embed/*.pyx

format:  ## rewrite Python and C in the project's style
	ruff check --fix . && ruff format . && clang-format -i $(CLANG_FORMAT_FILES)

generate:  ## write the files generated from csoftmax.h: Cython and capsule headers, export list, abi.txt
	$(PYTHON) src_c/make_interface.py

accuracy:  ## measure ACCURACY.md again
	$(PYTHON) tests/tools/make_accuracy.py

speed:  ## measure docs/numbers/speed.md again, on an idle machine
	$(PYTHON) tests/tools/make_speed.py

golden:  ## write the golden hashes again (a change of bits needs an entry in docs/decisions)
	$(PYTHON) tests/tools/make_golden.py

asv:  ## run the asv benchmarks quickly and write their web pages (.asv/html)
	# asv refuses a machine that it does not know; this writes its name and CPU to ~/.asv-machine.json
	cd asv_bench && { [ -f "$${ASV_MACHINE:-$$HOME/.asv-machine.json}" ] || $(ASV) machine --yes; }
	cd asv_bench && $(ASV) run --quick --python=same --set-commit-hash=$$(git rev-parse HEAD)
	$(PYTHON) asv_bench/check_results.py
	$(PYTHON) asv_bench/publish.py

ci:  ## run every check (.ci/run)
	.ci/run
