"""The problems of ``bench``: the arrays of a case, and the statements in which csoftmax and PyTorch solve it.

A problem is of one of five kinds: rows of logits (the softmax family), a loss with its gradient, sparse softmax, a
linear-chain CRF, or the sample of a record, for every other operation.  All contenders work on the same arrays, whose
pages have been touched.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

import csoftmax

from .._spec.formats import dtype_of
from .._spec.operations import BY_NAME
from .cases import Case
from .timing import Contender

Array = NDArray[Any]


class LeftOutError(Exception):
    """A contender cannot take part; the message gives the reason."""


class Problem:
    """A case and its arrays: `x` is read (the gradient of the result for a vjp), `out` is written."""

    is_comparable = True  # whether contenders must agree with csoftmax's result

    def __init__(self, case: Case, fresh: bool, x: Array, out: Array) -> None:
        self.case = case
        self.fresh = fresh  # whether results go to new memory; else to `out`, where a contender can write into it
        self.x, self.out = x, out
        self.spare = out if out.shape == x.shape else x.copy()  # receives the plain copies of x

    @property
    def nbytes(self) -> int:
        """The least number of bytes that a call reads and writes."""
        return int(self.x.nbytes + self.out.nbytes)

    def prepare_csoftmax(self) -> Contender:
        """Return csoftmax's statement."""
        raise NotImplementedError

    def prepare_torch(self, torch: Any) -> Contender:
        """Return PyTorch's statement, or raise `LeftOutError`."""
        raise NotImplementedError

    def prepare_numpy(self) -> Contender:
        """Return NumPy's statement, or raise `LeftOutError`."""
        raise LeftOutError("is measured with alias, sampled, hs, adaptive, int8 and mach only")


class RowProblem(Problem):
    """Normal logits along one axis, for softmax, log_softmax, logsumexp and their vjps."""

    def __init__(self, case: Case, fresh: bool) -> None:
        dtype = dtype_of(case.dtype)
        rng, draws = np.random.default_rng(0), drawn_type(case)
        x: Array = rng.standard_normal(case.shape, dtype=draws).astype(dtype, copy=False)
        record = BY_NAME[case.op]
        self.y: Array | None = None  # the result of the forward operation, for a vjp
        if record.inputs == 2:
            self.y = getattr(csoftmax, case.op.removesuffix("_vjp"))(x, case.axis)
            x = rng.standard_normal(case.shape, dtype=draws).astype(dtype, copy=False)
        self.writes_out = record.has_out and not fresh
        super().__init__(case, fresh, x, np.array(x if record.keeps_axis else record.function()(x, case.axis)))

    @property
    def nbytes(self) -> int:
        """The least number of bytes that a call reads and writes."""
        return super().nbytes + (0 if self.y is None else self.y.nbytes)

    def prepare_csoftmax(self) -> Contender:
        """Return csoftmax's statement."""
        names = {"f": getattr(csoftmax, self.case.op), "x": self.x, "y": self.y, "out": self.out}
        arrays = "x" if self.y is None else "x, y"
        out = ", out=out" if self.writes_out else ""
        return Contender("csoftmax", f"f({arrays}, {self.case.axis}{out})", names, fills_out=self.writes_out)

    def prepare_torch(self, torch: Any) -> Contender:
        """Return PyTorch's statement; its gradients are the private functions that autograd calls."""
        names = {"x": as_tensor(torch, self.x), "out": as_tensor(torch, self.out)}
        if self.y is None:
            names["f"] = getattr(torch, self.case.op)
            statement, out = f"f(x, {self.case.axis}", "out"
        else:
            names["f"] = getattr(torch, f"_{self.case.op.removesuffix('_vjp')}_backward_data")
            names |= {"y": as_tensor(torch, self.y), "dtype": names["x"].dtype}
            # the name of the output differs between the two
            statement = f"f(x, y, {self.case.axis}, dtype"
            out = "grad_input" if self.case.op == "softmax_vjp" else "out"
        statement += f", {out}=out)" if self.writes_out else ")"
        return Contender("torch", statement, names, torch.inference_mode, self.writes_out)


