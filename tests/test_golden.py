"""The bits of this version are the bits of the last: hashes of results, committed in golden.json.

Made by `python tests/make_golden.py`; a difference is either a bug or a decision to be written down.
"""

import json
import sys

import make_golden
import pytest
from make_golden import CASES, digest
from ops import DTYPES, OPS

little_endian = pytest.mark.skipif(sys.byteorder != "little", reason="the hashes are of little-endian bits")


@pytest.fixture(scope="module")
def golden():
    return json.loads(make_golden.FILE.read_text())


def test_every_case_is_there(golden):
    assert set(golden) == {f"{op.name}/{dtype}/{case}" for op in OPS for dtype in DTYPES for case in CASES}


@little_endian
def test_bits_are_those_committed(op, dtype, golden):
    changed = [case for case in CASES if digest(op, dtype, case) != golden[f"{op.name}/{dtype}/{case}"]]
    assert not changed, f"other bits than committed for {op.name}/{dtype}: {changed}"


def test_inputs_are_made_of_integers():
    """The generator itself is fixed."""
    assert make_golden.integers(3, 1).tolist() == [7100271.0, 8546438.0, 10877665.0]
    assert make_golden.integers(1000, 7).sum() == 8153875915.0
