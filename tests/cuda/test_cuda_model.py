"""The model of a CUDA block catches every bug that is planted here, and accepts correct kernels."""

import mmap
import shutil

import numpy as np
import pytest
from cuda_model import KernelError, Module, by_value

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="the model needs g++")

SOURCE = r"""
#define ALL 0xffffffffu
__device__ float warp_sum(float x) {
    for (int d = 16; d; d /= 2) x += __shfl_xor_sync(ALL, x, d);
    return x;
}
__global__ void sum_rows(const float *x, float *y, int n) { /* correct: a block for each row, 64 threads */
    __shared__ float parts[2];
    float sum = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) sum += x[blockIdx.x * n + i];
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x == 0) y[blockIdx.x] = parts[0] + parts[1];
}
__global__ void missing_barrier(const float *x, float *y) {
    __shared__ float parts[64];
    parts[threadIdx.x] = x[threadIdx.x];
    y[threadIdx.x] = parts[63 - threadIdx.x];
}
__global__ void missing_warp_barrier(const float *x, float *y) {
    __shared__ float parts[32];
    parts[threadIdx.x] = x[threadIdx.x];
    y[threadIdx.x] = parts[31 - threadIdx.x];
}
__global__ void write_after_read(const float *x, float *y) {
    __shared__ float parts[32];
    parts[threadIdx.x] = x[threadIdx.x];
    __syncwarp();
    y[threadIdx.x] = parts[31 - threadIdx.x];
    parts[threadIdx.x] = 0;
}
__global__ void write_after_read_of_warps(const float *x, float *y) {
    __shared__ float parts[96];
    parts[threadIdx.x] = x[threadIdx.x % 64];
    __syncthreads();
    if (threadIdx.x < 64) y[threadIdx.x] = parts[0];
    else if (parts[0] > 1e30f) y[0] = 0;
    __syncwarp();
    if (threadIdx.x == 32) parts[0] = 0;
}
__global__ void bytes_of_words(const float *x, float *y) {
    __shared__ float parts[32];
    char *bytes = (char *)parts; /* four warps, each with its own byte of every word: no race */
    bytes[threadIdx.x % 32 * 4 + threadIdx.x / 32] = ((const char *)x)[threadIdx.x % 32 * 4 + threadIdx.x / 32];
    __syncthreads();
    if (threadIdx.x < 32) y[threadIdx.x] = parts[threadIdx.x];
}
__global__ void byte_then_word(const float *x, float *y) {
    __shared__ float parts[32];
    if (threadIdx.x < 32) parts[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    if (threadIdx.x == 0) ((char *)parts)[5] = 0;
    if (threadIdx.x == 33) y[1] = parts[1];
}
__global__ void word_then_byte(const float *x, float *y) {
    __shared__ float parts[32];
    if (threadIdx.x < 32) parts[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    if (threadIdx.x == 0) y[1] = parts[1];
    if (threadIdx.x == 33) ((char *)parts)[6] = 0;
}
__global__ void one_byte_unwritten(const float *x, float *y) {
    __shared__ float parts[32];
    if (threadIdx.x < 3) ((char *)parts)[threadIdx.x] = ((const char *)x)[threadIdx.x];
    __syncwarp();
    if (threadIdx.x == 0) y[0] = parts[0];
}
__global__ void divergent_shuffle(const float *x, float *y) {
    float v = x[threadIdx.x];
    if (threadIdx.x < 16) v += __shfl_xor_sync(ALL, v, 1);
    y[threadIdx.x] = v;
}
__global__ void two_shuffles(const float *x, float *y) {
    float v = x[threadIdx.x];
    if (threadIdx.x < 16) v += __shfl_xor_sync(ALL, v, 1);
    else v += __shfl_xor_sync(ALL, v, 2);
    y[threadIdx.x] = v;
}
__global__ void shuffle_outside(const float *x, float *y) {
    if (threadIdx.x < 16) y[threadIdx.x] = __shfl_sync(0xffffu, x[threadIdx.x], 20);
}
__global__ void early_exit(const float *x, float *y, int n) {
    if ((int)threadIdx.x >= n) return;
    y[threadIdx.x] = warp_sum(x[threadIdx.x]);
}
__global__ void divergent_barrier(float *y) {
    if (threadIdx.x < 32) __syncthreads();
    y[threadIdx.x] = 1;
}
__global__ void two_barriers(float *y) {
    if (threadIdx.x < 32) __syncthreads();
    else __syncthreads();
    y[threadIdx.x] = 1;
}
__global__ void barrier_after_exit(float *y) {
    if (threadIdx.x == 5) return;
    __syncthreads();
    y[threadIdx.x] = 1;
}
__global__ void copy_from(const float *x, float *y, int from) { y[threadIdx.x] = x[threadIdx.x + from]; }
__global__ void copy_strided(const float *x, float *y, int stride) { y[threadIdx.x] = x[threadIdx.x * stride]; }
__global__ void copy_vectors(const float4 *x, float4 *y) { y[threadIdx.x] = x[threadIdx.x]; }
extern __shared__ unsigned char memory[];
__global__ void dynamic(const float *x, float *y, int written) {
    float *s = (float *)memory;
    if ((int)threadIdx.x < written) s[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = s[threadIdx.x];
}
__global__ void misaligned_shared(float *y) { y[0] = *(volatile float *)(memory + 2); }
template <class I> __global__ void last_row(const float *x, float *y, int n) {
    const I from = (I)blockIdx.x * (I)n;
    y[threadIdx.x] = x[from + (I)threadIdx.x];
}
struct pair {
    double a;
    int b;
};
__global__ void read_structure(float *y, pair p) { y[threadIdx.x] = (float)(p.a + p.b); }
__global__ void votes(const float *x, int *count) {
    const unsigned m = __ballot_sync(ALL, x[threadIdx.x] > 0);
    if (threadIdx.x == 0) *count = __popc(m);
}
"""
NAMES = [
    *["sum_rows", "missing_barrier", "missing_warp_barrier", "write_after_read", "divergent_shuffle", "two_shuffles"],
    "write_after_read_of_warps",
    *("bytes_of_words", "byte_then_word", "word_then_byte", "one_byte_unwritten"),
    *["shuffle_outside", "early_exit", "divergent_barrier", "two_barriers", "barrier_after_exit", "copy_from"],
    *["copy_strided", "copy_vectors", "dynamic", "misaligned_shared", "last_row<int>", "last_row<long long>"],
    *["read_structure", "votes"],
]