class LossProblem(Problem):
    """Logits or features, the weights of the layer, labels and options, for a loss with its gradient."""

    def __init__(self, case: Case, fresh: bool) -> None:
        check_row_case(case)
        rng, draws = np.random.default_rng(0), drawn_type(case)
        rows, classes = case.shape[0], case.shape[-1]
        self.linear = case.op == "linear_cross_entropy"
        x = rng.standard_normal(case.shape[:2] if self.linear else case.shape, dtype=draws)
        self.w = rng.standard_normal((classes, case.shape[1]), dtype=draws) if self.linear else None
        self.target: Array
        if case.kind == "soft":
            self.target = rng.random((rows, classes), dtype=draws)
            self.target /= self.target.sum(axis=1, keepdims=True)
        else:
            self.target = rng.integers(0, classes, rows)
        self.options: dict[str, Any] = {}
        if case.kind == "weights+smoothing":
            self.options = {"weight": rng.random(classes, dtype=draws), "label_smoothing": 0.1}
        super().__init__(case, fresh, x, x.copy())

    def prepare_csoftmax(self) -> Contender:
        """Return csoftmax's statement."""
        f = csoftmax.linear_cross_entropy_with_grad if self.linear else csoftmax.cross_entropy_with_grad
        names = {"f": f, "x": self.x, "w": self.w, "t": self.target, "options": self.options, "out": self.out}
        if self.linear:
            return Contender("csoftmax", "f(x, w, t, **options).grad_x", names)
        out = "" if self.fresh else ", out=out"
        return Contender("csoftmax", f"f(x, t{out}, **options).grad", names, fills_out=not self.fresh)

    def prepare_torch(self, torch: Any, fused: bool = False) -> Contender:
        """Return a forward and backward step of PyTorch, which makes the gradient in new memory."""
        x = torch.tensor(self.x, requires_grad=True)
        w = torch.tensor(self.w, requires_grad=True) if self.linear else None
        target = torch.from_numpy(self.target)
        options = {name: torch.from_numpy(value) if name == "weight" else value for name, value in self.options.items()}
        functional = torch.nn.functional

        def step() -> Any:
            x.grad = None
            if w is not None:
                w.grad = None
            if fused:
                value = functional.linear_cross_entropy(x, w, target, **options)
            else:
                value = functional.cross_entropy(x if w is None else x @ w.T, target, **options)
            value.backward()
            return x.grad

        return Contender("torch_fused" if fused else "torch", "step()", {"step": step})


class SparseProblem(Problem):
    """Logits of rows and k, for top-k, sparsemax and entmax."""

    def __init__(self, case: Case, fresh: bool) -> None:
        check_row_case(case)
        x: Array = np.random.default_rng(0).standard_normal(case.shape[:2], dtype=drawn_type(case))
        if case.kind == "ascending":
            x = np.sort(x, axis=-1)
        elif case.kind == "descending":
            x = -np.sort(-x, axis=-1)
        elif case.kind == "constant":
            x = np.ones_like(x)
        self.k = case.shape[2] if len(case.shape) == 3 else None
        super().__init__(case, fresh, x, x.copy())

    def prepare_csoftmax(self) -> Contender:
        """Return csoftmax's statement."""
        names = {"f": getattr(csoftmax, self.case.op), "x": self.x, "k": self.k, "out": self.out}
        if self.k is not None:
            return Contender("csoftmax", "f(x, k).values", names)
        if self.fresh:
            return Contender("csoftmax", "f(x)", names)
        return Contender("csoftmax", "f(x, out=out)", names, fills_out=True)

    def prepare_torch(self, torch: Any) -> Contender:
        """Return PyTorch's statement, whose results are in new memory."""
        op, x = self.case.op, torch.from_numpy(self.x)
        if op == "topk":
            return Contender("torch", "f(x, k).values", {"f": torch.topk, "x": x, "k": self.k}, torch.inference_mode)
        if op == "topk_softmax":

            def f(x: Any, k: int) -> Any:
                return torch.softmax(torch.topk(x, k).values, -1)

            return Contender("torch", "f(x, k)", {"f": f, "x": x, "k": self.k}, torch.inference_mode)
        raise LeftOutError(f"has no {op}")


