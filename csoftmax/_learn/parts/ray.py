"""Parts in the object store of a Ray cluster, and tasks on them; Ray computes lost ones again from where they came."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NoReturn

from ..._distributed.parts import Kind, PartError, PartMemoryError, Sums, add_parts, merge_all
from ..._runtime.optional import load


def _change_part(kind: Kind, payload: Any, number: int, part: Any) -> Any:
    return kind(part, payload, number)


def _gather_parts(kind: Kind, payload: Any, numbers: list[int], *parts: Any) -> list[Any]:
    return [kind(part, payload, number) for part, number in zip(parts, numbers, strict=True)]


def _add_run(kind: Kind, payload: Any, numbers: list[int], *parts: Any) -> Sums:
    return add_parts(kind, payload, parts, numbers)


class RayEngine:
    """Parts as references to objects; each of them is a tuple (X, y) or (X, y, sample_weight) at first."""

    def __init__(self, parts: Sequence[Any]):
        self.ray, self.parts, self.count = load("ray", "ray"), list(parts), len(parts)
        self.sizes: list[tuple[int, int]] = []

    def _describe(self, numbers: Sequence[int]) -> str:
        names = f"part {numbers[0]}" if len(numbers) == 1 else f"parts {numbers[0]} to {numbers[-1]}"
        if not self.sizes:
            return f"{names} of {self.count}"
        rows, nbytes = (sum(self.sizes[i][k] for i in numbers) for k in (0, 1))
        return f"{names} of {self.count} ({rows} rows, {nbytes} bytes)"

    def _runs(self) -> list[list[int]]:
        """Consecutive parts for each processor of the cluster."""
        runs = max(1, min(self.count, int(self.ray.cluster_resources().get("CPU", 1))))
        bounds = [i * self.count // runs for i in range(runs + 1)]
        return [list(range(begin, end)) for begin, end in itertools.pairwise(bounds)]

    def _collect(self, function: Any, kind: Kind, payload: Any) -> list[Any]:
        remote, runs = self.ray.remote(function), self._runs()
        tasks = [remote.remote(kind, payload, run, *(self.parts[i] for i in run)) for run in runs]
        found = []
        try:
            for run, task in zip(runs, tasks, strict=True):
                try:
                    found.append(self.ray.get(task))
                except self.ray.exceptions.RayError as error:
                    self._raise(error, run)
        except BaseException:
            for task in tasks:
                self.ray.cancel(task)
            raise
        return found

    def _raise(self, error: Any, run: Sequence[int]) -> NoReturn:
        problems, what = self.ray.exceptions, self._describe(run)
        cause = getattr(error, "cause", None)
        if isinstance(error, problems.OutOfMemoryError | problems.WorkerCrashedError | problems.ObjectStoreFullError):
            raise PartMemoryError(run[0], f"{what}: the worker is lost, perhaps out of memory: {error}") from error
        if isinstance(cause, MemoryError):
            raise PartMemoryError(run[0], f"{what}: out of memory: {cause}") from error
        if isinstance(cause, Exception) and isinstance(error, problems.RayTaskError):
            raise cause from error
        raise PartError(run[0], f"{what}: {type(error).__name__}: {error}") from error

    def change(self, kind: Kind, payload: Any) -> None:
        """Replace each part by a result of the function."""
        remote = self.ray.remote(_change_part)
        self.parts = [remote.remote(kind, payload, number, part) for number, part in enumerate(self.parts)]

    def gather(self, kind: Kind, payload: Any) -> list[Any]:
        """The function's results."""
        return [result for results in self._collect(_gather_parts, kind, payload) for result in results]

    def run(self, kind: Kind, payload: Any) -> Sums:
        """The nodes of the sum of the function's vectors over all parts."""
        return merge_all(self._collect(_add_run, kind, payload))

    def close(self) -> None:
        """Let the parts go."""
        self.parts = []
