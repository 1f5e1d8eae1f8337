"""The class of `csoftmax.heads.Int8Head`."""

from __future__ import annotations

import math
import os
from copy import deepcopy
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._arguments.foreign import as_native
from .._arguments.generators import as_generator, restore_states, save_states
from .._arguments.methods import accept_foreign_features
from .._arguments.negatives import as_ids, check_classes
from .._arguments.numbers import (
    check_count,
    check_draws,
    check_flag,
    check_non_negative,
    check_num_threads,
    check_temperature,
)
from .._arguments.places import DeviceError, as_float
from .._cpu import binding
from .._cpu.dtypes import as_buffer
from .._ops import int8
from .._ops.topk import TopK
from . import int8_file
from .int8_intervals import Interval, TopKInterval, bound_best, bound_log_partition, bound_log_proba, check_mass, draw

if TYPE_CHECKING:
    from typing import Self

_Random = Any


class Int8Head:
    """Output layer in 8-bit integers whose top-k is exactly that of the float64 layer, and whose intervals are certain.

    Codes of the weights bound each score ``x @ w[j] + bias[j]``. Classes whose bounds exclude them are dropped; the
    few that are left are scored exactly, from w itself. So results depend neither on the codes nor on threads, batch
    or instruction set: the same classes, values and order of ties as scores in float64 have.

    Parameters
    ----------
    w : array_like of shape (K, D)
        Weights in a dtype of csoftmax; integers become float64. At most 2**31 - 1 classes and 2**18 features.
    bias : array_like of shape (K,), optional
        Bias of the classes; -inf switches a class off.
    limbs : {1, 2}, default 1
        2 stores a second limb of the weights: intervals are 100 to 250 times narrower before any exact score.
    copy : bool, default True
        False keeps a reference to w, such as a memory map, instead of a copy: w must not be changed but by `update`.
    device : {None, "cpu"}, optional
        There are no kernels for CUDA.
    num_threads : int, optional
        Upper bound on the number of threads of all methods.

    Attributes
    ----------
    n_classes, n_features : int
        The shape of w.
    nbytes : int
        Bytes beside w: K (D + 12) and 4 K for the bias; K (2 D + 16) and 4 K with two limbs. D and K count as their
        next multiples of 4 and 16. 8 K more with a bias, and 2 D for the scales of columns. The first single query
        adds K (D / 2 + 1.5), the leading four bits of codes, with D as its next multiple of 8.
    stats : dict
        Counts of the last `topk`, `predict` or `topk_softmax`: "rescored_mean" and "rescored_max", the mean and the
        largest number of exact scores of a query; "exact_scans", the number of queries whose scores were all exact,
        because the bounds were of no use.

    Raises
    ------
    TypeError, ValueError
        If w or bias has another dtype or shape.
    DeviceError
        If w is on a CUDA device, or `device` is one.

    Notes
    -----
    The idea of exact search by bounds of quantised vectors is that of the VA-file (Weber, Schek & Blott 1998).
    Columns of w are scaled by powers of two, so that a channel of large weights does not spoil the codes.

    Examples
    --------
    >>> import numpy as np
    >>> from csoftmax.heads import Int8Head
    >>> w = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, 1.0]], np.float32)
    >>> head = Int8Head(w)
    >>> head.topk([[2.0, 1.0]], 3)
    TopK(values=array([[3., 3., 2.]], dtype=float32), indices=array([[2, 3, 0]]))
    >>> head.topk([[2.0, 1.0]], 1, exclude=([0, 2], [2, 3])).indices
    array([[0]])
    """

    def __init__(
        self,
        w: ArrayLike,
        bias: ArrayLike | None = None,
        *,
        limbs: SupportsIndex = 1,
        copy: bool = True,
        device: str | None = None,
        num_threads: SupportsIndex | None = None,
    ) -> None:
        _check_device(device)
        self.num_threads = check_num_threads(num_threads)
        w = as_native(w, "w")
        weights, dtype = int8.check_weights(w)
        if check_flag("copy", copy) and np.may_share_memory(weights, np.asarray(w)):
            weights = np.array(weights, order="C")
        count = check_count("limbs", limbs, 1)
        if count > 2:
            raise ValueError(f"limbs must be 1 or 2, got {limbs}")
        self._bias = int8.read_bias(bias, len(weights))
        self._w = weights
        layer = int8.quantise(weights, dtype, self._bias, count, self.num_threads)
        self._layer = layer._replace(leading=int8.Leading())
        self.stats: dict[str, float] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy needs; the bits of bfloat16 weights are not an array beside these."""
        return {**self.__dict__, "_layer": self._layer._replace(w=None)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the state of a copy."""
        self.__dict__.update(state)
        self._layer = self._layer._replace(w=as_buffer(self._w))

    def __copy__(self) -> Self:
        """Return a copy that shares nothing: `update` would change shared weights and codes, but not the bias."""
        return deepcopy(self)

    @property
    def n_classes(self) -> int:
        """The number of classes."""
        return self._layer.n_classes

    @property
    def n_features(self) -> int:
        """The number of columns of w."""
        return self._layer.n_features

    @property
    def nbytes(self) -> int:
        """Bytes beside w."""
        bias = None if self._bias is self._layer.exact_bias else self._bias
        return self._layer.nbytes + (0 if bias is None else bias.nbytes)

    def __repr__(self) -> str:
        """Return the shape of the layer."""
        limbs = 1 if self._layer.second is None else 2
        return f"Int8Head({self.n_classes} classes, {self.n_features} features, limbs={limbs})"

    @accept_foreign_features
    def topk(self, x: ArrayLike, k: SupportsIndex, *, where: ArrayLike | None = None, exclude: Any = None) -> TopK:
        """Return the k largest scores of each row, exactly.

        Parameters
        ----------
        x : array_like of shape (..., D)
            Features.
        k : int
            Number of classes, 0 to K.
        where : array_like of bool of shape (K,) or (..., K), optional
            Which classes take part.
        exclude : sparse matrix of shape (N, K), or pair (indptr, ids), optional
            Classes that do not take part, for each of the N rows of x: the stored elements of a matrix of SciPy, or
            ``ids[indptr[i]:indptr[i + 1]]`` for row i.

        Returns
        -------
        TopK
            values (..., k), the scores in float64 rounded to the dtype of w, and indices (..., k), int64: score
            falling, NaN first, of equal scores the lowest index. If fewer than k classes take part, the rest has the
            value -inf, lowest indices first.

        Raises
        ------
        TypeError, ValueError, IndexError
            If an argument has another dtype or shape, or an excluded class does not exist.
        """
        found, batch = self._find(x, k, where, exclude)
        values = int8.round_scores(found.values, self._w.dtype)
        shape = (*batch, values.shape[1])
        return TopK(values.reshape(shape), found.indices.reshape(shape))

    def _find(self, x: Any, k: Any, where: Any = None, exclude: Any = None) -> tuple[int8.Found, tuple[int, ...]]:
        found, batch = int8.find_best(self._layer, x, k, where, exclude, num_threads=self.num_threads)
        rescored = found.rescored
        self.stats = {
            "rescored_mean": float(rescored.mean()) if len(rescored) else 0.0,
            "rescored_max": int(rescored.max(initial=0)),
            "exact_scans": int(found.is_scan.sum()),
        }
        return found, batch

    @accept_foreign_features
    def predict(self, x: ArrayLike) -> Any:
        """Return the class with the largest score of each row, of equal ones the first.

        Parameters
        ----------
        x : array_like of shape (..., D)
            Features.

        Returns
        -------
        ndarray of int64 of the shape of the batch, or a scalar for one row
            Classes.
        """
        found, batch = self._find(x, 1)
        return found.indices.reshape(batch)[()]

    @accept_foreign_features
    def logits(self, x: ArrayLike, ids: ArrayLike) -> NDArray[Any]:
        """Return the exact scores of given classes.

        Parameters
        ----------
        x : array_like of shape (..., D)
            Features.
        ids : array_like of int of shape (m,) or (..., m)
            Classes, the same for all rows or some for each.

        Returns
        -------
        ndarray
            Scores (..., m) in float64, rounded to the dtype of w.

        Raises
        ------
        IndexError
            If a class does not exist.
        TypeError, ValueError
            If an argument has another dtype or shape.
        """
        scores = int8.compute_logits(self._layer, x, ids, self.num_threads)
        return int8.round_scores(scores, self._w.dtype)

    @accept_foreign_features
    def log_partition(self, x: ArrayLike, *, rtol: float = 1e-2, max_exact: SupportsIndex = 4096) -> Interval:
        """Return certain bounds of the logarithm of the partition function, ``log(sum(exp(scores)))``.

        Parameters
        ----------
        x : array_like of shape (..., D)
            Features.
        rtol : float, default 0.01
            Width at which classes cease to be scored exactly; it is that of the logarithm, so about the relative width
            of the partition function.
        max_exact : int, default 4096
            Most classes that are scored exactly. It wins: the interval may then be wider than rtol.

        Returns
        -------
        Interval
            lower and upper, float64, of the shape of the batch. They hold in real arithmetic.

        Notes
        -----
        Takes 32 bytes for each class, and three limbs of x.
        """
        rows, batch = int8.read_queries(self._layer, x)
        found = bound_log_partition(self._layer, rows, *_check_widths(rtol, max_exact), self.num_threads)
        return Interval(*(a.reshape(batch) for a in found))

    @accept_foreign_features
    def topk_softmax(
        self, x: ArrayLike, k: SupportsIndex, *, rtol: float = 1e-2, max_exact: SupportsIndex = 4096
    ) -> TopKInterval:
        """Return the k most probable classes, exactly, and certain bounds of their probabilities.

        Parameters
        ----------
        x : array_like of shape (..., D)
            Features.
        k : int
            Number of classes, 0 to K.
        rtol, max_exact
            As in `log_partition`.

        Returns
        -------
        TopKInterval
            lower and upper (..., k), bounds of the probabilities in the softmax over all classes, and indices (..., k).
        """
        rows, batch = int8.read_queries(self._layer, x)
        widths = _check_widths(rtol, max_exact)
        best = self._find(rows, k)[0].indices
        found = bound_best(self._layer, rows, best, *widths, self.num_threads)
        shape = (*batch, best.shape[1])
        return TopKInterval(found.lower.reshape(shape), found.upper.reshape(shape), best.reshape(shape))

    @accept_foreign_features
    def log_proba(
        self, x: ArrayLike, target: ArrayLike, *, rtol: float = 1e-2, max_exact: SupportsIndex = 4096
    ) -> Interval:
        """Return certain bounds of the log-probabilities of given classes.

        Parameters
        ----------
        x : array_like of shape (..., D)
            Features.
        target : array_like of int, of the shape of the batch
            A class for each row.
        rtol, max_exact
            As in `log_partition`.

        Returns
        -------
        Interval
            lower and upper, float64, of the shape of the batch.

        Raises
        ------
        IndexError
            If a class does not exist.
        """
        rows, batch = int8.read_queries(self._layer, x)
        labels = as_ids("target", as_native(target, "target"))
        if labels.shape != batch:
            raise ValueError(f"target has shape {labels.shape}; {batch} is needed")
        check_classes("target", labels, self.n_classes)
        widths = _check_widths(rtol, max_exact)
        found = bound_log_proba(self._layer, rows, labels.reshape(-1), *widths, self.num_threads)
        return Interval(*(a.reshape(batch) for a in found))

    @accept_foreign_features
    def sample(
        self,
        x: ArrayLike,
        size: SupportsIndex | tuple[SupportsIndex, ...] | None = None,
        *,
        temperature: float = 1.0,
        rng: _Random = None,
    ) -> Any:
        """Draw classes from the softmax of the scores, exactly.

        Parameters
        ----------
        x : array_like of shape (..., D)
            Features.
        size : int or tuple of ints, optional
            Shape of the draws of each row; by default one, without an axis.
        temperature : float, default 1.0
            Divides the scores; 0 gives the class with the largest score, infinity each class whose score is not -inf
            with the same probability.
        rng : None, int, SeedSequence or Generator, optional
            Source of the random numbers.

        Returns
        -------
        ndarray of int64
            Classes, of the shape of the batch, followed by `size`.

        Raises
        ------
        ValueError
            If a row has NaN, +inf or only -inf among its scores.

        Notes
        -----
        A class is proposed from the upper bounds and accepted by its exact score, which is needed only if the uniform
        number falls between the bounds (rejection sampling, von Neumann 1951).
        """
        rows, batch = int8.read_queries(self._layer, x)
        shape = check_draws(size)
        count = math.prod(shape)
        t = check_temperature(temperature, False)
        if t == 0:
            found = self._find(rows, 1)[0]
            for i in range(len(rows) if count else 0):
                check_mass(found.values[i, 0], i)
            best = np.repeat(found.indices, count, axis=1)
        else:
            states = save_states(rng)
            try:
                best = draw(self._layer, rows, count, t, as_generator(rng), self.num_threads)
            except BaseException:
                restore_states(states)
                raise
        return best.reshape((*batch, *shape))[()]

    def update(self, rows: ArrayLike, w_rows: ArrayLike, bias_rows: ArrayLike | None = None) -> None:
        """Replace some rows of w, and their codes.

        Parameters
        ----------
        rows : array_like of int of shape (m,)
            Distinct classes.
        w_rows : array_like of shape (m, D)
            Their new weights, converted to the dtype of w, in which a value beyond its range becomes infinite. They
            are written to w, also where the head keeps a reference to it.
        bias_rows : array_like of shape (m,), optional
            Their new biases; by default these stay.

        Raises
        ------
        ValueError
            If w is read-only, classes occur twice, or shapes do not fit. Nothing is written then.
        IndexError
            If a class does not exist.
        """
        layer, ids = self._layer, as_ids("rows", as_native(rows, "rows"))
        if ids.ndim != 1:
            raise ValueError(f"rows has shape {ids.shape}; (m,) is needed")
        check_classes("rows", ids, layer.n_classes)
        if len(np.unique(ids)) < len(ids):
            raise ValueError("rows must be distinct")
        if not self._w.flags.writeable:
            raise ValueError(
                "w is read-only, such as a memory map of a file: make the head with copy=True, load it with mmap=False"
            )
        new = self._convert("w_rows", w_rows, (len(ids), layer.n_features))
        bias = self._bias
        if bias_rows is not None:
            bias = np.zeros(layer.n_classes) if bias is None else bias.copy()
            changed = int8.read_bias(bias_rows, len(ids), "bias_rows", "w_rows")
            bias[ids] = changed
        if not len(ids):
            return
        limbs = 1 if layer.second is None else 2
        part = int8.quantise(new, layer.dtype, None, limbs, self.num_threads, layer.exponent)
        writable = _with_own_codes(layer)
        # An infinite residual makes the row always exact: whatever is interrupted from here on, results stay right.
        writable.residual[ids] = writable.norm[ids] = np.inf
        if writable.second_residual is not None:
            writable.second_residual[ids] = np.inf
        groups = np.unique(ids // binding.INT8_GROUP)
        leading = layer.leading or int8.Leading()
        leading.forget(groups)
        single, exact = int8.make_biases(bias, layer.n_classes)
        largest = int8.find_largest(np.concatenate((writable.norm, part.norm)), single)
        self._layer = writable._replace(bias=single, exact_bias=exact, largest=largest, is_biased=bias is not None)
        self._bias = bias
        self._w[ids] = new
        _write_rows(self._layer, ids, part)
        leading.renew(self._layer, groups, self.num_threads)

    def add_classes(self, w: ArrayLike, bias: ArrayLike | None = None) -> Self:
        """Add classes behind the others.

        Parameters
        ----------
        w : array_like of shape (m, D)
            Their weights, converted to the dtype of w, in which a value beyond its range becomes infinite. The head
            then keeps a copy of w.
        bias : array_like of shape (m,), optional
            Their biases; 0 by default.

        Returns
        -------
        self
        """
        new = self._convert("w", w, ("m", self.n_features))
        added = int8.read_bias(bias, len(new))
        if not len(new):
            return self
        n, layer = self.n_classes, self._layer
        biases = None
        if added is not None or self._bias is not None:
            parts = (np.zeros(m) if b is None else b for b, m in ((self._bias, n), (added, len(new))))
            biases = np.concatenate(list(parts))
        weights, dtype = int8.check_weights(np.concatenate((self._w, new)))
        grown = int8.empty_layer(weights, dtype, layer.exponent, 1 if layer.second is None else 2)
        for name in ("codes", "second", "scale", "residual", "second_residual", "norm"):
            old = getattr(layer, name)
            if old is not None:
                getattr(grown, name)[: len(old)] = old
        ids = np.arange(n, n + len(new))
        binding.run_int8_quantise(grown, as_buffer(new), ids, self.num_threads)
        self._w, self._bias, self._layer = weights, biases, int8.finish(grown, biases)._replace(leading=int8.Leading())
        return self

    def _convert(self, name: str, given: Any, shape: tuple[int | str, int]) -> Any:
        """Rows in the dtype of w; a shape that begins with a letter allows any number of them."""
        rows = as_float(name, as_native(given, name))[0]
        if rows.ndim != 2 or rows.shape[1] != shape[1] or shape[0] not in ("m", len(rows)):
            raise ValueError(f"{name} has shape {rows.shape}; ({shape[0]}, {shape[1]}) is needed")
        with np.errstate(over="ignore", under="ignore"):
            return np.ascontiguousarray(rows.astype(self._w.dtype))

    def save(self, path: str | os.PathLike[str], *, weights: bool = True) -> None:
        """Write the layer to a safetensors file, with a checksum of each array.

        Parameters
        ----------
        path : str or path-like
            File name.
        weights : bool, default True
            False leaves w out: `load` then needs it.

        Raises
        ------
        ImportError
            If safetensors is missing.
        """
        int8_file.save(self._layer, self._w, self._bias, path, check_flag("weights", weights))

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        w: ArrayLike | None = None,
        *,
        mmap: bool = False,
        verify: bool = True,
        num_threads: SupportsIndex | None = None,
    ) -> Self:
        """Read a layer from a file that `save` has written; nothing in it is executed.

        Parameters
        ----------
        path : str or path-like
            File name.
        w : array_like of shape (K, D), optional
            The weights, in place of those in the file; no copy is made.
        mmap : bool, default False
            Let codes and weights be read-only memory maps of the file, which processes share.
        verify : bool, default True
            Compare the checksums of all arrays, which reads the file once as a whole, and the codes of up to 1,000
            rows of a given w, evenly over its classes. A difference in other rows is not found.
        num_threads : int, optional
            As at the beginning.

        Returns
        -------
        Int8Head
            The layer.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If the file is damaged, not one of this class, has no weights and w is not given, or was made from another
            w.

        Examples
        --------
        >>> import os, tempfile
        >>> from csoftmax.heads import Int8Head
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Int8Head([[1.0, 2.0], [3.0, 4.0]]).save(os.path.join(folder, "head.safetensors"))
        ...     head = Int8Head.load(os.path.join(folder, "head.safetensors"))
        >>> head.predict([[1.0, 1.0]])
        array([1])
        """
        threads = check_num_threads(num_threads)
        layer, weights, bias = int8_file.load(
            path, w, mmap=check_flag("mmap", mmap), verify=check_flag("verify", verify)
        )
        head = cls.__new__(cls)
        head.num_threads, head.stats = threads, {}
        head._layer, head._w, head._bias = layer._replace(leading=int8.Leading()), weights, bias
        return head


