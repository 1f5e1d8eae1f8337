"""Gradients that touch few rows of a matrix, and their addition in place."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._arguments.foreign import accept_foreign, tell_written
from .._arguments.numbers import as_number, check_count
from .._arguments.places import as_array
from .._arguments.recorded import hand_over_recorded
from .._cpu import binding
from .._cpu.dtypes import as_buffer, dtype_code

if TYPE_CHECKING:
    from scipy.sparse import csr_array

__all__ = ["RowGradient", "add_rows"]


class RowGradient(NamedTuple):
    """A gradient that is 0 outside a few rows of a matrix, or outside a few elements of a vector.

    Parameters
    ----------
    rows : ndarray of int64 of shape (R,)
        The rows, ascending, each once.
    values : ndarray of shape (R, D), or (R,) for a vector
        Their gradients.

    Examples
    --------
    >>> import numpy as np
    >>> import csoftmax
    >>> gradient = csoftmax.RowGradient(np.array([0, 2]), np.array([[1.0, 2.0], [3.0, 4.0]]))
    >>> gradient.to_dense(4)
    array([[1., 2.],
           [0., 0.],
           [3., 4.],
           [0., 0.]])
    """

    rows: NDArray[np.int64]
    values: NDArray[Any]

    def to_dense(self, n: int) -> Any:
        """Return the gradient as an array of n rows.

        Parameters
        ----------
        n : int
            Number of rows of the array, greater than the last row that has a gradient.

        Returns
        -------
        ndarray of shape (n, D), or (n,) for a vector
            The gradient, in the dtype of the values; 0 in the other rows.

        Raises
        ------
        TypeError, ValueError
            If n is not an int, or not greater than the last row.

        Examples
        --------
        >>> import numpy as np
        >>> import csoftmax
        >>> csoftmax.RowGradient(np.array([1]), np.array([[5.0, 6.0]])).to_dense(3)
        array([[0., 0.],
               [5., 6.],
               [0., 0.]])
        """
        return _to_dense(self.values, self.rows, self._checked(n))

    def to_csr(self, n: int) -> csr_array:
        """Return the gradient as a sparse matrix of SciPy with n rows; a vector becomes one column.

        Parameters
        ----------
        n : int
            Number of rows of the matrix, greater than the last row that has a gradient.

        Returns
        -------
        scipy.sparse.csr_array of shape (n, D), or (n, 1) for a vector
            The gradient, with all values of its rows stored, zeros too. The values are copied.

        Raises
        ------
        ImportError
            If SciPy is not installed.
        TypeError, ValueError
            If n is not an int, or not greater than the last row.

        Examples
        --------
        >>> import numpy as np
        >>> import csoftmax
        >>> matrix = csoftmax.RowGradient(np.array([1]), np.array([[5.0, 6.0]])).to_csr(1000)
        >>> matrix.shape, matrix.nnz
        ((1000, 2), 2)
        """
        from scipy.sparse import csr_array

        n = self._checked(n)
        rows, values = np.asarray(self.rows), np.asarray(self.values)
        values = values.reshape(len(rows), math.prod(values.shape[1:]))
        width = values.shape[1]
        lengths = np.zeros(n + 1, np.int64)
        lengths[rows + 1] = width
        columns = np.tile(np.arange(width), len(rows))
        return csr_array((values.ravel(), columns, np.cumsum(lengths)), shape=(n, width))

    def _checked(self, n: Any) -> int:
        n = check_count("n", n)
        if len(self.rows) and n <= self.rows[-1]:
            raise ValueError(f"n must be greater than the last row, {self.rows[-1]}, got {n}")
        return n


@accept_foreign
def _to_dense(values: Any, rows: Any, n: int) -> Any:
    values = as_array("values", values)
    dense = np.zeros((n, *values.shape[1:]), values.dtype)
    dense[rows] = values
    return dense


@hand_over_recorded
def add_rows(w: NDArray[Any], g: RowGradient, scale: float = 1.0) -> NDArray[Any]:
    """Add a gradient of rows to an array in place: ``w[g.rows] += scale * g.values``.

    Parameters
    ----------
    w : ndarray of shape (K, D) or (K,)
        Changed in place; float16, bfloat16, float32 or float64.
    g : RowGradient
        Its values have the dtype of w, and its rows are rows of w.
    scale : float, default 1.0
        Factor, such as the negative learning rate.

    Returns
    -------
    ndarray
        w itself.

    Raises
    ------
    IndexError
        If a row is not one of w.
    TypeError, ValueError
        If w is not a writable array of a float dtype, or dtypes or shapes do not agree.

    Notes
    -----
    Products and sums are each rounded, as NumPy does it; those of half types are computed in float32 and rounded once.
    Other rows are neither read nor written.

    Examples
    --------
    >>> import numpy as np
    >>> import csoftmax
    >>> w = np.zeros((3, 2))
    >>> csoftmax.add_rows(w, csoftmax.RowGradient(np.array([1]), np.array([[1.0, 2.0]])), -0.5)
    array([[ 0. ,  0. ],
           [-0.5, -1. ],
           [ 0. ,  0. ]])
    """
    if not isinstance(g, RowGradient):
        raise TypeError(f"g must be a RowGradient, got {type(g).__name__}")
    _add_rows(w, g.rows, g.values, scale)
    tell_written(w)
    return w


@accept_foreign
def _add_rows(w: Any, rows: Any, values: Any, scale: Any) -> None:
    scale = as_number("scale", scale)
    rows, values = as_array("g.rows", rows), as_array("g.values", values)
    if rows.dtype.kind not in "iu":
        raise TypeError(f"g.rows must hold integers, got dtype {rows.dtype}")
    _check_rows(w, rows, values)
    matrix = w if w.ndim == 2 else w[:, None]
    rows = np.ascontiguousarray(rows, np.int64)
    values = np.ascontiguousarray(apart_from(values, w)).reshape(len(rows), matrix.shape[1])
    is_ordinary = matrix.flags.aligned and (matrix.shape[1] <= 1 or matrix.strides[1] == matrix.itemsize)
    to = matrix if is_ordinary else matrix[rows]
    at = rows if is_ordinary else np.arange(len(rows))
    if to.size:
        binding.run_row_add(dtype_code(w.dtype), at, as_buffer(values), scale, as_buffer(to), None)
    if not is_ordinary:
        matrix[rows] = to


def apart_from(values: Any, w: Any) -> Any:
    """Values that changes of w do not reach: a copy, if they may share its memory."""
    return values.copy() if np.may_share_memory(values, w) else values


def _check_rows(w: Any, rows: Any, values: Any) -> None:
    if not isinstance(w, np.ndarray) or w.dtype.name not in binding.DTYPES:
        kind = f"an array of {w.dtype}" if isinstance(w, np.ndarray) else type(w).__name__
        raise TypeError(f"w must be a NumPy array of float16, bfloat16, float32 or float64, got {kind}")
    if not w.flags.writeable:
        raise ValueError("w is read-only; a writable array is needed")
    if w.ndim not in (1, 2) or values.shape != (len(rows), *w.shape[1:]):
        raise ValueError(f"w has shape {w.shape}, g has {len(rows)} rows and values of shape {values.shape}")
    if values.dtype != w.dtype:
        raise TypeError(f"g holds {values.dtype}, w {w.dtype}: they must be the same")
    if len(rows) and not (rows[0] >= 0 and rows[-1] < len(w) and np.all(rows[1:] > rows[:-1])):
        bad = rows[(rows < 0) | (rows >= len(w))]
        if len(bad):
            raise IndexError(f"g has row {bad[0]}: w has rows 0 to {len(w) - 1}")
        raise ValueError("the rows of g must be ascending, each once")
