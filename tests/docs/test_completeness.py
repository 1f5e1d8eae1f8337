"""Fails if an operation is missing in one of the places that must have it.

Places: the C registry, the binding's table, the C header, the Cython header, the modules for CUDA, the documentation.
test_promises.py checks that each has a record, an oracle and the tests of every promise.  It also fails if help() does
not say what a result holds, how a method is called or what a default is.
"""

import inspect
import re

import pytest
from helpers import ROOT, run_python
from helpers.docstrings import MODULES, documented, has_example, public_methods, public_objects

import csoftmax
from csoftmax._cpu import binding
from csoftmax._cuda.compiler import SOURCES
from csoftmax._spec.formats import DTYPES
from csoftmax._spec.operations import CUDA_FAMILY, OPERATIONS, SOFTMAX_FAMILY

NAMES = {op.name for op in SOFTMAX_FAMILY}
# Classes whose methods have no examples of their own; that of the class shows how they are used.
METHODS_WITHOUT_EXAMPLE = {
    "distributed": "those of groups, nodes and partial results: the example of each class uses them",
    "heads": "parts of layers, which only work together: the example of each class is a whole step",
    "linear_model": "the estimators' methods are scikit-learn's; the example of each class fits and predicts",
}
# Classes that users do not construct, and what makes them.
MADE_BY_OTHERS = {"Report": "metrics.evaluate", "Partial": "distributed.partial", "Group": "a protocol, not a class"}
# Fields of results that are None where something was not given or asked for.
MAY_BE_NONE = {"grad_start", "grad_end", "grad_bias", "pairs", "log_prob", "log_q", "count", "target_log_q"}
# ... but not in these results.
NEVER_NONE = {("Draws", "log_prob")}
# Parameters that the two estimators of linear_model describe without their default, None.
NONE_BY_DEFAULT = {"clip_norm", "clip_value", "random_state"}
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
    in_c = NAMES | {"cross_entropy", "topk", "entmax", "entmax_vjp", "entmax_loss", "sample", "penalize"}
    in_c |= {"kl_divergence"}
    in_c |= {f"segment_{name}" for name in NAMES - {"entropy"} | {"cross_entropy"}}
    assert declared == {f"csm_{name}_{suffix}" for name in in_c for suffix in SUFFIX.values()}


def test_import_loads_no_costly_module():
    """numpy.random alone takes 10 ms, a third of the import."""
    costly = {"numpy.random", "asyncio", "scipy", "sklearn", "pandas", "matplotlib", "torch", "jax", "cupy"}
    loaded = run_python("import sys, numpy, csoftmax; print(*sys.modules)").stdout.split()
    assert "csoftmax" in loaded
    assert not costly & set(loaded)


def public_classes():
    """Yield module, name and class of all public classes, without exceptions."""
    for module in MODULES:
        for name, thing in public_objects(module):
            if inspect.isclass(thing) and not issubclass(thing, Exception):
                yield module.lstrip("."), name, thing


def test_every_field_of_a_result_is_described():
    """Its shape or type in the entry, its meaning below it, None where it may be None; in the order of the fields."""
    results = [(name, cls) for _, name, cls in public_classes() if hasattr(cls, "_fields")]
    assert len(results) > 10
    for name, cls in results:
        doc = inspect.getdoc(cls)
        entries = documented(doc, "Attributes") or documented(doc)
        assert tuple(entries) == cls._fields, name
        for field, (kind, meaning) in entries.items():
            assert re.search(r"scalar|ndarray|RowGradient|str\b", kind), f"{name}.{field}: {kind}"
            assert meaning, f"{name}.{field} has no description"
            assert bool(re.search(r"\bor None\b", kind)) == (
                field in MAY_BE_NONE and (name, field) not in NEVER_NONE
            ), f"{name}.{field}: {kind}"


def test_every_public_class_and_method_has_an_example():
    missing = []
    for module, name, cls in public_classes():
        if not hasattr(cls, "_fields") and not has_example(cls):
            missing.append(name)
        if module not in METHODS_WITHOUT_EXAMPLE:
            missing += [f"{name}.{method}" for method, f in public_methods(cls) if not has_example(f)]
    functions = [(name, f) for module in MODULES for name, f in public_objects(module) if inspect.isroutine(f)]
    missing += [name for name, function in functions if not has_example(function)]
    assert not missing, f"without an example: {', '.join(missing)}"


def test_every_parameter_is_described_with_its_default():
    """In an entry of its own, or in one of several parameters that are "as in" another function."""
    faults = []
    for module in MODULES:
        for name, thing in public_objects(module):
            if inspect.isclass(thing) and (issubclass(thing, Exception) or name in MADE_BY_OTHERS):
                continue
            methods = public_methods(thing) if inspect.isclass(thing) else ()
            for label, f in [(name, thing), *((f"{name}.{method}", f) for method, f in methods)]:
                faults += [f"{label}: {fault}" for fault in faults_of_parameters(f, module)]
    assert not faults, "\n".join(faults)


def faults_of_parameters(f, module):
    """Yield what is wrong with the entries of the parameters of a function or class."""
    doc = inspect.getdoc(f)
    entries = documented(doc) | (documented(doc, "Attributes") if hasattr(f, "_fields") else {})
    for parameter in inspect.signature(f).parameters.values():
        if parameter.name in ("self", "cls"):
            continue
        if parameter.name not in entries:
            yield f"{parameter.name} is not described"
            continue
        kind = entries[parameter.name][0]
        excused = module == ".linear_model" and parameter.name in NONE_BY_DEFAULT
        if (
            kind
            and parameter.default is not parameter.empty
            and not re.search("default|optional", kind)
            and not excused
        ):
            yield f"{parameter.name} has the default {parameter.default!r}, which its entry does not say: {kind}"
