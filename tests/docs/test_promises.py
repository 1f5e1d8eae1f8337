"""Every operation keeps every promise, or its record says why not; and no pair of before has been lost.

A pair (promise, operation) is tested if tests/properties/test_<promise>.py takes every record and the record does not
opt out, or if a test of the family carries the marker `promise`.  tests/records/promises_before.json holds the pairs
that were tested before there were records.
"""

import ast
import fnmatch
import functools
import inspect
import json

import pytest
from helpers import RECORDS, ROOT

import csoftmax
from csoftmax._spec.operations import BY_NAME, OPERATIONS
from csoftmax._spec.record import PROMISES

TESTS = ROOT / "tests"
# Public functions that compute nothing.
SETTINGS = {
    "get_cmake_dir",
    "get_include",
    "get_library",
    "get_num_threads",
    "set_num_threads",
    "show_config",
    "threads",
}
# Public functions that serve others: tests/ops/test_sampled.py compares add_rows with the assignment that it is,
# tests/ops/test_streams.py merge_states with the attention that it is, tests/ops/test_int8.py int8_topk with Int8Head,
# whose tests are those of its answers.
HELPERS = {"add_rows", "int8_topk", "merge_states"}


def decorators(path):
    """Yield the decorator calls of all tests of a file: name and constant arguments."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            for each in node.decorator_list:
                if isinstance(each, ast.Call):
                    name = ast.unparse(each.func).removeprefix("pytest.mark.")
                    yield name, tuple(a.value for a in each.args if isinstance(a, ast.Constant))


def properties():
    """Return the promises of which a property file takes every record."""
    return {
        arguments[0]
        for path in (TESTS / "properties").glob("test_*.py")
        for name, arguments in decorators(path)
        if name == "every_record" and path.stem == f"test_{arguments[0]}"
    }


def claimed_pairs():
    """Return the pairs that tests of single families claim."""
    return {
        arguments for path in TESTS.glob("*/test_*.py") for name, arguments in decorators(path) if name == "promise"
    }


@functools.lru_cache
def pairs_now():
    """Return all pairs that are tested now."""
    pairs = {(promise, op.name) for promise in properties() for op in OPERATIONS if promise not in op.exempt}
    return pairs | claimed_pairs()


def test_every_public_function_that_computes_has_a_record():
    public = {name for name in csoftmax.__all__ if inspect.isroutine(getattr(csoftmax, name))}
    assert public - SETTINGS - HELPERS == set(BY_NAME), (
        "a public function without a record in csoftmax/_spec, or the reverse"
    )
    assert len(OPERATIONS) == len(BY_NAME)


@pytest.mark.parametrize("record", OPERATIONS, ids=lambda op: op.name)
def test_every_record_is_complete(record):
    assert callable(record.oracle), f"{record.name} has no oracle"
    sample = record.sample((4, 6), seed=1)
    assert len(record.oracle(*sample.arrays.values(), **sample.options)) >= len(record.compute(sample))
    assert "plain" in record.variants
    assert record.bad_calls or record.name == "sparsemax", "no bad call: which arguments does it refuse?"
    for bad in record.bad_calls:
        assert issubclass(bad.exception(), Exception)
    names = list(inspect.signature(record.function()).parameters)
    arrays = ["topk"] if record.name == "to_csr" else [argument.name for argument in record.arguments]
    assert names[: len(arrays)] == arrays


def test_every_promise_is_a_property():
    assert properties() == set(PROMISES)


@pytest.mark.parametrize("record", OPERATIONS, ids=lambda op: op.name)
def test_every_promise_is_kept_or_has_a_reason(record):
    assert set(record.exempt) <= set(PROMISES)
    assert all(len(reason) > 10 for reason in record.exempt.values())
    tested = {promise for promise, name in pairs_now() if name == record.name}
    assert tested | set(record.exempt) == set(PROMISES)


def test_marked_pairs_exist():
    for promise, name in claimed_pairs():
        assert promise in PROMISES
        assert name in BY_NAME


def test_no_pair_has_been_lost():
    before = json.loads((RECORDS / "promises_before.json").read_text())
    pairs = {(promise, name) for promise, names in before.items() for name in names}
    assert pairs <= pairs_now(), f"lost: {sorted(pairs - pairs_now())}"


def test_every_folder_of_tests_is_collected(request):
    """pytest leaves some names out, `build` among them: tests in such a folder would run nowhere and fail nowhere."""
    left_out = request.config.getini("norecursedirs")
    folders = {path.parent.name for path in TESTS.rglob("test_*.py")}
    assert "build" in folders
    assert [name for name in folders if any(fnmatch.fnmatch(name, pattern) for pattern in left_out)] == []
