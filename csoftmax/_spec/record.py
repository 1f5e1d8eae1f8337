"""The record of an operation: its arguments, options, sample inputs, errors, oracle and the promises made for it."""

from __future__ import annotations

import functools
import importlib.util
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from .formats import Bounds, Exact, dtype_of, loss_dtype, measure_error

# Every promise is a file tests/properties/test_<name>.py.
PROMISES = (
    *("accuracy", "special_values", "reproducibility", "golden", "layouts", "overlap", "errors", "threads"),
    *("interrupt", "allocation", "guard_pages", "float_environment", "fork", "big", "quick", "memory"),
)
# The relation of an array to the class axis: CLASSES has it, ROWS lacks it (one element per row), WHOLE has an
# unrelated shape.  TOP has a class axis of k elements, DRAWS the rows first and any number of draws after them.
CLASSES, ROWS, TOP, DRAWS, WHOLE = "classes", "rows", "top", "draws", "whole"
# Options that are arrays (all others are passed on as they are).
OPTION_ROLES = {
    **{"where": CLASSES, "sample_weight": ROWS, "upstream": ROWS, "rng": ROWS, "mask": ROWS},
    **{"lengths": ROWS, "repetition": ROWS, "presence": ROWS, "frequency": ROWS},
    **{"temperature": CLASSES, "alpha": CLASSES},  # of length 1 along the class axis
}


class Argument(NamedTuple):
    """An array argument of a function."""

    name: str
    role: str


class Result(NamedTuple):
    """An array that a function returns."""

    name: str
    role: str
    dtype: str = "input"  # "input": that of the input; "loss": float32 for half types; "index": an integer type


class Sample(NamedTuple):
    """The arguments of one call, with the class axis last."""

    arrays: dict[str, Any]
    options: dict[str, Any]


class Variant(NamedTuple):
    """A set of options to try a function with."""

    options: Callable[[tuple, str, int], dict] = lambda shape, dtype, seed: {}
    soft: bool = False  # the target holds soft labels
    is_accurate: bool = True  # the oracle supports these options
    is_rowwise: bool = True  # a row's results do not depend on the other rows


class BadCall(NamedTuple):
    """A call that must be refused: its changes to a good call, the exception, and a pattern of its message."""

    changes: Mapping[str, Any]
    error: type | str  # a string names an exception of csoftmax
    message: str

    def exception(self) -> type:
        """Return the exception's type."""
        if isinstance(self.error, type):
            return self.error
        import csoftmax

        return getattr(csoftmax, self.error)


def numbers_of_rows(name: str, choices: tuple[float, ...], **more) -> Callable[[tuple, str, int], dict]:
    """Return options in which `name` has one of some numbers for each row."""

    def options(shape, dtype, seed):
        return {name: np.random.default_rng(seed + 7).choice(choices, (*shape[:-1], 1)), **more}

    return options


def constant(**options) -> Callable[[tuple, str, int], dict]:
    """Return options that do not depend on the shape."""
    return lambda shape, dtype, seed: dict(options)


@functools.cache
def parameters_of(function) -> tuple[frozenset[str], bool]:
    """Return the names of a function's parameters, and whether it accepts any keyword."""
    parameters = inspect.signature(function).parameters
    return frozenset(parameters), any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())


def unpack(result) -> tuple[np.ndarray, ...]:
    """Return a result as a tuple of arrays: fields that are None are left out."""
    parts = result if isinstance(result, tuple) else (result,)
    return tuple(np.asarray(part) for part in parts if part is not None)


