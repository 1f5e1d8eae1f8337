"""The installed package used from C, CMake, Cython, Numba and SciPy: nothing is missing, and the bits are the same."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest

import csoftmax

EMBED = Path(__file__).parent / "embed"
CC = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
pytestmark = [
    pytest.mark.build,
    pytest.mark.skipif(sys.platform == "win32" or CC is None, reason="needs a Unix C compiler"),
]


def run(*command, cwd):
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def query(option):
    """The output of `python -m csoftmax OPTION`, run outside the checkout."""
    return run(sys.executable, "-m", "csoftmax", option, cwd=Path(csoftmax.__file__).parent.parent).strip()


STRICT = ["-std=c11", "-O1", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]


def by_options(folder):
    """cc and the options of the command line."""
    flags = [*query("--cflags").split(), *query("--libs").split()]
    run(*CC.split(), *STRICT, EMBED / "embed.c", *flags, "-o", folder / "embed", cwd=folder)


def by_pkg_config(folder):
    """cc and pkg-config."""
    where = f"PKG_CONFIG_PATH={query('--pkgconfigdir')}"
    flags = run("env", where, "pkg-config", "--cflags", "--libs", "csoftmax >= 0.1", cwd=folder).split()
    run(*CC.split(), *STRICT, EMBED / "embed.c", *flags, "-o", folder / "embed", cwd=folder)


def by_cmake(folder):
    """A CMake project."""
    run("cmake", "-S", EMBED, "-B", folder, f"-Dcsoftmax_DIR={query('--cmakedir')}", cwd=folder)
    run("cmake", "--build", folder, cwd=folder)


@pytest.fixture(scope="module", params=[by_options, by_pkg_config, by_cmake], ids=lambda way: way.__name__)
def program(request, tmp_path_factory):
    """The C program, built against the installed package."""
    needed = {by_pkg_config: "pkg-config", by_cmake: "cmake"}.get(request.param)
    if needed and shutil.which(needed) is None:
        pytest.skip(f"{needed} is not installed")
    folder = tmp_path_factory.mktemp("embed-c")
    request.param(folder)
    return folder / "embed"


@pytest.mark.parametrize(("rows", "n"), [(1, 1), (3, 10), (70, 1000), (2, 5000)])
def test_c(program, rows, n):
    first, *lines = run(program, rows, n, cwd=program.parent).split("\n")[:-1]
    isa, version = first.split()
    assert isa in csoftmax.show_config("dicts")["isa"]["available"]
    assert version == csoftmax.show_config("dicts")["abi"]
    x = (np.arange(rows * n) * 7919 % 2003 / 64).astype(np.float32).reshape(rows, n)
    bits = np.array([int(line, 16) for line in lines], dtype=np.uint32)
    np.testing.assert_array_equal(bits[: rows * n].reshape(rows, n), csoftmax.softmax(x).view(np.uint32))
    np.testing.assert_array_equal(bits[rows * n :], csoftmax.logsumexp(x).view(np.uint32))


@pytest.mark.parametrize("header", ["csoftmax.h", "csoftmax_api.h"])
@pytest.mark.parametrize("language", ["c++", "c"])
def test_header_alone(tmp_path, language, header):
    """Each header compiles alone, as C99 and as C++, without a warning."""
    standard = "-std=c++11" if language == "c++" else "-std=c99"
    if language == "c++" and shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
    (tmp_path / "only.c").write_text(f"#include <{header}>\nint main(void) {{ return CSM_OK; }}\n")
    compiler = ["c++"] if language == "c++" else CC.split()
    flags = ["-x", language, standard, "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only"]
    run(*compiler, *flags, f"-I{csoftmax.get_include()}", "only.c", cwd=tmp_path)


@pytest.fixture(scope="module")
def extension(tmp_path_factory):
    """The folder of the Cython package, built against the installed package."""
    folder = tmp_path_factory.mktemp("embed-cython")
    for name in ("embed.pyx", "unlinked.pyx", "capsule.c", "setup.py"):
        shutil.copy(EMBED / name, folder)
    run(sys.executable, "setup.py", "-q", "build_ext", "--inplace", cwd=folder)
    assert list(folder.glob(f"embed*{sysconfig.get_config_var('EXT_SUFFIX')}"))
    return folder


def test_cross_entropy_from_cython(extension, monkeypatch):
    monkeypatch.syspath_prepend(extension)
    import embed

    x = np.random.default_rng(0).standard_normal((6, 50))
    labels = np.arange(6, dtype=np.int64)
    grad = np.zeros_like(x)
    expected = csoftmax.cross_entropy_with_grad(x, labels)
    assert embed.cross_entropy(x, labels, grad) == expected.loss
    np.testing.assert_array_equal(grad, expected.grad)
    labels[4] = 50
    with pytest.raises(IndexError, match="4"):
        embed.cross_entropy(x, labels, grad)


def test_cython(extension, monkeypatch):
    monkeypatch.syspath_prepend(extension)
    import embed

    x = (np.arange(7000) * 7919 % 2003 / 64).astype(np.float32).reshape(7, 1000)
    y = np.zeros((2, *x.shape), np.float32)
    assert embed.isa() in csoftmax.show_config("dicts")["isa"]["available"]
    for threads in (1, 2):
        assert embed.softmax(x, y[0], 0.7, threads) == 0
        np.testing.assert_array_equal(y[0].view(np.uint32), csoftmax.softmax(x, temperature=0.7).view(np.uint32))
    assert embed.softmax(x[::-1, ::3], y[1, :, :334], 1.0, 1) == 0
    np.testing.assert_array_equal(y[1, :, :334], csoftmax.softmax(x[::-1, ::3]))
    assert embed.softmax(x, y[0], -1.0, 1) == 4
    row = x[0].astype(np.float64)
    assert embed.logsumexp(row) == csoftmax.logsumexp(row)


def test_cython_without_linking(extension, monkeypatch):
    monkeypatch.syspath_prepend(extension)
    import unlinked

    x = (np.arange(7000) * 7919 % 2003 / 64).astype(np.float32).reshape(7, 1000)
    for workers in (1, 2, 3):
        y = np.zeros_like(x)
        assert unlinked.softmax(x, y, workers) == 0
        np.testing.assert_array_equal(y.view(np.uint32), csoftmax.softmax(x).view(np.uint32))


def test_capsule(extension, monkeypatch):
    monkeypatch.syspath_prepend(extension)
    import capsule

    x = np.random.default_rng(0).standard_normal(50)
    assert capsule.logsumexp(x) == csoftmax.logsumexp(x)


def test_capsule_of_another_version(extension):
    """A module that was compiled for a newer csoftmax, or for another major version, is rejected."""
    code = """if True:
        import ctypes, sys
        import csoftmax
        pointer = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        there = ctypes.cast(pointer(csoftmax._C_API, b"csoftmax._C_API"), ctypes.POINTER(ctypes.c_int))
        table = (ctypes.c_int * 4)(*there[:4])
        which = int(sys.argv[1])
        table[which] += 1 if which == 0 else -8  # the major version; the size
        csoftmax._C_API = new(ctypes.addressof(table), b"csoftmax._C_API", None)
        try:
            import capsule
        except ImportError as error:
            assert "C ABI" in str(error), error
        else:
            sys.exit("the module was accepted")
    """
    for which in ("0", "2"):
        run("env", f"PYTHONPATH={extension}", sys.executable, "-c", code, which, cwd=extension)


ROWS = {"f32": np.float32, "f64": np.float64, "f16": np.float16, "bf16": None}


@pytest.mark.parametrize("suffix", ROWS)
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_rows(name, suffix):
    """Every function for rows: a range in the middle, gaps between rows, a temperature."""
    import ctypes

    import csoftmax.cpu

    dtype = ROWS[suffix] or pytest.importorskip("ml_dtypes", reason="the test extra has it").bfloat16
    capsule = csoftmax.cpu.__pyx_capi__[f"{name}_rows_{suffix}"]
    signature, pointer = ctypes.pythonapi.PyCapsule_GetName, ctypes.pythonapi.PyCapsule_GetPointer
    signature.restype, signature.argtypes = ctypes.c_char_p, [ctypes.py_object]
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    size = ctypes.c_ssize_t
    kind = ctypes.CFUNCTYPE(
        ctypes.c_int, ctypes.c_void_p, size, ctypes.c_void_p, size, size, size, size, ctypes.c_double
    )
    function = kind(pointer(capsule, signature(capsule)))
    x = (4 * np.random.default_rng(0).standard_normal((9, 120))).astype(dtype)
    keeps = name != "logsumexp"
    y = np.zeros((9, 110) if keeps else (9, 3), dtype)
    assert function(x.ctypes.data, 120, y.ctypes.data, y.shape[1], 100, 2, 7, 0.7) == 0
    expected = getattr(csoftmax, name)(x[2:7, :100], temperature=0.7)
    got = y[2:7, :100] if keeps else y[2:7, 0]
    bits = f"u{got.itemsize}"
    np.testing.assert_array_equal(np.ascontiguousarray(got).view(bits), np.ascontiguousarray(expected).view(bits))
    y[2:7, : 100 if keeps else 1] = 0
    assert not y.any()
    assert function(x.ctypes.data, 120, y.ctypes.data, 110, 100, 3, 2, 0.7) == 3  # CSM_BAD_SHAPE


def test_numba():
    """A jitted function calls softmax_rows_f64 by its address, from a parallel loop."""
    numba = pytest.importorskip("numba", reason="the gate installs it")
    import ctypes

    from numba.extending import get_cython_function_address

    import csoftmax.cpu

    size, real = ctypes.c_ssize_t, ctypes.c_double
    kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, size, ctypes.c_void_p, size, size, size, size, real)
    softmax_rows = kind(get_cython_function_address("csoftmax.cpu", "softmax_rows_f64"))

    @numba.njit(parallel=True)
    def softmax(x, y, parts):
        rows, n = x.shape
        for i in numba.prange(parts):
            softmax_rows(x.ctypes.data, n, y.ctypes.data, n, n, rows * i // parts, rows * (i + 1) // parts, 1.0)

    x = np.random.default_rng(0).standard_normal((13, 300))
    y = np.zeros_like(x)
    softmax(x, y, 4)
    np.testing.assert_array_equal(y, csoftmax.softmax(x))


def test_scipy_low_level_callable():
    """The functions are filters for scipy.ndimage: along an axis, and as the soft maximum of a neighbourhood."""
    import ctypes

    ndimage = pytest.importorskip("scipy.ndimage", reason="the test extra has it")
    from scipy import LowLevelCallable

    import csoftmax.cpu

    x = np.random.default_rng(0).standard_normal((30, 40))
    line = LowLevelCallable.from_cython(csoftmax.cpu, "softmax_line")
    np.testing.assert_array_equal(ndimage.generic_filter1d(x, line, 1, axis=0), csoftmax.softmax(x, axis=0))
    temperature = ctypes.pointer(ctypes.c_double(0.25))
    window = LowLevelCallable.from_cython(csoftmax.cpu, "logsumexp_window", ctypes.cast(temperature, ctypes.c_void_p))
    soft = ndimage.generic_filter(x, window, size=3, mode="nearest")
    padded = np.pad(x, 1, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3)).reshape(30, 40, 9)
    np.testing.assert_array_equal(soft, csoftmax.logsumexp(windows, temperature=0.25))
