"""The installed binaries: exports, hardening, dependencies."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import run_python

import csoftmax
from csoftmax import cpu
from csoftmax._cpu import binding

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ELF only"),
    pytest.mark.skipif(shutil.which("nm") is None or shutil.which("readelf") is None, reason="needs binutils"),
]

BINARIES = [binding.__file__, cpu.__file__]
BINARIES += [csoftmax.get_library()] if sys.platform.startswith("linux") else []


def output(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


@pytest.mark.parametrize("file", BINARIES[:2], ids=["binding", "cpu"])
def test_extension_exports(file):
    names = [line.split()[-1] for line in output("nm", "-D", "--defined-only", file).splitlines()]
    assert [name for name in names if name not in ("_init", "_fini")] == [f"PyInit_{Path(file).name.split('.')[0]}"]


@pytest.mark.parametrize("file", BINARIES, ids=["binding", "cpu", "library"][: len(BINARIES)])
def test_hardening(file):
    dynamic = output("readelf", "-dW", file)
    assert re.search(r"BIND_NOW|\bNOW\b", dynamic)
    segments = output("readelf", "-lW", file)
    assert "GNU_RELRO" in segments
    assert re.search(r"GNU_STACK.* RW ", segments), "the stack is executable"
    assert "__stack_chk_fail" in output("nm", "-D", "--undefined-only", file)
    assert "TEXTREL" not in dynamic


def test_dependencies():
    """Only the library needs OpenMP, one runtime under its original name; libraries are found relative to files."""
    found = [output("readelf", "-dW", file) for file in BINARIES]
    needed = [set(re.findall(r"NEEDED.*\[(.+)\]", page)) for page in found]
    system = {"libc.so.6", "libm.so.6", "libpthread.so.0", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}
    system |= {name for names in needed for name in names if name.startswith("libc.musl-")}
    assert [names - system for names in needed] == [{"libcsoftmax.so.0"}, {"libcsoftmax.so.0"}, {"libgomp.so.1"}]
    for page, path in zip(found, ("$ORIGIN/../lib", "$ORIGIN/lib", "$ORIGIN")):
        ((kind, paths),) = re.findall(r"\((RPATH|RUNPATH)\).*\[(.+)\]", page)
        assert kind == "RUNPATH"
        assert path in paths.split(":")  # the build of Python may add others


LOADED = """if True:
    import ctypes, os, re
    for path in os.environ["LIBRARIES"].split(":"):
        ctypes.CDLL(path)
    print(*sorted({line.split()[-1] for line in open("/proc/self/maps") if re.search(r"lib(gomp|csoftmax)", line)}))
"""


def test_libgomp_beside_the_library(tmp_path):
    """A libgomp beside the library, as in the wheel, is used unless the process has loaded another, which is shared."""
    maps = run_python("import csoftmax; print(*csoftmax._runtime.config.openmp_libraries())")
    (libgomp,) = maps.stdout.split()
    ours = shutil.copy(csoftmax.get_library(), tmp_path)
    beside = shutil.copyfile(libgomp, tmp_path / "libgomp.so.1")
    assert run_python(LOADED, LIBRARIES=ours).stdout.split() == sorted([ours, str(beside)])
    assert run_python(LOADED, LIBRARIES=f"{libgomp}:{ours}").stdout.split() == sorted([ours, libgomp])


@pytest.mark.skipif(
    not Path(csoftmax.get_library()).with_name("libgomp.so.1").exists(), reason="not a wheel with a libgomp inside"
)
def test_libgomp_inside_the_wheel():
    used = run_python("import csoftmax; print(*csoftmax._runtime.config.openmp_libraries())").stdout.split()
    assert used == [str(Path(csoftmax.get_library()).with_name("libgomp.so.1"))]


def test_old_openmp_suffices():
    """The library uses no function of libgomp that is newer than GCC 4.9; LLVM's runtime has all older ones, too."""
    versions = set(re.findall(r"@((?:GOMP|OMP|OACC)_[\d.]+)", output("nm", "-D", csoftmax.get_library())))
    assert versions <= {"GOMP_1.0", "GOMP_4.0", "OMP_1.0"}


def test_library_of_another_build(tmp_path):
    """The extension does not run with a libcsoftmax that it was not built with."""
    source = tmp_path / "other.c"
    symbols = output("nm", "-D", "--undefined-only", binding.__file__)
    names = re.findall(r"(csm_\w+)@CSOFTMAX_", symbols)
    stubs = "".join(f"void {name}(void) {{}}\n" for name in names if name != "csm_source")
    source.write_text(stubs + 'const char *csm_source(void) { return "0123456789abcdef"; }\n')
    private = [n for n in names if f"{n}@CSOFTMAX_PRIVATE" in symbols]
    (tmp_path / "map").write_text(f"CSOFTMAX_PRIVATE {{ {'; '.join(private)}; }};\nCSOFTMAX_0 {{ csm_*; }};\n")
    library = tmp_path / "libcsoftmax.so.0"
    output(
        "cc",
        "-shared",
        "-fPIC",
        f"-Wl,-soname,{library.name}",
        f"-Wl,--version-script={tmp_path}/map",
        source,
        "-o",
        library,
    )
    done = subprocess.run(
        [sys.executable, "-c", "import csoftmax"],
        env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert "0123456789abcdef" in done.stderr
    assert "LD_LIBRARY_PATH" in done.stderr


def test_subnormals_survive_the_import():
    """-ffast-math would link a constructor that flushes them in the whole process."""
    code = "import csoftmax, sys; sys.exit(float.fromhex('0x1p-1030') * 0.5 == 0)"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=120)


def test_cuda_sources_are_whole():
    """Every header that the CUDA kernels include is on the compiler's include path."""
    from csoftmax._cuda import compiler

    folder, core = compiler.FOLDER, compiler.find_core_headers()
    left, seen = list(folder.glob("*.cu")), set()
    assert len(left) == 8
    while left:
        path = left.pop()
        if path in seen:
            continue
        seen.add(path)
        for name in re.findall(r'^#include "(.+)"', path.read_text(), re.M):
            found = [p for p in (path.parent / name, folder / name, core / name) if p.is_file()]
            assert found, f"{path.name} includes {name}"
            left.append(found[0].resolve())
    assert len(seen) >= 12
