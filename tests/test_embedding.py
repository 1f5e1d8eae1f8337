"""The installed package from C and from Cython: header, static library and cpu.pxd suffice, the bits are the same."""

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
pytestmark = pytest.mark.skipif(sys.platform == "win32" or CC is None, reason="needs a C compiler of the Unix kind")


def run(*command, cwd):
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The C program, compiled against the installed package with every warning an error."""
    folder = tmp_path_factory.mktemp("embed-c")
    flags = ["-std=c11", "-O1", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    source = [EMBED / "embed.c", f"-I{csoftmax.get_include()}", csoftmax.get_library(), "-fopenmp", "-lm"]
    run(*CC.split(), *flags, *source, "-o", folder / "embed", cwd=folder)
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


@pytest.mark.parametrize("language", ["c++", "c"])
def test_header_alone(tmp_path, language):
    """The header compiles by itself, as C99 and as C++, without a warning."""
    standard = "-std=c++11" if language == "c++" else "-std=c99"
    if language == "c++" and shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
    (tmp_path / "only.c").write_text("#include <csoftmax.h>\nint main(void) { return CSM_OK; }\n")
    compiler = ["c++"] if language == "c++" else CC.split()
    flags = ["-x", language, standard, "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only"]
    run(*compiler, *flags, f"-I{csoftmax.get_include()}", "only.c", cwd=tmp_path)


@pytest.fixture(scope="module")
def extension(tmp_path_factory):
    """The folder of the Cython package, built against the installed package."""
    folder = tmp_path_factory.mktemp("embed-cython")
    for name in ("embed.pyx", "setup.py"):
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
