"""Runs `python -m csoftmax` with ONNX Runtime limited to AVX2, for which it has no setting.

    python asv_bench/onnxruntime_avx2.py bench --isa avx2 --peers onnxruntime --shapes 128x1000,64x32000

ONNX Runtime executes `cpuid` to find out what the CPU can do.  Before its first session, the `cpuid` instructions in
its library (found with objdump) are replaced in memory by an invalid instruction, and a signal handler answers in their
place, with the AVX-512 bits cleared.  Linux on x86-64, with objdump and a C compiler.
"""

import ctypes
import os
import re
import runpy
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

HANDLER = r"""
#define _GNU_SOURCE
#include <cpuid.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

static void answer_cpuid(int number, siginfo_t *info, void *context) {
    greg_t *g = ((ucontext_t *)context)->uc_mcontext.gregs;
    const unsigned char *at = (const unsigned char *)g[REG_RIP];
    unsigned a, b, c, d, leaf = (unsigned)g[REG_RAX], subleaf = (unsigned)g[REG_RCX];
    if (at[0] != 0x0f || at[1] != 0x0b) {
        signal(number, SIG_DFL);
        return;
    }
    __cpuid_count(leaf, subleaf, a, b, c, d);
    if (leaf == 7 && subleaf == 0) {
        b &= ~(1u << 16 | 1u << 17 | 1u << 21 | 1u << 28 | 1u << 30 | 1u << 31); /* F DQ IFMA CD BW VL */
        c &= ~(1u << 1 | 1u << 6 | 1u << 11 | 1u << 12 | 1u << 14);
        d &= ~(1u << 8 | 1u << 22 | 1u << 23 | 1u << 24 | 1u << 25); /* AMX, FP16 */
    }
    if (leaf == 7 && subleaf == 1) a &= ~(1u << 4 | 1u << 5); /* AVX-VNNI, BF16 */
    g[REG_RAX] = a, g[REG_RBX] = b, g[REG_RCX] = c, g[REG_RDX] = d;
    g[REG_RIP] += 2;
    (void)info;
}
int replace_cpuid(uintptr_t base, const size_t *places, int count) {
    struct sigaction action;
    int done = 0;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = answer_cpuid;
    action.sa_flags = SA_SIGINFO;
    sigaction(SIGILL, &action, NULL);
    for (int i = 0; i < count; i++) {
        unsigned char *at = (unsigned char *)(base + places[i]);
        void *page = (void *)((uintptr_t)at & ~(uintptr_t)4095);
        if (at[0] != 0x0f || at[1] != 0xa2 || mprotect(page, 8192, PROT_READ | PROT_WRITE | PROT_EXEC)) continue;
        at[1] = 0x0b;
        mprotect(page, 8192, PROT_READ | PROT_EXEC);
        done++;
    }
    return done;
}
"""


def limit_to_avx2():
    """Replace the instructions; returns how many."""
    (library,) = (Path(find_spec("onnxruntime").origin).parent / "capi").glob("onnxruntime_pybind11_state*.so")
    code = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", library], capture_output=True, text=True, check=True
    ).stdout
    places = [int(at, 16) for at in re.findall(r"^ *([0-9a-f]+):\tcpuid", code, re.M)]
    with tempfile.TemporaryDirectory() as folder:
        source, handler = Path(folder, "handler.c"), Path(folder, "handler.so")
        source.write_text(HANDLER)
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", source, "-o", handler], check=True)
        replace = ctypes.CDLL(str(handler)).replace_cpuid
    ctypes.CDLL(str(library), mode=os.RTLD_NOW)
    maps = Path("/proc/self/maps").read_text().splitlines()
    base = next(int(line.split("-")[0], 16) for line in maps if line.endswith(str(library)))
    return replace(ctypes.c_size_t(base), (ctypes.c_size_t * len(places))(*places), len(places))


if __name__ == "__main__":
    # set beforehand: bench --isa would otherwise restart in a new process, which is not limited
    os.environ["CSOFTMAX_ISA"] = "avx2"
    print(f"ONNX Runtime: {limit_to_avx2()} cpuid instructions replaced", file=sys.stderr)
    runpy.run_module("csoftmax", run_name="__main__", alter_sys=True)
