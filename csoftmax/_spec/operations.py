"""The one list of operations: a record for every public function of csoftmax that computes."""

from __future__ import annotations

from . import (
    crf,
    cross_entropy,
    divergence,
    entmax,
    in_batch,
    linear_cross_entropy,
    margins,
    penalize,
    rankings,
    sample,
    sampled,
    segments,
    softmax,
    subsets,
    topk,
)
from .record import Operation

OPERATIONS: tuple[Operation, ...] = (
    *softmax.RECORDS,
    *cross_entropy.RECORDS,
    *linear_cross_entropy.RECORDS,
    *topk.RECORDS,
    *entmax.RECORDS,
    *sample.RECORDS,
    *penalize.RECORDS,
    *crf.RECORDS,
    *sampled.RECORDS,
    *in_batch.RECORDS,
    *margins.RECORDS,
    *divergence.RECORDS,
    *segments.RECORDS,
    *rankings.RECORDS,
    *subsets.RECORDS,
)
BY_NAME = {operation.name: operation for operation in OPERATIONS}
# The operations of one C signature, which the registry of the core lists.
SOFTMAX_FAMILY = softmax.RECORDS
FORWARD = tuple(operation for operation in SOFTMAX_FAMILY if operation.inputs == 1)
BACKWARD = tuple(operation for operation in SOFTMAX_FAMILY if operation.inputs == 2)
# Those of the family that have kernels for CUDA.
CUDA_FAMILY = tuple(operation for operation in SOFTMAX_FAMILY if "cuda" in operation.devices)
