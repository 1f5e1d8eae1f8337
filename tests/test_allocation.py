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
static int refuse(void) {
    if (__atomic_add_fetch(&calls, 1, __ATOMIC_SEQ_CST) != countdown) return 0;
    fails++;
    return 1;
}
/* what the core holds */
static void *held[1024];
static int lost;
static void *hold(void *p) {
    for (int i = 0; i < 1024; i++) {
        void *empty = NULL;
        if (__atomic_compare_exchange_n(&held[i], &empty, p, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) return p;
    }
    lost = 1024;
    return p;
}
int shim_held(void) {
    int count = lost;
    for (int i = 0; i < 1024; i++) count += held[i] != NULL;
    return count;
}
extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);
#define OURS (countdown && from_the_core(__builtin_return_address(0)))
void *malloc(size_t n) { return OURS ? refuse() ? NULL : hold(__libc_malloc(n)) : __libc_malloc(n); }
void *calloc(size_t n, size_t m) { return OURS ? refuse() ? NULL : hold(__libc_calloc(n, m)) : __libc_calloc(n, m); }
int posix_memalign(void **p, size_t align, size_t n) {
    int ours = OURS;
    if (ours && refuse()) return ENOMEM;
    *p = __libc_memalign(align, n);
    if (ours) hold(*p);
    return *p ? 0 : ENOMEM;
}
void free(void *p) {
    if (countdown && p)
        for (int i = 0; i < 1024; i++) {
            void *same = p;
            if (__atomic_compare_exchange_n(&held[i], &same, NULL, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) break;
        }
    __libc_free(p);
}
"""

CODE = r"""
import ctypes
import numpy as np, csoftmax
from csoftmax import _cpu
from ops import OPS
shim = ctypes.CDLL(None)
_cpu.set_thread_limit(7)
shapes = [((300, 60), 0), ((5, 3, 60), 1), ((64, 1000), 1), ((3, 9000), 1), ((9000, 3), 0)]
shapes += [((1, 200_000), 1), ((2, 50000), 1)]
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
                        leaked = shim.shim_held()
                        shim.shim_arm(0)
                        assert leaked == 0, (op.name, name, shape, options, n, f"{leaked} allocations not freed")
                    assert op.function()(*arrays, axis=axis, **options).tobytes() == expected, "after a failure"
                else:
                    raise AssertionError("never came through")
                most = max(most, n)
print("refused", refused, "most", most)

print("done")
"""


def test_every_failing_allocation(c_library):
    done = run_python(CODE, LD_PRELOAD=str(c_library(SHIM, "shim")), timeout=300)
    assert done.stdout.split()[-1] == "done", done.stdout
    refused, most = int(done.stdout.split()[1]), int(done.stdout.split()[3])
    assert refused > 100, "the shim does not work"
    assert most >= 8, "several allocations in one call were to fail in turn"
