"""Parameters of a layer over buckets of classes: how they begin, and which of them an optimiser moves."""

from __future__ import annotations

import sys
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..._arguments.generators import as_generator
from ..._arguments.layers import check_float_dtype
from ..._arguments.numbers import check_count, check_flag, check_num_threads
from ..._arguments.places import DeviceError, place_of
from ..._ops.hashed import Rule, as_bits, compute_buckets, draw_family
from ..._ops.row_optimizer import check_state
from ..._ops.rows import RowGradient
from ..store import Arrays

if TYPE_CHECKING:
    from typing import Self

    from ..._ops.row_optimizer import RowOptimizer

MAX_BUCKETS = 2**31 - 1  # places in a table
MAX_CLASSES = 2**63
CONFUSED = 0.1  # probability of two classes with the same buckets, from which the constructor warns


class BucketLayer:
    """A linear layer over buckets, and the hashes that map classes to them."""

    _family: NDArray[np.uint64]  # (3, R)
    _n_classes: int | None
    _n_buckets: int
    _parameters: dict[str, NDArray[Any]]
    _frozen: NDArray[np.bool_] | None
    num_threads: int | None

    def _begin(
        self,
        parameters: dict[str, NDArray[Any]],
        family: NDArray[np.uint64],
        n_classes: int | None,
        n_buckets: int,
        num_threads: int | None,
    ) -> None:
        self._parameters, self._family = parameters, family
        self._n_classes, self._n_buckets = n_classes, n_buckets
        self._frozen, self.num_threads = None, num_threads

    def _begin_new(
        self,
        n_features: Any,
        n_classes: Any,
        n_buckets: Any,
        n_hashes: Any,
        bias: Any,
        dtype: Any,
        rng: Any,
        device: Any,
        num_threads: Any,
    ) -> None:
        """Check the arguments of a constructor, and begin with weights of 0."""
        features = check_count("n_features", n_features, 1)
        classes = None if n_classes is None else check_count("n_classes", n_classes, 1)
        if classes is not None and classes > MAX_CLASSES:
            raise ValueError(f"n_classes must be at most 2**63, got {classes}")
        buckets, hashes = check_count("n_buckets", n_buckets, 2), check_count("n_hashes", n_hashes, 1)
        if buckets > MAX_BUCKETS:
            raise ValueError(f"n_buckets must be at most 2**31 - 1, got {buckets}")
        has_bias, floats = check_flag("bias", bias), check_float_dtype(dtype)
        if isinstance(device, str) and device.startswith("cuda"):
            raise DeviceError(
                f'{type(self).__name__} computes on the CPU only: device must be None or "cpu", got {device!r}'
            )
        place_of(device, None)
        threads, generator = check_num_threads(num_threads), as_generator(rng)
        rows = buckets * self._count_tables(hashes)
        if rows * features * floats.itemsize >= 2**63:
            raise ValueError(f"n_features is {features}, with {rows} rows of weights: they do not fit into memory")
        parameters = {"w": np.zeros((rows, features), floats)}
        if has_bias:
            parameters["bias"] = np.zeros(rows, floats)
        self._begin(parameters, draw_family(generator, hashes), classes, buckets, threads)

    @property
    def parameters(self) -> dict[str, NDArray[Any]]:
        """The arrays that training changes, by name; in a new dict."""
        return dict(self._parameters)

    @property
    def frozen(self) -> NDArray[np.bool_] | None:
        """Which rows of the parameters are frozen, read-only, or None: see `freeze`."""
        return None if self._frozen is None else as_read_only(self._frozen)

    @property
    def n_features(self) -> int:
        """The number of features, D."""
        return int(self._parameters["w"].shape[1])

    @property
    def n_classes(self) -> int | None:
        """The number of classes, K, or None where each 64-bit integer is a class."""
        return self._n_classes

    @property
    def n_buckets(self) -> int:
        """The number of buckets, B."""
        return self._n_buckets

    @property
    def n_hashes(self) -> int:
        """The number of hashes."""
        return int(self._family.shape[1])

    @property
    def has_bias(self) -> bool:
        """Whether there is a bias."""
        return "bias" in self._parameters

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the parameters."""
        return self._parameters["w"].dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the parameters."""
        return sum(int(a.nbytes) for a in self._parameters.values())

    @property
    def _tables(self) -> int:
        """The number of softmaxes over the buckets."""
        return len(self._parameters["w"]) // self._n_buckets

    def __repr__(self) -> str:
        classes = "any" if self.n_classes is None else self.n_classes
        return (
            f"<{type(self).__name__}: {self.n_features} features, {classes} classes, {self.n_buckets} buckets, "
            f"{self.n_hashes} hashes, {self.dtype}>"
        )

    def buckets(self, ids: Any) -> NDArray[np.int64]:
        """The buckets of classes under each hash.

        Parameters
        ----------
        ids : array_like of int
            Classes.

        Returns
        -------
        ndarray of int64 of the shape of ids, with the number of hashes as one axis more

        Raises
        ------
        TypeError
            If ids are not integers.

        Examples
        --------
        >>> from csoftmax.heads import HashedSoftmax, hash_buckets
        >>> layer = HashedSoftmax(8, n_buckets=100, n_hashes=3, rng=0)
        >>> bool((layer.buckets([5, -1]) == hash_buckets([5, -1], 100, 3, seed=0)).all())
        True
        """
        given = as_bits(ids)
        return self._find_buckets(given.reshape(-1)).reshape(*given.shape, self.n_hashes)

    def _find_buckets(self, ids: NDArray[Any]) -> NDArray[np.int64]:
        return compute_buckets(self._family, self._n_buckets, ids, self.num_threads)

    def _find_rows(self, ids: NDArray[Any]) -> NDArray[np.int64]:
        """The rows of the parameters that belong to classes, (n, R)."""
        buckets = self._find_buckets(ids)
        if self._tables > 1:
            buckets += np.arange(self._tables) * self._n_buckets
        return buckets

    def _make_tables(self, logits: NDArray[Any], num_threads: int | None) -> NDArray[Any]:
        """The numbers of the buckets that make scores, from their logits (n, T, B), which may be overwritten."""
        raise NotImplementedError

    def _make_rule(self) -> Rule:
        """How they make scores."""
        raise NotImplementedError

    @staticmethod
    def _count_tables(hashes: int) -> int:
        """The number of softmaxes of a layer with so many hashes."""
        raise NotImplementedError

    def _describe(self) -> tuple[Arrays, dict[str, Any]]:
        """Arrays and entries of a file that other layers do not have."""
        raise NotImplementedError

    def _restore(self, arrays: Arrays, header: dict[str, Any]) -> None:
        """Invert `_describe`, in the context of `store.reading`."""
        raise NotImplementedError

    # Training

    def freeze(self, classes: Any = None) -> Self:
        """Keep the parameters of the buckets of some classes unchanged in all later steps.

        Other classes of these buckets share the parameters. Probabilities can change, by other buckets.

        Parameters
        ----------
        classes : array_like of int, optional
            None freezes all buckets, an empty list unfreezes all of them.

        Returns
        -------
        self

        Raises
        ------
        IndexError
            If a class does not exist.
        TypeError
            If classes are not integers.
        """
        rows = np.ones(len(self._parameters["w"]), bool)
        if classes is None:
            self._frozen = rows
            return self
        given = np.atleast_1d(as_bits(classes, "classes")).reshape(-1)
        check_known("classes", given, self.n_classes)
        rows[:] = False
        rows[self._find_rows(given).reshape(-1)] = True
        self._frozen = rows if given.size else None
        return self

    def _grow(self, more: int) -> None:
        """Add classes; without a number of classes there is nothing to do."""
        if self._n_classes is None:
            return
        if self._n_classes + more > MAX_CLASSES:
            raise ValueError(f"n must leave at most 2**63 classes, got {more} to be added to {self._n_classes}")
        self._n_classes += more

    def _update(self, gradients: dict[str, Any], weights: RowOptimizer, biases: RowOptimizer) -> None:
        """Let the optimisers move the parameters, except frozen rows."""
        self._own()
        optimizers = {name: biases if name == "bias" else weights for name in gradients}
        for name, optimizer in optimizers.items():  # all before the first: a refused step changes nothing
            check_state(optimizer, name, self._parameters[name])
        free = self._find_free_rows()
        for name, gradient in gradients.items():
            if free is not None:
                gradient = RowGradient(free, gradient[free])
            optimizers[name].update(name, self._parameters[name], gradient)

    def _decay(self, weights: RowOptimizer) -> None:
        """Apply the weight decay that is due to the weights."""
        weights.apply_decay("w", self._parameters["w"], self._find_free_rows())

    def _find_free_rows(self) -> NDArray[np.intp] | None:
        return None if self._frozen is None else np.flatnonzero(~self._frozen)

    def _own(self) -> None:
        """Replace parameters that are read-only, such as memory maps of a file, by copies."""
        if not all(a.flags.writeable for a in self._parameters.values()):
            owned = {name: a if a.flags.writeable else a.copy() for name, a in self._parameters.items()}
            self._parameters = owned