def _check_device(device: Any) -> None:
    if device not in (None, "cpu"):
        raise DeviceError(f'Int8Head has no kernels for CUDA: device must be None or "cpu", got {device!r}')


def _check_widths(rtol: Any, max_exact: Any) -> tuple[float, int]:
    return check_non_negative("rtol", rtol), check_count("max_exact", max_exact)


def _with_own_codes(layer: int8.Layer) -> int8.Layer:
    """The layer with codes that can be written, in place of a memory map."""
    if layer.codes.flags.writeable:
        return layer
    return layer._replace(
        codes=int8.copy_codes(layer.codes), second=None if layer.second is None else int8.copy_codes(layer.second)
    )


def _write_rows(layer: int8.Layer, ids: Any, part: int8.Layer) -> None:
    """Copy the codes and numbers of a layer of some classes, those that end the exactness of a row last."""
    group, lane = np.divmod(ids, binding.INT8_GROUP)
    from_group, from_lane = np.divmod(np.arange(len(ids)), binding.INT8_GROUP)
    layer.codes[group, :, lane] = part.codes[from_group, :, from_lane]
    layer.scale[ids] = part.scale[: len(ids)]
    if layer.second is not None and part.second is not None:
        layer.second[group, :, lane] = part.second[from_group, :, from_lane]
    layer.norm[ids] = part.norm[: len(ids)]
    if layer.second_residual is not None and part.second_residual is not None:
        layer.second_residual[ids] = part.second_residual[: len(ids)]
    layer.residual[ids] = part.residual[: len(ids)]