@dataclass(frozen=True)
class Operation:
    """One public function that computes."""

    name: str
    family: str
    arguments: tuple[Argument, ...]
    results: tuple[Result, ...]
    make_arrays: Callable[..., tuple]  # (shape, dtype, seed, sigma, soft) → the arrays, class axis last
    oracle: Callable[..., tuple[Exact | Bounds, ...]]  # (*arrays, **options) → one for each result, long double
    limits: Callable[[str, Mapping], tuple[float, ...]]  # (dtype, options) → allowed ULP of each result
    variants: Mapping[str, Variant] = field(default_factory=lambda: {"plain": Variant()})
    special: Mapping[str, tuple | str] = field(default_factory=dict)  # results of a row with a special value
    bad_calls: tuple[BadCall, ...] = ()
    golden: tuple[str, ...] = ()  # the names under which tests/records/golden.json holds its bits
    exempt: Mapping[str, str] = field(default_factory=dict)  # promise → why it does not hold or cannot be tested
    invoke: Callable | None = None  # (function, *arrays, **options), where arguments are not the arrays themselves
    name_arguments: Callable[[Sample], dict] | None = None  # the same call with all arguments by name
    unpack: Callable[[Any], tuple[np.ndarray, ...]] = unpack
    log: bool = False  # probabilities among the arguments and results are logarithms
    devices: tuple[str, ...] = ("cpu", "cuda")
    needs: tuple[str, ...] = ()  # optional packages

    def function(self) -> Callable:
        """Return the public function itself."""
        import csoftmax

        return getattr(csoftmax, self.name)

    @property
    def is_available(self) -> bool:
        """Whether the optional packages that the function needs are installed."""
        return all(importlib.util.find_spec(package) is not None for package in self.needs)

    def accepts(self, option: str) -> bool:
        """Return whether the function has a parameter of this name, or accepts any keyword."""
        names, accepts_any = parameters_of(self.function())
        return accepts_any or option in names

    @property
    def inputs(self) -> int:
        """The number of arrays among the arguments."""
        return len(self.arguments)

    @property
    def keeps_axis(self) -> bool:
        """Whether the first result has the class axis."""
        return bool(self.results) and self.results[0].role == CLASSES

    @property
    def has_out(self) -> bool:
        """Whether the function has the option `out`."""
        return self.accepts("out")

    def sample(self, shape, dtype="float32", seed=0, sigma=3.0, variant="plain") -> Sample:
        """Return the arguments of a call on rows of shape[-1] classes; sigma: see `samples.logits`."""
        chosen = self.variants[variant]
        arrays = self.make_arrays(tuple(shape), dtype, seed, sigma, chosen.soft)
        names = (argument.name for argument in self.arguments)
        return Sample(dict(zip(names, arrays, strict=True)), chosen.options(tuple(shape), dtype, seed))

    def make(self, shape, dtype="float32", seed=0, sigma=3.0, soft=False) -> tuple:
        """Return the arrays of a call without options, the class axis last."""
        return self.make_arrays(tuple(shape), dtype, seed, sigma, soft)

    def call(self, sample: Sample, axis=..., **options):
        """Call the function as a user would: arrays by position, everything else by name; `...` is the default axis."""
        options = {**sample.options, **options}
        if axis is not ... and self.accepts("axis"):
            options["axis"] = axis
        if self.invoke is not None:
            return self.invoke(self.function(), *sample.arrays.values(), **options)
        return self.function()(*sample.arrays.values(), **options)

    def named(self, sample: Sample) -> dict:
        """Return all arguments of a call by name."""
        if self.name_arguments is not None:
            return self.name_arguments(sample)
        return {**sample.arrays, **sample.options}

    def compute(self, sample: Sample, axis=..., **options) -> tuple[np.ndarray, ...]:
        """Call the function and return its results as a tuple of arrays."""
        return self.unpack(self.call(sample, axis, **options))

    def role(self, name: str, sample: Sample) -> str:
        """Return the role of an argument or option in a call: a target has the class axis if it holds soft labels."""
        roles = {argument.name: argument.role for argument in self.arguments}
        if name == "target" and np.ndim(sample.arrays[name]) > 1:
            return CLASSES
        if name in roles:
            return roles[name]
        value = sample.options.get(name)
        return WHOLE if value is None or np.isscalar(value) else OPTION_ROLES.get(name, WHOLE)

    def rows(self, sample: Sample, begin: int, end: int) -> Sample:
        """Return the call on the rows from begin to end only."""

        def cut(name, value):
            return value if self.role(name, sample) == WHOLE else value[begin:end]

        return Sample(*({name: cut(name, value) for name, value in part.items()} for part in sample))

    def by_row(self, results) -> list[np.ndarray]:
        """Return the results that have one row for each row of the arguments."""
        return [result for kind, result in zip(self.results, results) if kind.role != WHOLE]

    def result_dtype(self, result: Result, dtype: str) -> np.dtype:
        """Return the dtype that a result has for inputs of a dtype."""
        if result.dtype == "index":
            return np.dtype(np.int64)
        return dtype_of(loss_dtype(dtype) if result.dtype == "loss" else dtype)

    def errors(self, sample: Sample, results: tuple[np.ndarray, ...], dtype: str) -> tuple[float, ...]:
        """Return the error of each result in ULP (0 or infinite where the result must be exact)."""
        expected = self.oracle(*sample.arrays.values(), **sample.options)
        kinds = (loss_dtype(dtype) if result.dtype == "loss" else dtype for result in self.results)
        return tuple(map(measure_error, results, expected, kinds))
