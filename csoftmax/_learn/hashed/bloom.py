"""`BloomSoftmax`, which `csoftmax.heads` exports."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from ..._arguments.numbers import check_count
from ..._ops.hashed import Rule
from ..._ops.softmax import log_softmax
from ..store import Arrays, need
from .layer import HashedLayer

if TYPE_CHECKING:
    from typing import Self


class BloomSoftmax(HashedLayer):
    """Softmax over buckets, in which a class has several: Bloom embeddings of labels.

    Each class has `n_hashes` buckets of one softmax over `n_buckets` of them. Training takes them for soft labels of
    equal parts; the score of a class is the sum of the log-probabilities of its buckets (Serrà & Karatzoglou 2017).
    The layer has no array with a row for each class, and classes may be any 64-bit integers.

    Parameters
    ----------
    n_features : int
        D, the number of features.
    n_classes : int, optional
        K, the number of classes; None: every 64-bit integer is a class, and predictions are among given classes.
    n_buckets : int
        B, from 2 to 2**31 - 1.
    n_hashes : int, default 4
        Buckets of a class; they may coincide.
    bias : bool, default True
        Whether the logits have a bias.
    dtype : float32 or float64, default float32
        The dtype of the parameters and of the logits. Features of other dtypes are converted.
    rng : int, SeedSequence or numpy.random.Generator, optional
        Source of the hashes, as `seed` of `hash_buckets`. Weights begin as 0.
    device : {None, "cpu"}, optional
        Computations are on the CPU.
    num_threads : int, optional
        Upper bound on csoftmax's threads.

    Raises
    ------
    TypeError, ValueError, DeviceError
        The message names the argument, its value and what is allowed.

    Attributes
    ----------
    parameters : dict of str to ndarray
        "w" of shape (B, D) and "bias" of shape (B,). `step` changes them in place.
    n_features, n_classes, n_buckets, n_hashes, nbytes : int
        D, K or None, B, the number of hashes, and the bytes of the parameters.
    frozen : ndarray of bool of shape (B,), or None
        Which rows of the parameters are frozen.

    Examples
    --------
    >>> import numpy as np
    >>> from csoftmax.heads import BloomSoftmax, RowOptimizer
    >>> rng = np.random.default_rng(0)
    >>> x, y = np.eye(8, dtype=np.float32), rng.integers(0, 1000, 8)
    >>> layer, optimizer = BloomSoftmax(8, 1000, n_buckets=256, rng=0), RowOptimizer()
    >>> losses = [float(layer.step(x, y, optimizer)[0]) for _ in range(100)]
    >>> losses[-1] < losses[0]
    True
    >>> bool((layer.predict(x) == y).all())
    True
    """

    def __init__(
        self,
        n_features: SupportsIndex,
        n_classes: SupportsIndex | None = None,
        *,
        n_buckets: SupportsIndex,
        n_hashes: SupportsIndex = 4,
        bias: bool = True,
        dtype: Any = np.float32,
        rng: Any = None,
        device: str | None = None,
        num_threads: SupportsIndex | None = None,
    ) -> None:
        self._begin_new(n_features, n_classes, n_buckets, n_hashes, bias, dtype, rng, device, num_threads)

    def add_classes(self, n: SupportsIndex, counts: None = None) -> Self:
        """Add classes with the numbers K, K + 1, ...; they have buckets already.

        Parameters
        ----------
        n : int
            Number of new classes. Does nothing without a number of classes.
        counts : None, default None
            The layer has no counts: the argument is that of the other layers, and must be None.

        Returns
        -------
        self

        Raises
        ------
        TypeError, ValueError
            If n is no count, or too large; if there are counts.

        Examples
        --------
        >>> from csoftmax.heads import BloomSoftmax
        >>> BloomSoftmax(8, 100, n_buckets=32, rng=0).add_classes(5).n_classes
        105
        """
        more = check_count("n", n)
        if counts is not None:
            raise ValueError("counts need those of the other classes, which the layer does not have")
        self._grow(more)
        return self

    @staticmethod
    def _count_tables(hashes: int) -> int:
        return 1

    def _make_tables(self, logits: NDArray[Any], num_threads: int | None) -> NDArray[Any]:
        return log_softmax(logits, out=logits, num_threads=num_threads)  # type: ignore[no-any-return]

    def _make_rule(self) -> Rule:
        return Rule()

    def _describe(self) -> tuple[Arrays, dict[str, Any]]:
        return {}, {}

    def _restore(self, arrays: Arrays, header: dict[str, Any]) -> None:
        need(not arrays, f"there are arrays that do not belong to it: {sorted(arrays)}")
