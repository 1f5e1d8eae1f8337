"""Every failed allocation of the core is a MemoryError that leaks nothing; the next call is right.

A preloaded library fails the n-th posix_memalign, calloc or malloc that the core asks for, n = 1, 2, 3 ...
"""

import sys

import pytest
from helpers import run_python

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD")

# posix_memalign is only used by the core; malloc and calloc are everyone's, so only those that return into the
# extension count, and OpenMP's do not.
SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
static int countdown, calls, fails;
static __thread int inside;
void shim_arm(int n) { countdown = n; calls = fails = 0; }
int shim_calls(void) { return calls; }
int shim_fails(void) { return fails; }
static int from_the_core(void *caller) {
    Dl_info info;
    if (inside) return 0;
    inside = 1;
    int ours = dladdr(caller, &info) && info.dli_fname && strstr(info.dli_fname, "csoftmax/_cpu");
    inside = 0;
    return ours;
}
static int refuse(void *caller) {
    if (!countdown || !from_the_core(caller)) return 0;
    if (__atomic_add_fetch(&calls, 1, __ATOMIC_SEQ_CST) != countdown) return 0;
    fails++;
    return 1;
}
extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t);
void *malloc(size_t n) { return refuse(__builtin_return_address(0)) ? NULL : __libc_malloc(n); }
void *calloc(size_t n, size_t m) { return refuse(__builtin_return_address(0)) ? NULL : __libc_calloc(n, m); }
int posix_memalign(void **p, size_t align, size_t n) {
    if (refuse(__builtin_return_address(0))) return ENOMEM;
    extern void *__libc_memalign(size_t, size_t);
    *p = __libc_memalign(align, n);
    return *p ? 0 : ENOMEM;
}
"""

CODE = r"""
import ctypes, resource
import numpy as np, csoftmax
from csoftmax import _cpu
from ops import OPS
shim = ctypes.CDLL(None)
_cpu.set_thread_limit(7)
shapes = [((300, 60), 0), ((5, 3, 60), 1), ((64, 1000), 1), ((3, 9000), 1), ((9000, 3), 0), ((1, 1 << 20), 1), ((2, 50000), 1)]
# once undisturbed, so that OpenMP and Python have allocated what they keep
most, refused = 0, 0
for op in OPS:
    for name in ("float32", "float16"):
        for shape, axis in shapes:
            arrays = op.make(shape, name)
            if op.inputs == 2:
                arrays = (arrays[0], np.abs(arrays[1]))
            variants = [{}, {"num_threads": 7}]
            if op.inputs == 1:
                variants += [{"temperature": 0.0, "num_threads": 7}, {"where": True, "num_threads": 2}]
            for options in variants:
                expected = op.function()(*arrays, axis=axis, **options).tobytes()
                for n in range(1, 40):
                    shim.shim_arm(n)
                    try:
                        result = op.function()(*arrays, axis=axis, **options)
                    except MemoryError:
                        assert shim.shim_fails() == 1, (op.name, shape, n, "MemoryError without a failure")
                        refused += 1
                    else:
                        assert shim.shim_fails() == 0, (op.name, name, shape, options, n, "failure without MemoryError")
                        assert result.tobytes() == expected
                        break
                    finally:
                        shim.shim_arm(0)
                    assert op.function()(*arrays, axis=axis, **options).tobytes() == expected, "after a failure"
                else:
                    raise AssertionError("never came through")
                most = max(most, n)
print("refused", refused, "most", most)

# no leak: the same failure many times
x = np.zeros((1, 1 << 20), np.float32)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for i in range(3000):
    shim.shim_arm(1 + i % 8)
    try:
        csoftmax.logsumexp(x[:, :60000], num_threads=7, where=True)
    except MemoryError:
        pass
    shim.shim_arm(0)
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
assert grown < 20_000, f"{grown} KiB"
print("done")
"""


def test_every_failing_allocation(c_library):
    done = run_python(CODE, LD_PRELOAD=str(c_library(SHIM, "shim")), timeout=300)
    assert done.stdout.split()[-1] == "done", done.stdout
    refused, most = int(done.stdout.split()[1]), int(done.stdout.split()[3])
    assert refused > 100, "the shim does not work"
    assert most >= 8, "several allocations in one call were to fail in turn"
