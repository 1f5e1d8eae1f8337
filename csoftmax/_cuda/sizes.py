"""Sizes on which Python and the kernels must agree.

NVRTC gets each of them as a macro (`compiler.options`).  The kernels use the macros, and a static_assert beside each
structure compares its size with the macro, so a wrong number does not compile.
"""

from __future__ import annotations

from .._cpu import binding

BLOCK_ELEMENTS = binding.BLOCK_ELEMENTS  # CSM_BLOCK, the length of a block of the blockwise specification
BLOCK_BYTES = binding.STRUCT_BYTES["csm_block"]
ROW_BYTES = binding.STRUCT_BYTES["csm_row"]
SHARED_ROW_BYTES = 688  # sizeof(shared_row) of cross_entropy.cu, a multiple of 16; that of entmax.cu is smaller
TRAIL_BYTES = 528  # sizeof(trail) of sample.cu

MAX_WARPS = {4: 14, 8: 7}  # of a block of threads, by the compute type's bytes: 227 KB hold this many blocks of a row
MAX_SEGMENT_WARPS = 8  # of a block of threads for segments of cross_entropy.cu; with 14, bfloat16 would spill
LOG_SEGMENT_ELEMENTS = 32  # of e' held beside the logits at a time, for the log family in double
GRADIENT_SEGMENT_ELEMENTS = 1024  # of dy and y held at a time by `blocks` and `apply` of vjp.cu
SHARED_SURVIVORS = 512  # of an entmax row in shared memory; further ones go through global memory
SURVIVOR_BYTES = 40  # of one survivor: four doubles and an index

# The structure in global memory that the kernels of a source keep for each row, or for each block of a row.
RECORD_BYTES = {
    "softmax.cu": ROW_BYTES + 24,  # sizeof(whole_row)
    "vjp.cu": ROW_BYTES,
    "cross_entropy.cu": 144,  # sizeof(prepared), one a call
    "segment_any.cu": 0,
    "topk.cu": 0,
    "entmax.cu": 0,
    "weighted_sum.cu": 0,
    "sample.cu": 48,  # sizeof(part) in double; a smaller one in float fits as well
}

SUFFIXES = {binding.DTYPES[name]: suffix for name, suffix in binding.SUFFIXES.items()}
_ITEM_BYTES = {"f32": (4, 4), "f64": (8, 8), "f16": (2, 4), "bf16": (2, 4)}


def item_bytes(dtype: int) -> tuple[int, int]:
    """Bytes of an element in storage and in the compute type."""
    return _ITEM_BYTES[SUFFIXES[dtype]]


def align(count: int, multiple: int) -> int:
    """The first multiple that is at least `count`."""
    return -(-count // multiple) * multiple


def room(count: int, itemsize: int) -> int:
    """Elements of shared memory for `count` with any alignment: `room` of common.cuh."""
    vector = 16 // itemsize
    return (count + 2 * vector - 1) // vector * vector
