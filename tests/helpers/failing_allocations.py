"""A preloaded library that fails the n-th posix_memalign, calloc or malloc of the core, and the loop over n."""

import ctypes

import numpy as np

# posix_memalign is only used by the core; malloc and calloc are everyone's, so only those that return into its library
# count, and OpenMP's do not.
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
    int ours = dladdr(caller, &info) && info.dli_fname && strstr(info.dli_fname, "/libcsoftmax.so");
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


def every_failure(compute, what, most=200):
    """Fail each allocation of compute() in turn, until none is left to fail; returns how many there were.

    Every failure must be a MemoryError that leaks nothing, and the next call right.
    """
    shim = ctypes.CDLL(None)

    def result():
        got = compute()
        return [np.asarray(a).tobytes() for a in (got if isinstance(got, tuple) else (got,))]

    expected = result()
    for n in range(1, most):
        shim.shim_arm(n)
        try:
            got = result()
        except MemoryError:
            assert shim.shim_fails() >= 1, (what, n, "MemoryError without a failure")
        else:
            assert shim.shim_fails() == 0, (what, n, "failure without MemoryError")
            assert got == expected, (what, n)
            return n - 1
        finally:
            leaked = shim.shim_held()
            shim.shim_arm(0)
            assert leaked == 0, (what, n, f"{leaked} allocations not freed")
        assert result() == expected, (what, n, "after a failure")
    raise AssertionError(f"{what}: never came through")
