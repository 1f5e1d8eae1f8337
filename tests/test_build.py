"""What was built: one exported symbol per instruction-set unit, nothing borrowed from libc, hardened objects."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import csoftmax
from csoftmax import _cpu

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ELF only"),
    pytest.mark.skipif(shutil.which("nm") is None or shutil.which("readelf") is None, reason="needs binutils"),
]
# The compiler's own, and the position-independent code's table.
HARMLESS = {"__stack_chk_fail", "_GLOBAL_OFFSET_TABLE_"}


def output(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def symbols():
    """{object of the library: [(kind, name), ...]}; lower-case kinds are local."""
    table, member = {}, None
    for line in output("nm", csoftmax.get_library()).splitlines():
        if line.endswith(".o:"):
            member = line[:-3]
            table[member] = []
        elif line:
            *_, kind, name = line.split()
            table[member].append((kind, name))
    return table


@pytest.mark.parametrize("unit", _cpu.ISAS)
def test_unit(unit):
    found = symbols()[unit]
    exported = [name for kind, name in found if kind.isupper() and kind != "U"]
    assert exported == [f"csm_table_{unit}"]
    undefined = {name for kind, name in found if kind == "U"} - HARMLESS
    assert undefined <= ({"fma", "fmaf"} if unit == "scalar" else set())


def test_library():
    """Every name is ours; the public header's functions are all there."""
    table = symbols()
    assert set(table) >= {*_cpu.ISAS, "cpu_features", "dispatch", "driver", "layout", "parallel", "row"}
    exported = {name for found in table.values() for kind, name in found if kind.isupper() and kind != "U"}
    assert [name for name in exported if not name.startswith("csm_")] == []
    with open(os.path.join(csoftmax.get_include(), "csoftmax.h"), encoding="ascii") as file:
        header = file.read()
    declared = set(re.findall(r"^(?:csm_status|size_t|int|const char \*) ?(csm_\w+)\(", header, re.MULTILINE))
    assert len(declared) >= 26
    assert declared <= exported


def test_only_one_file_has_threads():
    with_openmp = {
        member for member, found in symbols().items() if any(re.match("GOMP_|omp_", name) for _, name in found)
    }
    assert with_openmp <= {"parallel"}


def test_extension_exports():
    names = [line.split()[-1] for line in output("nm", "-D", "--defined-only", _cpu.__file__).splitlines()]
    assert [name for name in names if name not in ("_init", "_fini")] == ["PyInit__cpu"]


def test_hardening():
    dynamic = output("readelf", "-dW", _cpu.__file__)
    assert re.search(r"BIND_NOW|\bNOW\b", dynamic)
    segments = output("readelf", "-lW", _cpu.__file__)
    assert "GNU_RELRO" in segments
    assert re.search(r"GNU_STACK.* RW ", segments), "the stack is executable"
    assert "RPATH" not in dynamic
    imported = output("nm", "-D", "--undefined-only", _cpu.__file__)
    assert "__stack_chk_fail" in imported


def test_subnormals_survive_the_import():
    """-ffast-math would link a constructor that flushes them in the whole process."""
    code = "import csoftmax, sys; sys.exit(float.fromhex('0x1p-1030') * 0.5 == 0)"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=120)
    assert "set_fast_math" not in output("nm", _cpu.__file__)


def test_cuda_sources_are_whole():
    """Every header that the CUDA kernels include lies where the compiler is told to look."""
    from csoftmax import _cuda

    folder = Path(_cuda.__file__).parent
    left, seen = [folder / name for name in _cuda.KERNELS], set()
    assert all(path.is_file() for path in left)
    while left:
        path = left.pop()
        if path in seen:
            continue
        seen.add(path)
        for name in re.findall(r'^#include "(.+)"', path.read_text(), re.M):
            found = [p for p in (path.parent / name, folder / name, _cuda.core() / name) if p.is_file()]
            assert found, f"{path.name} includes {name}"
            left.append(found[0].resolve())
    assert len(seen) >= 12
