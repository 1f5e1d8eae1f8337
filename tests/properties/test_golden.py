"""The bits of this version are the bits of the last: hashes of results, committed in golden.json.

Made by `python tests/make_golden.py`; a difference is either a bug or a decision to be written down.
"""

import json
import sys

import make_golden
import pytest
from make_golden import CASES, LOSSES, SPARSE, digest, loss_digest, sparse_digest
from ops import DTYPES, OPS

little_endian = pytest.mark.skipif(sys.byteorder != "little", reason="the hashes are of little-endian bits")


@pytest.fixture(scope="module")
def golden():
    return json.loads(make_golden.FILE.read_text())


def test_every_case_is_there(golden):
    names = [op.name for op in OPS] + [f"cross_entropy, {kind}" for kind in LOSSES]
    names += [f"sparse, alpha={alpha}" for alpha in SPARSE]
    assert set(golden) == {f"{name}/{dtype}/{case}" for name in names for dtype in DTYPES for case in CASES}


@little_endian
def test_bits_are_those_committed(op, dtype, golden):
    changed = [case for case in CASES if digest(op, dtype, case) != golden[f"{op.name}/{dtype}/{case}"]]
    assert not changed, f"other bits than committed for {op.name}/{dtype}: {changed}"


@little_endian
@pytest.mark.parametrize("kind", LOSSES)
def test_losses_have_the_bits_committed(kind, dtype, golden):
    name = f"cross_entropy, {kind}/{dtype}"
    changed = [case for case in CASES if loss_digest(dtype, case, kind) != golden[f"{name}/{case}"]]
    assert not changed, f"other bits than committed for {name}: {changed}"


@little_endian
@pytest.mark.parametrize("alpha", SPARSE)
def test_sparse_functions_have_the_bits_committed(alpha, dtype, golden):
    name = f"sparse, alpha={alpha}/{dtype}"
    changed = [case for case in CASES if sparse_digest(dtype, case, alpha) != golden[f"{name}/{case}"]]
    assert not changed, f"other bits than committed for {name}: {changed}"


def test_inputs_are_made_of_integers():
    """The generator itself is fixed."""
    assert make_golden.integers(3, 1).tolist() == [7100271.0, 8546438.0, 10877665.0]
    assert make_golden.integers(1000, 7).sum() == 8153875915.0