@pytest.fixture(scope="module", params=[(), ("-DUCONTEXT",)], ids=["fibers", "ucontext"])
def kernels(request):
    """The kernels above, with both ways to switch between threads."""
    return Module(SOURCE, NAMES, runtime_flags=request.param)


def floats(n, misaligned=False):
    memory = np.zeros(4 * n + 1024, np.uint8)
    begin = -memory.ctypes.data % 512 + (4 if misaligned else 0)
    x = memory[begin : begin + 4 * n].view(np.float32)
    x[:] = np.random.default_rng(n).standard_normal(n)
    return x


@pytest.mark.parametrize("backward", [False, True])
def test_correct_kernels_run(kernels, backward):
    x, y = floats(5 * 300), floats(5)
    kernels.kernel("sum_rows")((5,), (64,), (x, y, np.int32(300)), backward=backward)
    assert np.allclose(y, x.reshape(5, 300).sum(1), atol=1e-4)
    count = np.zeros(1, np.int32)
    kernels.kernel("votes")((1,), (32,), (x, count), backward=backward)
    assert count[0] == (x[:32] > 0).sum()
    kernels.kernel("copy_from")((1,), (32,), (x, y := floats(32), np.int32(7)), backward=backward)
    assert np.array_equal(y, x[7:39])


PLANTED = {
    "missing_barrier": ("race|before it is written", 64, ()),
    "missing_warp_barrier": ("race|before it is written", 32, ()),
    "write_after_read": ("race", 32, ()),
    "write_after_read_of_warps": ("race", 96, ()),
    "byte_then_word": ("race", 64, ()),
    "word_then_byte": ("race", 64, ()),
    "one_byte_unwritten": ("before it is written", 32, ()),
    "divergent_shuffle": ("exited|never come", 32, ()),
    "two_shuffles": ("divergent", 32, ()),
    "shuffle_outside": ("outside its mask", 32, ()),
    "early_exit": ("exited|never come", 32, (np.int32(20),)),
    "divergent_barrier": ("exited|never come", 64, None),
    "two_barriers": ("different __syncthreads", 64, None),
    "barrier_after_exit": ("exited", 64, None),
    "copy_from": ("out of bounds", 32, (np.int32(50),)),
}


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("name", PLANTED)
def test_planted_bug(kernels, name, backward):
    message, threads, more = PLANTED[name]
    x, y = floats(64), floats(64)
    arguments = (y,) if more is None else (x, y, *more)
    with pytest.raises(KernelError, match=message):
        kernels.kernel(name)((1,), (threads,), arguments, backward=backward)