class ChainProblem(Problem):
    """Sequences of normal emissions, of a third to all of the positions, for the linear-chain CRF."""

    def __init__(self, case: Case, fresh: bool) -> None:
        check_row_case(case)
        rng, (count, length, tags) = np.random.default_rng(0), case.shape
        x: Array = rng.standard_normal(case.shape, dtype=drawn_type(case))
        self.tags = rng.integers(0, tags, (count, length))
        self.lengths = rng.integers(-(-length // 3), length + 1, count)
        self.lengths[0] = length
        self.parameters = [rng.uniform(-0.1, 0.1, shape).astype(x.dtype) for shape in ((tags, tags), tags, tags)]
        super().__init__(case, fresh, x, np.empty((length,), np.int64) if case.op == "crf_decode" else x.copy())

    def prepare_csoftmax(self) -> Contender:
        """Return csoftmax's statement."""
        name = "crf_loss_with_grad" if self.case.op == "crf" else self.case.op
        names: dict[str, Any] = {"f": getattr(csoftmax, name), "x": self.x, "t": self.tags, "out": self.out}
        names |= {"a": self.parameters[0], "s": self.parameters[1], "e": self.parameters[2], "n": self.lengths}
        options = "start=s, end=e, lengths=n" + ("" if self.fresh else ", out=out")
        if self.case.op == "crf_decode":
            return Contender("csoftmax", "f(x, a, start=s, end=e, lengths=n).tags[0]", names)
        if self.case.op == "crf":
            return Contender("csoftmax", f"f(x, t, a, {options}).grad_emissions", names, fills_out=not self.fresh)
        return Contender("csoftmax", f"f(x, a, {options}).tags", names, fills_out=not self.fresh)

    def prepare_torch(self, torch: Any) -> Contender:
        """Raise `LeftOutError`."""
        raise LeftOutError(f"has no {self.case.op}")

    def prepare_torchcrf(self, torch: Any, torchcrf: Any) -> Contender:
        """Return a step of pytorch-crf, which makes its gradients in new memory."""
        if self.case.op == "crf_marginals":
            raise LeftOutError("has no marginals")
        model = torchcrf.CRF(self.case.shape[2], batch_first=True).to(as_tensor(torch, self.x).dtype)
        with torch.no_grad():
            for name, value in zip(
                ("transitions", "start_transitions", "end_transitions"), self.parameters, strict=True
            ):
                getattr(model, name).copy_(torch.from_numpy(value))
        x, target = torch.tensor(self.x, requires_grad=True), torch.from_numpy(self.tags)
        mask = torch.from_numpy(np.arange(self.case.shape[1]) < self.lengths[:, None])
        if self.case.op == "crf_decode":
            names = {"f": model.decode, "x": x.detach(), "m": mask}
            return Contender("torchcrf", "f(x, mask=m)", names, torch.inference_mode)

        def step() -> Any:
            x.grad = None
            model.zero_grad()
            (-model(x, target, mask=mask, reduction="mean")).backward()
            return x.grad

        return Contender("torchcrf", "step()", {"step": step})


class RecordProblem(Problem):
    """The sample of a record (csoftmax/_spec), for operations that no peer has."""

    is_comparable = False

    def __init__(self, case: Case, fresh: bool) -> None:
        if case.axis not in (-1, len(case.shape) - 1):
            raise LeftOutError(f"{case.op} is measured along the last axis")
        self.record = BY_NAME[case.op]
        self.sample = self.record.sample(case.shape, case.dtype)
        results = self.record.compute(self.sample)
        self.writes_out = self.record.has_out and not fresh
        first = next(iter(self.sample.arrays.values()))
        super().__init__(case, fresh, first, np.array(results[-1]) if results else np.empty(0))
        self._nbytes = sum(int(a.nbytes) for a in (*self.sample.arrays.values(), *results))

    @property
    def nbytes(self) -> int:
        """The least number of bytes that a call reads and writes."""
        return self._nbytes

    def prepare_csoftmax(self) -> Contender:
        """Return csoftmax's statement."""
        options = self.sample.options | ({"out": self.out} if self.writes_out else {})
        names = {"f": self.record.function(), "options": options, **self.sample.arrays}
        arguments = ", ".join(self.sample.arrays)
        if self.record.invoke is not None:
            names["invoke"] = self.record.invoke
            statement = f"invoke(f, {arguments}, **options)"
        else:
            statement = f"f({arguments}, **options)"
        return Contender("csoftmax", statement, names, fills_out=self.writes_out)

    def prepare_torch(self, torch: Any) -> Contender:
        """Raise `LeftOutError`."""
        raise LeftOutError(f"has no {self.case.op}")


def check_row_case(case: Case) -> None:
    """Refuse a loss or sparse softmax in another dtype or along another axis."""
    if case.dtype not in ("float32", "float64") or case.axis not in (-1, len(case.shape) - 1):
        raise LeftOutError("losses and sparse softmax are measured in float32 and float64, along the last axis")


def check_many_class_case(case: Case) -> None:
    """Refuse a problem of very many classes in another dtype or along another axis: these are not read."""
    if case.dtype != "float32" or case.axis not in (-1, len(case.shape) - 1):
        raise LeftOutError(f"{case.op} is measured in float32, along the last axis")


def drawn_type(case: Case) -> type[np.float32] | type[np.float64]:
    """Return the type in which NumPy's generators draw for a case: they support only these two."""
    return np.float64 if case.dtype == "float64" else np.float32


def as_tensor(torch: Any, x: Array) -> Any:
    """Return a tensor on the same memory; NumPy's bfloat16 is passed as its bits."""
    if x.dtype.name == "bfloat16":
        return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(x)
