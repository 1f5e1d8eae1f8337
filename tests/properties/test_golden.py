"""The bits of this version are those of the last: hashes of results, committed in tests/records/golden.json.

Made by `python tests/tools/make_golden.py`; a difference is either a bug or a decision to be written down.
"""

import json
import sys

import pytest
from helpers import assert_same_bits, every_record
from tools import make_golden
from tools.make_golden import (
    CASES,
    LOSSES,
    SPARSE,
    crf_digest,
    digest,
    divergence_digest,
    loss_digest,
    ranking_digest,
    sampled_digest,
    sampler_digest,
    segments_digest,
    sparse_digest,
    subset_digest,
)

import csoftmax
from csoftmax._spec.formats import DTYPES
from csoftmax._spec.operations import OPERATIONS, SOFTMAX_FAMILY
from csoftmax._spec.samples import integers

little_endian = pytest.mark.skipif(sys.byteorder != "little", reason="the hashes are of little-endian bits")
NAMES = {op.name: (lambda dtype, case, op=op: digest(op, dtype, case)) for op in SOFTMAX_FAMILY}
NAMES |= {f"cross_entropy, {kind}": (lambda dtype, case, kind=kind: loss_digest(dtype, case, kind)) for kind in LOSSES}
NAMES |= {f"sparse, alpha={a}": (lambda dtype, case, a=a: sparse_digest(dtype, case, a)) for a in SPARSE}
NAMES["crf"] = crf_digest
NAMES["kl_divergence"] = divergence_digest
NAMES["sampled, of each row"] = sampled_digest
NAMES["sampler"] = sampler_digest
NAMES["segments"] = segments_digest
NAMES["rankings"] = ranking_digest
NAMES["subsets"] = subset_digest


@pytest.fixture(scope="module")
def golden():
    return json.loads(make_golden.FILE.read_text())


def test_every_case_is_there(golden):
    assert set(golden) == {f"{name}/{dtype}/{case}" for name in NAMES for dtype in DTYPES for case in CASES}, (
        "make golden writes the hashes"
    )


@little_endian
@pytest.mark.parametrize("name", NAMES)
def test_bits_are_those_committed(name, dtype, golden):
    changed = [case for case in CASES if NAMES[name](dtype, case) != golden[f"{name}/{dtype}/{case}"]]
    assert not changed, f"other bits than committed for {name}/{dtype}: {changed}"


@every_record("golden")
def test_every_operation_has_golden_bits(record):
    assert record.golden
    assert set(record.golden) <= set(NAMES)


def test_every_hash_belongs_to_an_operation():
    assert {name for op in OPERATIONS for name in op.golden} == set(NAMES)


def test_operations_without_hashes_of_their_own(dtype):
    """sparsemax is entmax with alpha = 2, and a loss alone is the loss beside its gradient: to the last bit."""
    for case in ("9x16", "4x1000", "4x300 tails"):
        (x,) = make_golden.inputs(SOFTMAX_FAMILY[0], dtype, case)
        assert_same_bits(csoftmax.sparsemax(x), csoftmax.entmax(x, 2.0))
        labels = (integers(len(x), 3) % x.shape[1]).astype(int)
        alone = csoftmax.entmax_loss(x, labels, 1.25, reduction="none")
        assert_same_bits(alone, csoftmax.entmax_loss_with_grad(x, labels, 1.25, reduction="none").loss)


def test_inputs_are_made_of_integers():
    """The generator itself is fixed."""
    assert integers(3, 1).tolist() == [7100271.0, 8546438.0, 10877665.0]
    assert integers(1000, 7).sum() == 8153875915.0
