"""The CUDA backend: kernels compiled when they are first needed, launched through CuPy on its current stream.

CuPy is imported by the first call that needs it.  NVRTC compiles without flush-to-zero and without contraction, which
CuPy's own compilation would not do; machine code is kept in CuPy's cache folder.  Only run_sample synchronises (and,
where k is beyond 1024, run_topk with versions of CuPy whose argsort waits).

A launch rule (`Launch`, `launch_*`) chooses kernel, threads and shared memory from the length of a row and the
device alone: a row's bits do not depend on how many others there are.
"""

import functools
import hashlib
import math
import os
import sys
from pathlib import Path

import numpy as np

from .._cpu import binding

_HERE = Path(__file__).parent
BLOCK = 4096  # CSM_BLOCK of registry.h
BLOCK_BYTES = 72  # sizeof(csm_block)
SUFFIX = {binding.DTYPES[name]: suffix for name, suffix in binding.SUFFIXES.items()}
_GRID = 2**31 - 1

# What an operation's module is made of: file, inputs, bytes of a row's record, length up to which a team computes a row
# (float, double).  An operation is added by a row here.
_FORWARD, _BACKWARD = ("softmax.cu", 1, 112, (512, 256)), ("vjp.cu", 2, 88, (512, 256))
MODULES = {
    "softmax": _FORWARD,
    "log_softmax": _FORWARD,
    "logsumexp": _FORWARD,
    "softmax_vjp": _BACKWARD,
    "log_softmax_vjp": _BACKWARD,
    "cross_entropy": ("cross_entropy.cu", 1, 144, None),
    "topk": ("topk.cu", 1, 0, None),
    "entmax": ("entmax.cu", 1, 0, None),
    "sample": ("sample.cu", 1, 40, None),
}
_ROWS = ("teams", "whole", "blocks", "combine", "apply")
KERNELS = {
    "softmax.cu": _ROWS,
    "vjp.cu": _ROWS,
    "cross_entropy.cu": ("labels", "masses", "divide", "rows", "reduce"),
    "topk.cu": ("choose", "keys", "gather"),
    "entmax.cu": ("forward", "rows", "backward"),
    "sample.cu": ("sums", "min_sums", "draw", "chosen"),
}
_OP_NAMES = {number: name for name, number in binding.OPS.items()}
_SHARED_ROW = 624  # sizeof(shared_row) of cross_entropy.cu, and room for that of entmax.cu
_SORTED_BY_KERNEL = 1024  # most of a row that topk.cu sorts
_TRAIL = 528  # sizeof(trail) of sample.cu
_ENTMAX_PARTS = 4096, 2048, 1024  # of a row in shared memory; a gradient's is there whole where it can be
_ENTMAX_FEW = 512  # FEW of entmax.cu
_ELSEWHERE = 2**28  # bytes, for survivors of entmax that shared memory does not hold
_ITEMSIZES = {"f32": (4, 4), "f64": (8, 8), "f16": (2, 4), "bf16": (2, 4)}  # of storage, of the compute type


def core():
    """The folder with the core's headers: beside this file in an installed package, src_c in a checkout."""
    installed = _HERE / "core"
    return installed if installed.is_dir() else _HERE.parent.parent / "src_c"


class Unavailable(Exception):
    """Why CUDA cannot be used."""