def check_known(name: str, ids: NDArray[Any], n_classes: int | None) -> None:
    """Refuse numbers that are no class."""
    if n_classes is None or not ids.size:
        return
    bad = ids >= n_classes
    if ids.dtype.kind == "i":
        bad |= ids < 0
    if bad.any():
        at = np.unravel_index(int(bad.argmax()), ids.shape)
        raise IndexError(f"{name}[{', '.join(map(str, at))}] is {ids[at]}: the classes are 0 to {n_classes - 1}")


def as_read_only(a: NDArray[Any]) -> NDArray[Any]:
    """A view that cannot be written to: what depends on the array would not notice."""
    view = a.view()
    view.flags.writeable = False
    return view


def _find_caller() -> int:
    """The stacklevel of a warning of the calling function that names the caller of csoftmax, also through `fit`."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] in (
        "csoftmax",
        "sklearn",
    ):
        frame, level = frame.f_back, level + 1
    return level


def warn_if_confused(n_classes: int | None, n_buckets: int, n_hashes: int) -> None:
    """Warn where so few buckets and hashes leave two classes with the same buckets, with a probability of 0.1."""
    if n_classes is None or n_classes == 1:
        return
    needed = int(np.ceil(2 * np.log(n_classes / np.sqrt(CONFUSED)) / np.log(n_buckets)))
    if n_hashes < needed:
        warnings.warn(
            f"n_hashes is {n_hashes}, but with {n_buckets} buckets it takes {needed} to tell all {n_classes} classes "
            f"apart with a probability of {1 - CONFUSED}; add hashes or buckets",
            UserWarning,
            stacklevel=_find_caller(),
        )
