"""Parts of a data set on the workers of a Dask cluster, or read anew whenever they are needed.

Plain tasks on parts that stay on the workers, one task for each thread of a worker and call, and nothing among workers:
if one is lost, Dask computes its parts again elsewhere.  Parts lie in consecutive runs, so that the nodes of a run are
few.  What all parts are told travels within the tasks, never scattered: scattered data of a lost worker are gone.
"""

from __future__ import annotations

import contextlib
import itertools
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import dask
from dask.sizeof import sizeof

from .._distributed.held import Held, align
from .._distributed.parts import Kind, PartError, PartMemoryError, Sums, add_parts, merge_all, sum_of_part
from .options import Options

REFRESH_SECONDS = 1.0  # between looks at which workers there are
MAX_GATHERED_BYTES = 64 << 20  # with more, tasks merge the sums of several runs before the client gets them


class Message:
    """What all parts are told; Dask does not look into it for futures."""

    def __init__(self, content: Any):
        self.content = content


@sizeof.register(Held)
def _size_of(part: Held) -> int:
    """The bytes of a part, for Dask's account of memory."""
    return int(sizeof(part.content))


def _make_part(kind: Kind, message: Message, number: int, *given: Any) -> Held:
    return Held(kind(tuple(map(align, given)), message.content, number))


def _change_part(kind: Kind, message: Message, number: int, part: Held) -> Held:
    return Held(kind(part.content, message.content, number))


def _gather_parts(kind: Kind, message: Message, numbers: Message, *parts: Held) -> list[Any]:
    return [kind(part.content, message.content, number) for part, number in zip(parts, numbers.content, strict=True)]


def _add_parts(kind: Kind, message: Message, numbers: Message, *parts: Held) -> Sums:
    return add_parts(kind, message.content, [part.content for part in parts], numbers.content)


def _merge_runs(*found: Sums) -> Sums:
    return merge_all(found)


def _read_part(steps: Message, number: int, *given: Any) -> Any:
    """Apply all steps to a part that has just been read."""
    part: Any = tuple(map(align, given))
    for kind, payload in steps.content:
        part = kind(part, payload, number)
    return part


def _add_read_part(steps: Message, number: int, *given: Any) -> Sums:
    return sum_of_part(number, _read_part(steps, number, *given))


class _Cluster:
    """Waits for tasks, and says what has become of them."""

    def __init__(self, client: Any, describe: Callable[[Sequence[int]], str]):
        self.client, self.describe = client, describe
        self.held: Sequence[Any] = ()  # the futures of the parts
        self.former: Sequence[Any] = ()  # those of the last tasks, which go when the next ones are sent

    def submit(self, calls: Sequence[tuple[tuple[Any, ...], dict[str, Any]]]) -> list[Any]:
        """Futures of tasks, sent to the scheduler in one message.

        A client sends at most one message in 10 ms: a second task may begin that much later than the first, and the
        first than a message that lets the former results go. In the thread of the client's loop, nothing is sent before
        all of them are there.
        """

        async def send() -> list[Any]:
            futures = [self.client.submit(*arguments, **options) for arguments, options in calls]
            self.former = futures
            return futures

        return list(self.client.sync(send))

    def collect(self, futures: Sequence[Any], numbers: Sequence[Sequence[int]]) -> list[Any]:
        """Results of the futures of some parts each; if one fails, they and the parts are cancelled."""
        try:
            return list(self.client.gather(list(futures)))
        except BaseException as error:
            lost = [[i] for i, future in enumerate(self.held) if future.status == "error"]
            lost += [list(run) for run, future in zip(numbers, futures, strict=True) if future.status == "error"]
            self.cancel([*futures, *self.held])
            parts = lost[0] if lost else []
            self._raise(error, parts)

    def _raise(self, error: BaseException, parts: Sequence[int]) -> NoReturn:
        from distributed.client import CancelledError
        from distributed.comm.core import CommClosedError
        from distributed.scheduler import KilledWorker

        first, what = (parts[0], self.describe(parts)) if parts else (-1, "a task")
        if isinstance(error, KilledWorker):
            text = f"{what}: each worker that had it was killed, perhaps out of memory: {error}"
            raise PartMemoryError(first, text) from error
        if isinstance(error, MemoryError):
            raise PartMemoryError(first, f"{what}: out of memory: {error}") from error
        if isinstance(error, CancelledError | CommClosedError):
            raise PartError(-1, f"the scheduler of the cluster, or its connection, is lost: {error}") from error
        raise error

    def cancel(self, futures: Sequence[Any]) -> None:
        """Let futures go, if their scheduler is still there."""
        if self.client.status == "running":
            with contextlib.suppress(Exception):
                self.client.cancel(list(futures), force=True)


