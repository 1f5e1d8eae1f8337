"""Every CUDA module compiles for every generation of devices, without local memory and with 128-bit accesses.

Needs CuPy and NVIDIA's compiler and disassembler, but no driver:
    pip install cupy-cuda13x nvidia-cuda-nvrtc nvidia-cuda-runtime nvidia-cuda-crt nvidia-cuda-nvdisasm
"""

import re
import subprocess
from pathlib import Path

import pytest

import csoftmax
from csoftmax._cuda import Unavailable, compiler, require
from csoftmax._cuda.sizes import SUFFIXES

pytest.importorskip("cupy", reason="CuPy is not installed")
ARCHITECTURES = ("sm_75", "sm_80", "sm_90", "sm_100", "sm_120")
# Threads of a kernel's largest block, all of whose registers must fit in the 65,536 of a multiprocessor, by source, or
# by operation where it differs from the others of its source.  Kernels that are not named have blocks of few threads,
# and MAX_REGISTERS lets twelve warps run at a time.
_ROW_THREADS = {"f32": 448, "f16": 448, "bf16": 448, "f64": 224}
THREADS = {
    "softmax.cu": {"whole": _ROW_THREADS},
    "vjp.cu": {"whole": _ROW_THREADS},
    "cross_entropy.cu": {
        "rows": _ROW_THREADS,
        **dict.fromkeys(("divide", "reduce"), dict.fromkeys(_ROW_THREADS, 1024)),
    },
    "segment_cross_entropy": {
        "rows": {"f32": 256, "f16": 256, "bf16": 256, "f64": 224},
        **dict.fromkeys(("divide", "reduce"), dict.fromkeys(_ROW_THREADS, 1024)),
    },
    "segment_any.cu": {},
    "topk.cu": {"choose": dict.fromkeys(_ROW_THREADS, 512)},
    "entmax.cu": dict.fromkeys(("forward", "rows", "backward"), dict.fromkeys(_ROW_THREADS, 256)),
    "sample.cu": {},
    "weighted_sum.cu": {},
}
MAX_REGISTERS = 168


def kernels_of(log):
    """{name: (bytes of stack, bytes spilled, registers)} from the assembler's log."""
    found = {}
    for part in log.split("Compiling entry function '")[1:]:
        numbers = [
            sum(int(n) for n in re.findall(pattern, part))
            for pattern in (r"(\d+) bytes stack frame", r"(\d+) bytes spill", r"Used (\d+) registers")
        ]
        found[part.split("'")[0]] = tuple(numbers)
    return found


def disassembler():
    nvidia = pytest.importorskip("nvidia", reason="nvidia-cuda-nvdisasm is not installed")
    for folder in nvidia.__path__:
        for path in Path(folder).glob("cu*/bin/nvdisasm"):
            return path
    pytest.skip("nvidia-cuda-nvdisasm is not installed")


@pytest.fixture(params=ARCHITECTURES)
def arch(request):
    return request.param


def check_roundings(ptx):
    """Subnormals are kept, and each sum, difference and product of floats has a rounding of its own."""
    assert ".entry" in ptx
    assert ".ftz" not in ptx
    assert not re.search(r"\b(add|sub|mul)\.f(32|64)\b", ptx)


@pytest.mark.parametrize("suffix", SUFFIXES.values())
@pytest.mark.parametrize("op", compiler.SOURCES)
def test_compiles(op, suffix, arch, tmp_path):
    code, ptx, log = compiler.compile_module(op, suffix, arch)
    assert "warning" not in log.lower(), log
    kernels = kernels_of(log)
    assert set(kernels) == set(compiler.KERNELS[compiler.SOURCES[op]])
    for name, (stack, spilled, registers) in kernels.items():
        assert (stack, spilled) == (0, 0), f"{name} spills"
        threads = THREADS.get(op, THREADS[compiler.SOURCES[op]]).get(name)
        limit = 65536 // threads[suffix] // 8 * 8 if threads else MAX_REGISTERS
        assert registers <= limit, f"{name} takes {registers} registers"
    if arch != "sm_90":
        return
    check_roundings(ptx.decode())
    (tmp_path / "code").write_bytes(code)
    done = subprocess.run([disassembler(), "-c", tmp_path / "code"], capture_output=True, text=True, check=True)
    sections = re.split(r"^\.text\.(\w+):", done.stdout, flags=re.M)
    for name, text in zip(sections[1::2], sections[2::2], strict=True):
        assert not re.search(r"\b(LDL|STL)\b", text), f"{name} uses local memory"
        if name not in ("combine", "labels", "masses", "divide", "reduce", "clip", "any", "keys", "gather", "weighted"):
            assert "LDG.E.128" in text, name
        if name in ("teams", "whole", "apply", "rows", "forward", "backward") and op != "logsumexp":
            assert "STG.E.128" in text, name


def test_error_quotes_the_compiler(monkeypatch):
    monkeypatch.setattr(compiler, "options", lambda *a: ("-DSTORAGE_none",))
    with pytest.raises(RuntimeError, match=r"(?s)NVRTC cannot compile softmax for sm_90.*error"):
        compiler.compile_module("softmax", "f32", "sm_90")


def test_ptx():
    code, ptx, _ = compiler.compile_module("softmax", "f32", "compute_90")
    assert code == ptx
    check_roundings(ptx.decode())
    assert b".target sm_90" in code
    assert {name for name in compiler.KERNELS["softmax.cu"] if f".entry {name}(".encode() in code} == set(
        compiler.KERNELS["softmax.cu"]
    )


def test_no_driver_is_a_device_error():
    """With CuPy but without a driver, the message names the driver."""
    try:
        require(None)
    except Unavailable:
        pass
    else:
        pytest.skip("there is a device")
    with pytest.raises(csoftmax.DeviceError, match=r"no CUDA driver.*csoftmax\[cuda13x"):
        csoftmax.softmax([1.0, 2.0], device="cuda")
