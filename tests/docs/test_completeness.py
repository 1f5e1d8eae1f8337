"""Fails if an operation is missing in one of the places that must have it.

Places: the C registry, the binding's table, the C header, the Cython header, the modules for CUDA, the documentation.
test_promises.py checks that each has a record, an oracle and the tests of every promise.
"""

import inspect
import re

import pytest
from helpers import ROOT, run_python

import csoftmax
from csoftmax._cpu import binding
from csoftmax._cuda.compiler import SOURCES
from csoftmax._spec.formats import DTYPES
from csoftmax._spec.operations import CUDA_FAMILY, OPERATIONS, SOFTMAX_FAMILY

NAMES = {op.name for op in SOFTMAX_FAMILY}
SUFFIX = {"float32": "f32", "float64": "f64", "float16": "f16", "bfloat16": "bf16"}


def rows(name):
    """Return the rows of an X-macro list in registry.h."""
    text = (ROOT / "src_c" / "registry.h").read_text()
    body = re.search(rf"#define {name}(?:_WITH)?\(X(?:, \.\.\.)?\)((?:.*\\\n)+.*)", text).group(1)
    return [re.split(r",\s*", row) for row in re.findall(r"X\(([^)]*)\)", body)]


def test_registry_has_the_op_list():
    inputs = {"UNARY": 1, "BINARY": 2}
    assert {row[0]: (inputs[row[1]], int(row[2])) for row in rows("CSM_OPS")} == {
        op.name: (op.inputs, int(op.keeps_axis)) for op in SOFTMAX_FAMILY
    }


def test_registry_has_the_dtypes():
    assert [row[0] for row in rows("CSM_DTYPES")] == [SUFFIX[d] for d in DTYPES]
    assert set(binding.DTYPES) == set(DTYPES)


def test_registry_has_the_instruction_sets():
    assert [row[0] for row in rows("CSM_ISAS")] == list(binding.ISAS)
    assert set(binding.isa_available()) <= set(binding.isa_built()) <= set(binding.ISAS)
    assert binding.isa() in binding.isa_available()
    assert "scalar" in binding.isa_available()


def test_binding_numbers_follow_the_registry():
    assert {row[0]: i for i, row in enumerate(rows("CSM_OPS"))} == binding.OPS
    numbers = {SUFFIX[name]: code for name, code in binding.DTYPES.items()}
    assert {row[0]: i for i, row in enumerate(rows("CSM_DTYPES"))} == numbers


def test_public_names():
    assert set(binding.OPS) == NAMES
    assert set(binding.OPS) <= set(binding.XLA_TARGETS)
    assert len(set(csoftmax.__all__)) == len(csoftmax.__all__)


def test_cuda_has_the_operations():
    """An operation without kernels says so in its record: devices=("cpu",)."""
    assert set(SOURCES) & NAMES == {op.name for op in CUDA_FAMILY}


@pytest.mark.parametrize("op", OPERATIONS, ids=lambda op: op.name)
def test_documentation(op):
    for section in ("Parameters", "Returns", "Raises", "Notes", "Examples"):
        if op.name == "check_labels" and section in ("Returns", "Notes"):  # it returns nothing
            continue
        assert f"{section}\n---" in inspect.getdoc(op.function()), f"{op.name} has no section {section}"


def test_signatures_of_the_softmax_family(op):
    parameters = inspect.signature(op.function()).parameters
    assert list(parameters)[: op.inputs + 1] == (["x", "axis"] if op.inputs == 1 else ["dy", "y", "axis"])


def test_capsule_has_every_function():
    """Every symbol that the library exports is in csm_api, under the same name."""
    lines = (ROOT / "tests" / "records" / "abi.txt").read_text().splitlines()
    exported = {re.search(r"symbol csm_(\w+)@@CSOFTMAX_0", line)[1] for line in lines if line.startswith("symbol")}
    members = {line.split()[0].removeprefix("csm_api.") for line in lines if line.startswith("csm_api.")}
    assert exported == members - {"abi_major", "abi_minor", "size"}


@pytest.mark.parametrize("file", ["csoftmax/include/csoftmax.h", "csoftmax/cpu.pxd"])
def test_headers(file):
    text = (ROOT / file).read_text()
    declared = set(re.findall(r"^\s*csm_status (csm_\w+?)\(const csm_shape", text, re.M))
    in_c = NAMES | {"cross_entropy", "topk", "entmax", "entmax_vjp", "entmax_loss", "sample"}
    assert declared == {f"csm_{name}_{suffix}" for name in in_c for suffix in SUFFIX.values()}


def test_import_loads_no_costly_module():
    """numpy.random alone takes 10 ms, a third of the import."""
    costly = {"numpy.random", "asyncio", "scipy", "sklearn", "pandas", "matplotlib", "torch", "jax", "cupy"}
    loaded = run_python("import sys, numpy, csoftmax; print(*sys.modules)").stdout.split()
    assert "csoftmax" in loaded
    assert not costly & set(loaded)