class DaskEngine:
    """Parts in the memory of the workers; each of them is a tuple of Delayed at first."""

    def __init__(self, parts: Sequence[tuple[Any, ...]], client: Any, options: Options, sizes: list[tuple[int, int]]):
        self.client, self.options, self.count = client, options, len(parts)
        self.given: Sequence[tuple[Any, ...]] | None = parts
        self.futures: list[Any] = []
        self.sizes = sizes
        self.cluster = _Cluster(client, self._describe)
        self.slots: list[str] = []  # a worker for each of their threads
        self.owners = [0] * self.count  # the slot of each part
        self.seen, self.vector_bytes = -REFRESH_SECONDS, 0
        self.token = uuid.uuid4().hex

    def _describe(self, numbers: Sequence[int]) -> str:
        names = f"part {numbers[0]}" if len(numbers) == 1 else f"parts {numbers[0]} to {numbers[-1]}"
        if not self.sizes:
            return f"{names} of {self.count}, of unknown size"
        rows, nbytes = (sum(self.sizes[i][k] for i in numbers) for k in (0, 1))
        return f"{names} of {self.count} ({rows} rows, {nbytes} bytes)"

    def _look(self) -> None:
        """Find the workers; one that is new takes the place of one that is gone, so that few parts move."""
        if time.monotonic() - self.seen < REFRESH_SECONDS:
            return
        threads: dict[str, int] = dict(self.client.nthreads())
        self.seen = time.monotonic()
        there = [worker for worker, count in threads.items() for _ in range(count)]
        kept = [worker if worker in threads else None for worker in self.slots]
        new = there.copy()
        for worker in kept:
            if worker is not None and worker in new:
                new.remove(worker)
        slots = [worker or (new.pop(0) if new else "") for worker in kept]
        slots = [worker for worker in slots if worker] + new
        if slots != self.slots:
            self.slots = slots
            self.owners = [i * len(slots) // self.count for i in range(self.count)]

    def _stay(self, given: Sequence[tuple[Any, ...]]) -> None:
        """Leave parts where they are if all of them are on workers already."""
        there = self.client.who_has()
        homes = [there.get(part[0].key) for part in given]
        known = set(self.slots)
        if not all(home and home[0] in known for home in homes):
            return
        for worker in known:
            slots = [i for i, slot in enumerate(self.slots) if slot == worker]
            parts = [number for number, home in enumerate(homes) if home[0] == worker]
            for i, number in enumerate(parts):
                self.owners[number] = slots[i * len(slots) // len(parts)]

    def _runs(self) -> Iterator[tuple[list[int], dict[str, Any]]]:
        """The numbers of the parts of one thread, consecutive ones as a rule, and the options of their task."""
        self._look()
        order = sorted(range(self.count), key=self.owners.__getitem__)
        for _, run in itertools.groupby(order, key=self.owners.__getitem__):
            numbers = list(run)
            yield numbers, self._place(numbers[0])

    def _place(self, number: int) -> dict[str, Any]:
        given: dict[str, Any] = {"retries": self.options.retries, "pure": False}
        if not self.slots:
            return given
        return given | {"workers": [self.slots[self.owners[number]]], "allow_other_workers": True}

    def change(self, kind: Kind, payload: Any) -> None:
        """Replace each part by a result of the function."""
        self._look()
        message = Message(payload)
        if self.given is not None:
            self._stay(self.given)
            tasks = []
            for number, given in enumerate(self.given):
                place = {name: value for name, value in self._place(number).items() if name != "pure"}
                with dask.annotate(**place):
                    task = dask.delayed(_make_part, pure=False)(
                        kind, message, number, *given, dask_key_name=f"csoftmax-part-{self.token}-{number}"
                    )
                tasks.append(task)
            self.cluster.held = self.futures = self.client.compute(tasks, retries=self.options.retries)
            self.given = None
            return
        self.cluster.held = self.futures = self.cluster.submit(
            [
                ((_change_part, kind, message, number, future), self._place(number))
                for number, future in enumerate(self.futures)
            ]
        )

    def _submit(self, function: Any, kind: Kind, payload: Any) -> tuple[list[Any], list[list[int]]]:
        message, calls, runs = Message(payload), [], []
        for numbers, place in self._runs():
            calls.append(((function, kind, message, Message(numbers), *(self.futures[i] for i in numbers)), place))
            runs.append(numbers)
        return self.cluster.submit(calls), runs

    def gather(self, kind: Kind, payload: Any) -> list[Any]:
        """The function's results."""
        futures, runs = self._submit(_gather_parts, kind, payload)
        found = zip(itertools.chain(*runs), itertools.chain(*self.cluster.collect(futures, runs)), strict=True)
        return [result for _, result in sorted(found, key=lambda item: item[0])]

    def run(self, kind: Kind, payload: Any) -> Sums:
        """The nodes of the sum of the function's vectors over all parts."""
        futures, runs = self._submit(_add_parts, kind, payload)
        while len(futures) > 1 and len(futures) * self.vector_bytes > MAX_GATHERED_BYTES:
            step = self.options.split_every
            places, options = range(0, len(futures), step), {"pure": False, "retries": self.options.retries}
            futures = self.cluster.submit([((_merge_runs, *futures[i : i + step]), options) for i in places])
            runs = [[number for run in runs[i : i + step] for number in run] for i in places]
        nodes = merge_all(self.cluster.collect(futures, runs))
        self.vector_bytes = max([self.vector_bytes, *(vector.nbytes for vector in nodes.values())])
        return nodes

    def close(self) -> None:
        """Let the parts go: the scheduler forgets what no client refers to."""
        self.cluster.held = self.cluster.former = self.futures = []


class ReadingEngine:
    """Parts that are read anew in each call, for data beyond the memory of the workers; client: or None."""

    def __init__(self, parts: Sequence[tuple[Any, ...]], client: Any, options: Options):
        self.parts, self.client, self.options, self.count = parts, client, options, len(parts)
        self.sizes: list[tuple[int, int]] = []
        self.steps: list[tuple[Kind, Any]] = []
        self.cluster = (
            None if client is None else _Cluster(client, lambda numbers: f"part {numbers[0]} of {self.count}")
        )

    def change(self, kind: Kind, payload: Any) -> None:
        """Apply the function to each part after it has been read."""
        self.steps.append((kind, payload))

    def _tasks(self, function: Any, kind: Kind, payload: Any) -> list[Any]:
        steps = Message([*self.steps, (kind, payload)])
        task = dask.delayed(function, pure=False)
        return [task(steps, number, *part) for number, part in enumerate(self.parts)]

    def _compute(self, tasks: list[Any]) -> list[Any]:
        if self.cluster is None:
            return list(dask.compute(*tasks))
        futures = self.client.compute(tasks, retries=self.options.retries)
        return self.cluster.collect(futures, [[number] for number in range(len(futures))])

    def gather(self, kind: Kind, payload: Any) -> list[Any]:
        """The function's results."""
        return self._compute(self._tasks(_read_part, kind, payload))

    def run(self, kind: Kind, payload: Any) -> Sums:
        """The nodes of the sum of the function's vectors over all parts."""
        tasks, step = self._tasks(_add_read_part, kind, payload), self.options.split_every
        merge = dask.delayed(_merge_runs, pure=False)
        while len(tasks) > step:
            tasks = [merge(*tasks[i : i + step]) for i in range(0, len(tasks), step)]
        return merge_all(self._compute(tasks))

    def close(self) -> None:
        """Let the parts go."""
        self.parts = ()