def target(capability, supported):
    """What to compile for: the device's own compute capability, or, for devices newer than NVRTC, what they can run."""
    capability, supported = int(capability), sorted(map(int, supported))
    # machine code runs on later devices of its generation, PTX on all later ones
    near = [arch for arch in supported if arch // 10 == capability // 10 and arch <= capability]
    if near:
        return f"sm_{near[-1]}"
    earlier = [arch for arch in supported if arch <= capability]
    if not earlier:
        raise Unavailable(
            f"NVRTC compiles for compute capability {supported[0] / 10} and later, and the device has "
            f"{capability / 10}; an earlier CUDA is needed"
        )
    return f"compute_{earlier[-1]}"


def options(op, suffix, arch):
    """What NVRTC is given to compile operation `op` for storage type `suffix`."""
    return (
        f"-arch={arch}",
        "-std=c++17",
        "-default-device",  # the core's headers have no __device__
        "-fmad=false",  # the CPU's bits: a product and a sum are fused only where the source says so
        "-diag-suppress=177",  # functions of shared headers that a module does not use
        f"-DSTORAGE_{suffix}",
        f"-DOP=CSM_OP_{op}",
        f"-DROW_BYTES={MODULES[op][2]}",
        f"-DBLOCK_BYTES={BLOCK_BYTES}",
        f"-DSHARED_BYTES={_SHARED_ROW}",
        f"-DTRAIL_BYTES={_TRAIL}",
        f"-I{_HERE}",
        f"-I{core()}",
    )


def compile(op, suffix, arch):
    """Machine code of an operation for "sm_90" (for "compute_90" PTX), its PTX, and the compiler's log."""
    from cupy.cuda import nvrtc

    source = (_HERE / MODULES[op][0]).read_text()
    program = nvrtc.createProgram(source, MODULES[op][0], (), ())
    try:
        nvrtc.compileProgram(program, (*options(op, suffix, arch), "--ptxas-options=-v"))
        ptx, log = nvrtc.getPTX(program), nvrtc.getProgramLog(program)
        # CuPy leaves out the last byte
        return ptx if arch.startswith("compute") else nvrtc.getCUBIN(program) + b"\0", ptx, log
    except nvrtc.NVRTCError as error:
        log = nvrtc.getProgramLog(program)
        raise RuntimeError(f"NVRTC cannot compile {op} for {arch}: {error}\n{log}") from None
    finally:
        nvrtc.destroyProgram(program)


def _machine_code(op, suffix, arch):
    """The file with an operation's machine code, compiled if it is not there yet."""
    import tempfile

    from cupy.cuda import nvrtc

    flags = [option for option in options(op, suffix, arch) if not option.startswith("-I")]
    parts = [repr((op, suffix, arch, flags, nvrtc.getVersion()))]
    for folder in (_HERE, core()):
        parts += [f.read_text() for f in sorted(folder.rglob("*")) if f.suffix in (".h", ".cuh", ".cu")]
    tag = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
    name = f"csoftmax-{tag}.{'ptx' if arch.startswith('compute') else 'cubin'}"
    folder = Path(os.environ.get("CUPY_CACHE_DIR") or Path.home() / ".cupy" / "kernel_cache")
    file = folder / name
    if not file.exists():
        code, _, _ = compile(op, suffix, arch)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=folder)
        except OSError:  # a home that cannot be written
            file = Path(tempfile.mkdtemp()) / name
            handle, name = tempfile.mkstemp(dir=file.parent)
        with os.fdopen(handle, "wb") as f:
            f.write(code)
        os.replace(name, file)  # whole, or not at all
    return file


@functools.cache
def _module(op, suffix, device):
    import cupy

    return cupy.RawModule(path=str(_machine_code(op, suffix, _architecture(device))))


@functools.cache
def _kernel(op, suffix, device, name):
    """A kernel that may use all the shared memory that a block can have."""
    kernel = _module(op, suffix, device).get_function(name)
    kernel.max_dynamic_shared_size_bytes = _shared_limit(device)
    return kernel


@functools.cache
def _shared_limit(device):
    """Bytes of shared memory that a block may ask for."""
    import cupy

    return cupy.cuda.Device(device).attributes["MaxSharedMemoryPerBlockOptin"]


@functools.lru_cache(1024)
def _scales(dtype, temperature):
    return binding.scales(dtype, temperature)


def room(count, itemsize):
    """Elements of shared memory for `count` of any alignment: `room` of common.cuh."""
    vector = 16 // itemsize
    return (count + 2 * vector - 1) // vector * vector


def _most_warps(wide):
    return 14 if wide == 4 else 7  # MOST_WARPS of common.cuh


