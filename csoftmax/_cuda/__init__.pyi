from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

BLOCK: int
BLOCK_BYTES: int
SUFFIX: dict[int, str]
MODULES: dict[str, tuple[str, int, int, tuple[int, int] | None]]
KERNELS: dict[str, tuple[str, ...]]

def core() -> Path: ...
def target(capability: str, supported: Iterable[int]) -> str: ...
def options(op: str, suffix: str, arch: str) -> tuple[str, ...]: ...
def compile(op: str, suffix: str, arch: str) -> tuple[bytes, bytes, str]: ...
def room(count: int, itemsize: int) -> int: ...

class Launch:
    kernel: str
    blocks: int
    warps: int
    shared: int
    row_bytes: int
    each: int
    staged: int
    def __init__(self, op: str, dtype: int, n: int, limit: int) -> None: ...
    def grid(self, rows: int) -> tuple[int]: ...

def run(op: int, dtype: int, a: Any, b: Any, y: Any, where: Any, temperature: float) -> None: ...
def launch_loss(dtype: int, n: int, limit: int) -> tuple[int, int, int]: ...
def launch_of_loss(
    dtype: int, device: int, kernel: str, grid: int, threads: int, shared: int, *arguments: Any
) -> None: ...
def check_target(
    dtype: int, n: int, labels: Any, ignore: int | None, soft: Any, weight: Any = None, sample_weight: Any = None
) -> tuple[Any, Any, Any]: ...

class Loss:
    dtype: int
    n: int
    count: int
    device: int
    soft: Any
    weight: Any
    sample_weight: Any
    upstream: Any
    temperature: float
    losses: Any
    ready: Any
    labels: Any
    masses: Any
    def __init__(
        self,
        dtype: int,
        n: int,
        labels: Any,
        ignore: int | None,
        soft: Any,
        weight: Any,
        sample_weight: Any,
        upstream: Any,
        factors: Any,
        *,
        reduction: int,
        gradient: bool,
    ) -> None: ...
    def launch(self, kernel: str, grid: int, threads: int, shared: int, *arguments: Any) -> None: ...
    def rows(self, x: Any, y: Any, first: int = 0, row_losses: Any = None) -> None: ...
    def reduce(self, loss: Any) -> None: ...

def run_loss(
    dtype: int,
    x: Any,
    y: Any,
    loss: Any,
    labels: Any,
    ignore: int | None,
    soft: Any,
    weight: Any,
    sample_weight: Any,
    upstream: Any,
    *factors_and_reduction: Any,
) -> None: ...
def launch_sample(dtype: int, n: int) -> int: ...
def launch_topk(dtype: int, n: int, k: int, limit: int) -> tuple[int, int, int]: ...
def run_topk(
    dtype: int,
    x: Any,
    values: Any,
    indices: Any,
    smallest: bool,
    unsorted: bool,
    normalize: int,
    temperature: float,
) -> None: ...
def run_sample(
    dtype: int,
    x: Any,
    uniform: np.ndarray,
    temperature: np.ndarray | None,
    top_k: np.ndarray | None,
    top_p: np.ndarray | None,
    min_p: np.ndarray | None,
) -> tuple[Any, np.ndarray]: ...
def launch_entmax(dtype: int, n: int, gradient: bool, limit: int) -> tuple[int, int, int, int]: ...
def run_entmax(dtype: int, a: Any, b: Any, y: Any, where: Any, alpha: float) -> None: ...
def run_entmax_loss(
    dtype: int, x: Any, labels: Any, soft: Any, y: Any, loss: Any, alpha: float, reduction: int
) -> None: ...

class Unavailable(Exception): ...

def require(device: int | None) -> ModuleType: ...
def state() -> dict[str, Any]: ...
