from typing import Any, Final

from numpy.typing import NDArray

OPS: Final[dict[str, int]]
DTYPES: Final[dict[str, int]]
ISAS: Final[tuple[str, ...]]
SOURCE_HASH: Final[str]
OPENMP: Final[int]
__test__: dict[str, str]

def openmp_limit() -> int: ...
def set_thread_limit(limit: int) -> None: ...
def get_threads() -> int: ...
def set_threads(num_threads: int | None) -> None: ...
def enter_threads(num_threads: int | None) -> int: ...
def leave_threads(before: int) -> None: ...
def isa() -> str: ...
def isa_built() -> tuple[str, ...]: ...
def isa_available() -> tuple[str, ...]: ...
def select_isa(name: str) -> None: ...
def run(
    op: int,
    dtype: int,
    a: NDArray[Any],
    b: NDArray[Any] | None,
    y: NDArray[Any],
    where: NDArray[Any] | None,
    temperature: float,
    num_threads: int | None,
) -> None: ...
def fast(
    op: int,
    x: object,
    axis: object,
    temperature: object,
    where: object,
    out: object,
    device: object,
    num_threads: int | None,
) -> NDArray[Any] | None: ...