class Launch:
    """The launch rule of one operation, storage type and row length."""

    def __init__(self, op, dtype, n, limit):
        _, inputs, self.row_bytes, teams = MODULES[op]
        itemsize, wide = _ITEMSIZES[SUFFIX[dtype]]
        self.blocks, self.each, self.staged = -(-n // BLOCK), 1, 0
        most = _most_warps(wide)
        apart = 32 if wide == 8 and op in ("log_softmax", "logsumexp") else 0  # SEGMENT of forward.cuh
        block = (room(min(n, BLOCK), itemsize) * inputs + apart) * wide
        whole = -(-self.blocks * (BLOCK_BYTES + (12 if inputs == 1 else 0)) // 16) * 16 + self.blocks * block
        if n <= teams[wide == 8]:
            lines = 4 if wide == 8 and inputs == 1 else 2  # teams of a warp
            self.each = max(lines, min(32, (8192 // wide) // (n * inputs) // lines * lines))
            self.kernel, self.warps = "teams", 4
            self.shared = 4 * room(self.each * n, itemsize) * wide * inputs
        elif self.blocks <= most and whole <= limit:
            self.kernel, self.warps, self.shared = "whole", self.blocks, whole
        else:
            if inputs == 2:
                block = room(1024, itemsize) * wide * inputs  # SEGMENT of vjp.cu
            self.kernel, self.warps, self.shared = "blocks", 1, block
            staged = self.blocks * BLOCK_BYTES
            self.staged = staged if staged <= limit else 0

    def grid(self, rows):
        """Blocks of threads for so many rows."""
        units = {"teams": -(-rows // (4 * self.each)), "whole": rows, "blocks": rows * self.blocks}
        return (min(units[self.kernel], _GRID),)


_launch = functools.lru_cache(1024)(Launch)


def _contiguous(a, b, where, y):
    """What the kernels take: inputs, mask, and where the result goes, which is y if that is contiguous."""
    import cupy

    inputs = [cupy.ascontiguousarray(x) for x in ((a,) if b is None else (a, b))]
    mask = None if where is None else cupy.ascontiguousarray(where)
    return inputs, mask, y if y.flags.c_contiguous else cupy.empty(y.shape, y.dtype)


def run(op, dtype, a, b, y, where, temperature):
    """Run an operation on CuPy arrays whose last axis is the softmax axis (y of a log-sum-exp has none).

    The kernels need contiguous rows: any other layout is copied, and so is a mask that is broadcast.
    """
    import cupy

    name, n = _OP_NAMES[op], a.shape[-1]
    rows = math.prod(a.shape[:-1])
    if y.size == 0:
        return
    if n == 0:  # the sum of nothing
        y[...] = 0xFF80 if y.dtype == np.uint16 else -math.inf  # bfloat16 comes as its bits
        return
    device = a.device.id
    with cupy.cuda.Device(device):
        inputs, mask, to = _contiguous(a, b, where, y)
        rule = _launch(name, dtype, n, _shared_limit(device))
        scales, rows_, grid = _scales(dtype, temperature), np.int64(rows), rule.grid(rows)

        def launch(kernel, grid, threads, shared, *arguments):
            _kernel(name, SUFFIX[dtype], device, kernel)(grid, (threads,), arguments, shared_mem=shared)

        if rule.kernel == "teams":
            launch("teams", grid, 128, rule.shared, *inputs, mask, to, rows_, np.int32(n), np.int32(rule.each), scales)
        elif rule.kernel == "whole":
            launch("whole", grid, 32 * rule.warps, rule.shared, *inputs, mask, to, rows_, np.int32(n), scales)
        else:
            blocks = cupy.empty(rows * rule.blocks * BLOCK_BYTES, np.uint8)
            known = cupy.empty(rows * rule.row_bytes, np.uint8)
            size = rows_, np.int64(n)
            if b is None:
                for again in (0, 1):  # the second time for rows that exp does not take as they are
                    again, staged = np.int32(again), np.int32(rule.staged > 0)
                    more = again, staged, scales
                    launch("blocks", grid, 32, rule.shared, *inputs, mask, blocks, known, *size, again, scales)
                    launch("combine", (min(rows, _GRID),), 128, rule.staged, blocks, known, to, *size, *more)
                if name != "logsumexp":
                    launch("apply", grid, 32, rule.shared, *inputs, mask, to, blocks, known, *size, scales)
            else:
                launch("blocks", grid, 32, rule.shared, *inputs, mask, blocks, *size)
                launch("combine", (min(-(-rows // 128), _GRID),), 128, 0, blocks, known, *size)
                launch("apply", grid, 32, rule.shared, *inputs, mask, to, known, *size, scales)
        if to is not y:
            y[...] = to


@functools.lru_cache(1024)
def launch_loss(dtype, n, limit):
    """Launch rule of cross-entropy: warps, bytes of shared memory, bytes elsewhere for what is known of blocks."""
    itemsize, wide = _ITEMSIZES[SUFFIX[dtype]]
    count = -(-n // BLOCK)
    stats = count * BLOCK_BYTES
    elsewhere = stats if stats > 8192 else 0
    for warps in range(max(1, min(count, _most_warps(wide))), 0, -1):
        head = _SHARED_ROW + 16 * warps + (0 if elsewhere else stats)
        shared = -(-head // 16) * 16 + warps * room(min(n, BLOCK), itemsize) * wide
        if shared <= limit:
            break
    return warps, shared, elsewhere


def launch_of_loss(dtype, device, kernel, grid, threads, shared, *arguments):
    run = _kernel("cross_entropy", SUFFIX[dtype], device, kernel)
    run((max(1, min(grid, _GRID)),), (threads,), arguments, shared_mem=shared)


def check_target(dtype, n, labels, ignore, soft, weight=None, sample_weight=None):
    """Labels as int64, negative where they are no class, or None; masses of soft labels, NaN where one is bad, or None;
    what each row adds to a mean's divisor."""
    import cupy

    given = labels if soft is None else soft
    count, device, checked, masses = len(given), given.device.id, None, None
    terms, size = cupy.empty(count, np.float64), (np.int64(count), np.int64(n))
    if labels is not None:
        checked = cupy.empty(count, np.int64)
        kind = np.int32(binding.LABELS[labels.dtype.name])
        ignored = np.array(ignore or 0, np.uint64).astype(np.int64)[()]
        arguments = labels, checked, terms, weight, sample_weight, *size, kind, np.int32(ignore is not None), ignored
        launch_of_loss(dtype, device, "labels", -(-count // 128), 128, 0, *arguments)
    else:
        masses = cupy.empty(count, np.float64)
        arguments = soft, masses, terms, weight, sample_weight, *size
        launch_of_loss(dtype, device, "masses", -(-count // 4), 128, 0, *arguments)
    return checked, masses, terms


class Loss:
    """Cross-entropy of CuPy arrays in steps: labels and divisor, rows (all, or some at a time), the sum.

    Arrays are C-contiguous, their rows in one axis; soft, sample_weight, upstream and labels have one entry a row.
    """

    def __init__(
        self, dtype, n, labels, ignore, soft, weight, sample_weight, upstream, factors, *, reduction, gradient
    ):
        import cupy

        given = labels if soft is None else soft
        self.dtype, self.n, self.count, self.device = dtype, n, len(given), given.device.id
        self.soft, self.weight, self.sample_weight, self.upstream = soft, weight, sample_weight, upstream
        self.temperature = factors[0]
        call = binding.loss_call(n, *factors, soft is not None, gradient)
        self.losses = cupy.empty(self.count, np.float64)
        self.ready = cupy.empty(MODULES["cross_entropy"][2], np.uint8)
        self.labels, self.masses, terms = check_target(dtype, n, labels, ignore, soft, weight, sample_weight)
        mean = np.int32(reduction == binding.REDUCTIONS["mean"])
        self.launch("divide", 1, 1024, 0, terms, weight, self.ready, np.int64(self.count), mean, call)

    def launch(self, kernel, grid, threads, shared, *arguments):
        launch_of_loss(self.dtype, self.device, kernel, grid, threads, shared, *arguments)

    def rows(self, x, y, first=0, row_losses=None):
        """Losses of rows from `first` on, and their gradients to y; row_losses: all of them, in the compute type."""
        import cupy

        count = len(x)
        if not count:
            return
        part = slice(first, first + count)
        warps, shared, elsewhere = launch_loss(self.dtype, self.n, _shared_limit(self.device))
        grid = min(count, 1024) if elsewhere else count
        stats = cupy.empty(grid * elsewhere, np.uint8) if elsewhere else None
        by_row = self.soft, self.labels, self.masses, self.sample_weight, self.upstream, self.losses, row_losses
        soft, labels, masses, weights, upstream, losses, row_losses = (None if a is None else a[part] for a in by_row)
        arrays = x, soft, y, labels, masses, self.weight, weights, upstream, losses, row_losses, stats, self.ready
        size = np.int64(count), np.int64(self.n)
        self.launch("rows", grid, 32 * warps, shared, *arrays, *size, _scales(self.dtype, self.temperature))

    def reduce(self, loss):
        """The sum or the mean of the row losses, which are lost."""
        self.launch("reduce", 1, 1024, 0, self.losses, loss, self.ready, np.int64(self.count))


def run_loss(dtype, x, y, loss, labels, ignore, soft, weight, sample_weight, upstream, *factors_and_reduction):
    """Cross-entropy of CuPy arrays, as `binding.run_loss` has it; loss has the compute dtype, and nothing is returned.

    A row with a bad label gets NaN.
    """
    import cupy

    *factors, reduction = factors_and_reduction
    n, rows = x.shape[-1], math.prod(x.shape[:-1])

    def flat(a, *shape):
        return None if a is None else cupy.ascontiguousarray(a).reshape(*shape)

    with cupy.cuda.Device(x.device.id):
        to = y if y is None or y.flags.c_contiguous else cupy.empty(y.shape, y.dtype)
        by_row = weight, flat(sample_weight, rows), flat(upstream, rows)
        target = flat(labels, rows), ignore, flat(soft, rows, n)
        task = Loss(dtype, n, *target, *by_row, factors, reduction=reduction, gradient=y is not None)
        each = flat(loss, rows) if reduction == binding.REDUCTIONS["none"] else None
        task.rows(flat(x, rows, n), flat(to, rows, n), 0, each)
        if each is None:
            task.reduce(loss)
        if to is not y:
            y[...] = to


@functools.lru_cache(1024)
def launch_topk(dtype, n, k, limit):
    """Launch rule of a selection: elements of a piece, warps, bytes of shared memory."""
    itemsize, wide = _ITEMSIZES[SUFFIX[dtype]]
    rest = 16 * 40 + k * (wide + 4)  # counts of 16 warps; keys and places of the best
    most = min((limit - rest) // wide - 32 // itemsize, 65535) // 64 * 64
    usual = max(8192, 16 * k)  # several blocks of threads on a multiprocessor, and few candidates
    pieces = 1 if n <= min(most, 2 * usual) else -(-n // min(most, usual))
    piece = n if pieces == 1 else -(-n // (64 * pieces)) * 64  # cuts at whole sectors of memory
    warps = max(1, min(16, -(-piece // 512)))
    return piece, warps, -(-warps * 40 // 16) * 16 + room(piece, itemsize) * wide + k * (wide + 4)


def run_topk(dtype, x, values, indices, smallest, unsorted, normalize, temperature):
    """The k best of CuPy arrays along the last axis; values and indices may have strides."""
    import cupy

    n, k, rows = x.shape[-1], values.shape[-1], math.prod(x.shape[:-1])
    if values.size == 0:
        return
    device = x.device.id
    with cupy.cuda.Device(device):
        x = cupy.ascontiguousarray(x).reshape(rows, n)

        def launch(kernel, grid, threads, shared, *arguments):
            grid = (min(grid, _GRID),)
            _kernel("topk", SUFFIX[dtype], device, kernel)(grid, (threads,), arguments, shared_mem=shared)

        def gather(a):
            to, size = cupy.empty((rows, k), x.dtype), (np.int64(rows), np.int64(n), np.int64(k))
            launch("gather", -(-rows * k // 128), 128, 0, a, best, to, *size)
            return to

        if k > _SORTED_BY_KERNEL:
            wide = np.int64 if SUFFIX[dtype] == "f64" else np.int32
            keys = cupy.empty(x.shape, wide)
            launch("keys", -(-x.size // 128), 128, 0, x, keys, np.int64(x.size), np.int32(smallest))
            best = cupy.ascontiguousarray(cupy.argsort(keys, axis=-1)[:, :k].astype(np.int64, copy=False))
            found = gather(x)
        else:
            found, best, length = x, None, n
            while length > k or best is None:
                piece, warps, shared = launch_topk(dtype, length, k, _shared_limit(device))
                pieces = -(-length // piece)
                left = (pieces - 1) * k + min(k, length - (pieces - 1) * piece)
                to = cupy.empty((rows, left), x.dtype), cupy.empty((rows, left), np.int64)
                size = np.int64(rows), np.int64(length), np.int32(piece), np.int32(k)
                how = np.int32(smallest), np.int32(pieces == 1 and not unsorted)
                launch("choose", rows * pieces, 32 * warps, shared, found, best, *to, *size, *how)
                (found, best), length = to, left
        if normalize == binding.NORMALIZE["full"]:
            all_of = cupy.empty_like(x)
            run(binding.OPS["softmax"], dtype, x, None, all_of, None, temperature)
            found = gather(all_of)
        elif normalize == binding.NORMALIZE["topk"]:
            run(binding.OPS["softmax"], dtype, found, None, found, None, temperature)
        values[...] = found.reshape(values.shape)
        indices[...] = best.reshape(indices.shape)


@functools.lru_cache(1024)
def launch_sample(dtype, n):
    """Launch rule of draws, a warp for each block of a row or each row: bytes of shared memory."""
    itemsize, wide = _ITEMSIZES[SUFFIX[dtype]]
    return -(-_TRAIL // 16) * 16 + room(min(n, BLOCK), itemsize) * wide


def run_sample(dtype, x, uniform, temperature, top_k, top_p, min_p):
    """Draws from contiguous rows of a CuPy array, one for each uniform number, and whether rows have no mass.

    The uniform numbers and the parameters (one a row, or None) come from the CPU, and the answer for rows goes there:
    the call waits for the device.
    """
    import cupy

    rows, n = x.shape
    device, size = x.device.id, uniform.shape[1]
    temperature = np.ones(rows) if temperature is None else temperature
    top_k = np.full(rows, n, np.int64) if top_k is None else np.minimum(top_k, n)
    top_k = np.where(temperature == 0, np.int64(1), top_k)
    top_p = np.ones(rows) if top_p is None else top_p
    states, indices = np.empty(rows, np.int32), cupy.empty((rows, size), np.int64)
    selects = (top_k < n) | (top_p < 1)

    def launch(kernel, grid, of, *arguments):
        run_kernel = _kernel("sample", SUFFIX[dtype], device, kernel)
        run_kernel((min(grid, _GRID),), (32,), arguments, shared_mem=launch_sample(dtype, of))

    def draw(which, k):
        """From some rows: from all of their logits, or (k > 0) from the k largest."""
        part = x if len(which) == rows else x[cupy.asarray(which)]
        count, units = len(which), len(which) * -(-n // BLOCK)
        values, numbers = np.unique(temperature[which], return_inverse=True)
        scales = np.frombuffer(b"".join(_scales(dtype, float(t)).tobytes() for t in values), np.uint8)
        own = np.int64(count), np.int64(n)
        temperatures = cupy.asarray(scales), cupy.asarray(numbers.astype(np.int32))
        least = None if min_p is None or not np.any(min_p[which]) else cupy.asarray(min_p[which])
        numbers, parts = cupy.asarray(uniform[which]), None
        to, found = cupy.empty((count, size), np.int64), cupy.empty(count, np.int32)
        if not k or np.any(top_k[which] == n):
            first, parts = (cupy.empty(units * MODULES["sample"][2], np.uint8) for _ in range(2))
            launch("sums", units, n, part, None, first, *own, *temperatures)
            launch("sums", units, n, part, first, parts, *own, *temperatures)
        if k:
            chosen, at = cupy.empty((count, k), x.dtype), cupy.empty((count, k), np.int64)
            run_topk(dtype, part, chosen, at, False, False, binding.NORMALIZE[None], 1.0)
            filters = cupy.asarray(top_k[which]), cupy.asarray(top_p[which]), least
            sums = cupy.empty((count, -(-k // BLOCK)), np.float64)
            more = np.int64(k), np.int64(size), *temperatures
            launch("chosen", count, k, chosen, at, parts, *filters, numbers, sums, to, found, *own, *more)
        else:
            if least is not None:
                launch("min_sums", units, n, part, parts, first, least, *own, *temperatures)
                parts = first
            launch("draw", units, n, part, parts, least, numbers, to, found, *own, np.int64(size), *temperatures)
        if count == rows:
            indices[...] = to
        else:
            indices[cupy.asarray(which)] = to
        states[which] = found.get()

    with cupy.cuda.Device(device):
        if not selects.all():
            draw(np.flatnonzero(~selects), 0)
        which, k = np.flatnonzero(selects), _SORTED_BY_KERNEL
        while len(which):
            draw(which, min(int(np.max(top_k[which])), k))
            which, k = which[states[which] == 2], n
    return indices, states


@functools.lru_cache(1024)
def launch_entmax(dtype, n, gradient, limit):
    """Launch rule of entmax: elements in shared memory, warps, bytes of shared memory, survivors that lie elsewhere."""
    itemsize, wide = _ITEMSIZES[SUFFIX[dtype]]
    padded = -(-n // 8) * 8
    for part in (*[n] * (gradient or n <= _ENTMAX_PARTS[0]), *(most for most in _ENTMAX_PARTS if most < n)):
        arrays = (2 if gradient else 1) * room(part, itemsize) * wide
        shared = _SHARED_ROW + arrays + (16 * part if gradient else 40 * min(padded, _ENTMAX_FEW))
        if shared <= limit:
            break
    return part, max(1, min(8, -(-part // 512))), shared, 0 if gradient or n <= _ENTMAX_FEW else padded


def run_entmax(dtype, a, b, y, where, alpha):
    """alpha-entmax of CuPy arrays along the last axis, or its gradient, as `binding.run_entmax` has it."""
    import cupy

    n, rows = a.shape[-1], math.prod(a.shape[:-1])
    if y.size == 0:
        return
    device = a.device.id
    with cupy.cuda.Device(device):
        inputs, mask, to = _contiguous(a, b, where, y)
        e = binding.entmax(dtype, alpha)
        if b is None:
            _find_support("forward", dtype, device, rows, n, inputs[0], mask, to, last=(e,))
        else:
            part, warps, shared, _ = launch_entmax(dtype, n, True, _shared_limit(device))
            arguments = *inputs, mask, to, np.int64(rows), np.int64(n), np.int32(part), e
            kernel = _kernel("entmax", SUFFIX[dtype], device, "backward")
            kernel((min(rows, _GRID),), (32 * warps,), arguments, shared_mem=shared)
        if to is not y:
            y[...] = to


def _find_support(kernel, dtype, device, rows, n, *arrays, last):
    """Launch a kernel of entmax.cu that looks for survivors; `last` follows what all of them take."""
    import cupy

    part, warps, shared, each = launch_entmax(dtype, n, False, _shared_limit(device))
    grid = max(1, min(rows, _ELSEWHERE // (40 * each))) if each else min(rows, _GRID)
    elsewhere = cupy.empty(grid * each * 5, np.float64) if each else None
    size = np.int64(each), np.int64(rows), np.int64(n), np.int32(part)
    run_kernel = _kernel("entmax", SUFFIX[dtype], device, kernel)
    run_kernel((grid,), (32 * warps,), (*arrays, elsewhere, *size, *last), shared_mem=shared)


def run_entmax_loss(dtype, x, labels, soft, y, loss, alpha, reduction):
    """The loss of entmax of CuPy arrays, as `binding.run_entmax_loss` has it; loss has the compute dtype.

    A row with a bad label gets NaN.
    """
    import cupy

    n, rows = x.shape[-1], math.prod(x.shape[:-1])
    device, each = x.device.id, reduction == binding.REDUCTIONS["none"]
    mean = reduction == binding.REDUCTIONS["mean"]
    with cupy.cuda.Device(device):
        x = cupy.ascontiguousarray(x).reshape(rows, n)
        soft = None if soft is None else cupy.ascontiguousarray(soft).reshape(rows, n)
        labels = None if labels is None else cupy.ascontiguousarray(labels).reshape(rows)
        to = y if y is None or y.flags.c_contiguous else cupy.empty(y.shape, y.dtype)
        checked, masses, _ = check_target(dtype, n, labels, None, soft)
        losses, row_losses = cupy.empty(rows, np.float64), cupy.empty(rows, loss.dtype) if each else None
        arrays = x, soft, to, checked, masses, losses, row_losses
        last = np.float64(1 / rows if mean else 1.0), binding.entmax(dtype, alpha)
        _find_support("rows", dtype, device, rows, n, *arrays, last=last)
        if each:
            loss[...] = row_losses.reshape(loss.shape)
        else:
            ready = cupy.empty(MODULES["cross_entropy"][2], np.uint8)
            ones, call = cupy.full(rows, 1.0, np.float64), binding.loss_call(n, 1.0, 0.0, 0.0, 0.0, 0.0, False, False)
            size = np.int64(rows)
            launch_of_loss(dtype, device, "divide", 1, 1024, 0, ones, None, ready, size, np.int32(mean), call)
            launch_of_loss(dtype, device, "reduce", 1, 1024, 0, losses, loss, ready, size)
        if to is not y:
            y[...] = to


def _install():
    python = Path(sys.executable).name
    return f"{python} -m pip install 'csoftmax[cuda13x]' (CUDA 13) or 'csoftmax[cuda12x]' (CUDA 12)"


def require(device):
    """The CuPy module, device number `device` (None: the current one) checked, or Unavailable."""
    install = _install()
    try:
        import cupy
    except ImportError as error:
        raise Unavailable(f"CuPy cannot be imported ({error}); install it: {install}") from None
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:
        if "NoDevice" in str(error):
            raise Unavailable(f"there is no CUDA device (is CUDA_VISIBLE_DEVICES set?): {error}") from None
        raise Unavailable(
            f"CuPy finds no CUDA driver ({error}); a device of NVIDIA's and its driver are needed, and a CuPy for the "
            f"driver's version of CUDA: {install}"
        ) from None
    if count == 0:
        raise Unavailable("there is no CUDA device (is CUDA_VISIBLE_DEVICES set?)")
    if device is not None and device >= count:
        raise Unavailable(f"there is no device {device}; the devices are 0 to {count - 1}")
    _architecture(cupy.cuda.Device().id if device is None else device)
    return cupy


@functools.cache
def _architecture(device):
    """What modules for the device are compiled for; Unavailable without a compiler, or one that knows the device."""
    import cupy

    try:
        from cupy.cuda import nvrtc

        supported = nvrtc.getSupportedArchs()
    except Exception as error:  # CuPy loads NVRTC at the first call, and has several ways to say that it is not there
        raise Unavailable(f"CuPy cannot load NVRTC, the compiler ({error}); install it: {_install()}") from None
    return target(cupy.cuda.Device(device).compute_capability, supported)


def state():
    """Whether there is a CUDA device, and why not, or which."""
    try:
        cupy = require(None)
    except Unavailable as error:
        return {"available": False, "reason": str(error)}
    count = cupy.cuda.runtime.getDeviceCount()
    names = [cupy.cuda.runtime.getDeviceProperties(i)["name"].decode() for i in range(count)]
    return {"available": True, "reason": f"CuPy {cupy.__version__}; {', '.join(names)}"}