def test_shared_memory(kernels):
    x, y = floats(64), floats(64)
    kernels.kernel("bytes_of_words")((1,), (128,), (x, y))
    assert np.array_equal(x[:32], y[:32])
    dynamic = kernels.kernel("dynamic")
    dynamic((1,), (64,), (x, y, np.int32(64)), 256)
    assert np.array_equal(x, y)
    with pytest.raises(KernelError, match="out of bounds"):
        dynamic((1,), (64,), (x, y, np.int32(64)), 252)
    with pytest.raises(KernelError, match="before it is written"):
        dynamic((1,), (64,), (x, y, np.int32(60)), 256)
    dynamic((1,), (64,), (x, y, np.int32(60)), 256, races=False)
    assert np.isnan(y[60:]).all()
    with pytest.raises(KernelError, match="may have"):
        dynamic((1,), (64,), (x, y, np.int32(64)), 50_000)
    with pytest.raises(KernelError, match="misaligned 4-byte access to shared"):
        kernels.kernel("misaligned_shared")((1,), (1,), (y,), 256)


def test_vector_access(kernels):
    copy = kernels.kernel("copy_vectors")
    x, y = floats(128), floats(128)
    counts = copy((1,), (32,), (x, y), count=True)
    assert np.array_equal(x, y)
    assert counts == {
        **{"loads": 1, "load_sectors": 16, "load_bytes": 512},
        **{"stores": 1, "store_sectors": 16, "store_bytes": 512},
    }
    with pytest.raises(KernelError, match="misaligned 16-byte"):
        copy((1,), (32,), (floats(128, misaligned=True), y))


@pytest.mark.parametrize(("stride", "sectors"), [(1, 4), (2, 8), (8, 32), (32, 32)])
def test_sectors(kernels, stride, sectors):
    x, y = floats(32 * 32), floats(32)
    counts = kernels.kernel("copy_strided")((1,), (32,), (x, y, np.int32(stride)), count=True)
    assert counts["load_sectors"] == sectors
    assert counts["loads"] == counts["stores"] == 1
    assert counts["store_sectors"] == 4


def test_argument_sizes(kernels):
    x, y = floats(64), floats(64)
    copy = kernels.kernel("copy_from")
    for wrong in (3, 3.0, np.int64(3), np.float64(3)):
        with pytest.raises(TypeError, match="8 bytes"):
            copy((1,), (32,), (x, y, wrong))
    with pytest.raises(TypeError, match="3 arguments"):
        copy((1,), (32,), (x, y))
    structure = np.array([(0.5, 2)], np.dtype([("a", "f8"), ("b", "i4")], align=True))
    kernels.kernel("read_structure")((1,), (64,), (y, by_value(structure)))
    assert (y == 2.5).all()
    with pytest.raises(TypeError, match="12 bytes"):
        kernels.kernel("read_structure")((1,), (64,), (y, by_value(structure.astype([("a", "f8"), ("b", "i4")]))))


def test_overflow_of_row_offsets(kernels):
    """A row beyond the first 2^31 elements: only the last block runs, and memory before it is never touched."""
    rows, n = 70_000, 32_768
    x = np.frombuffer(mmap.mmap(-1, rows * n * 4, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000), np.float32)
    x[-n:] = 1.5
    y = floats(32)
    kernels.kernel("last_row<long long>")((rows,), (32,), (x, y, np.int32(n)), last=1)
    assert (y == 1.5).all()
    with pytest.raises(KernelError, match="out of bounds"):
        kernels.kernel("last_row<int>")((rows,), (32,), (x, y, np.int32(n)), last=1)


def test_unknown_declaration_is_an_error():
    with pytest.raises(RuntimeError, match="error"):
        Module("__global__ void k(float *y) { y[0] = __unknown_intrinsic(1); }", ["k"])
