"""Parameters of an adaptive softmax: how they begin, which of them an optimiser moves, and how classes are added."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..._ops.row_optimizer import check_state
from ..._ops.rows import RowGradient
from ..messages import show
from .classes import Classes, make_classes
from .cutoffs import count_features

if TYPE_CHECKING:
    from typing import Self

    from ..._ops.row_optimizer import RowOptimizer


class LayerState:
    """Parameters by name, the order of the classes, their counts, and which of them are frozen."""

    _classes: Classes
    div_value: float
    _parameters: dict[str, NDArray[Any]]
    _frozen: NDArray[np.bool_] | None
    _counts: NDArray[np.float64] | None
    num_threads: int | None

    @property
    def parameters(self) -> dict[str, NDArray[Any]]:
        """The arrays that training changes, by name; in a new dict."""
        return dict(self._parameters)

    @property
    def classes(self) -> Classes:
        """The order of the classes, and where clusters begin."""
        return self._classes

    @property
    def frozen(self) -> NDArray[np.bool_] | None:
        """Which classes are frozen, (K,), or None."""
        return self._frozen

    @property
    def n_features(self) -> int:
        """The number of features, D."""
        return int(self.parameters["head"].shape[1])

    @property
    def n_classes(self) -> int:
        """The number of classes, K."""
        return self.classes.n

    @property
    def cutoffs(self) -> list[int]:
        """The ranks at which clusters begin."""
        return list(self.classes.cutoffs)

    @property
    def order(self) -> NDArray[np.int64]:
        """The classes by rank, most frequent first; a copy."""
        return self.classes.order.astype(np.int64)

    @property
    def counts(self) -> NDArray[np.float64] | None:
        """The counts of the constructor, or None."""
        return self._counts

    @property
    def has_bias(self) -> bool:
        """Whether the head has a bias."""
        return "head_bias" in self.parameters

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the parameters."""
        return self.parameters["head"].dtype

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__}: {self.n_features} features, {self.n_classes} classes, cutoffs "
            f"{show(self.cutoffs)}, {self.dtype}>"
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the parameters."""
        return sum(int(a.nbytes) for a in self.parameters.values())

    def _begin(self, parameters: dict[str, NDArray[Any]], classes: Classes, div_value: float) -> None:
        self._parameters, self._classes, self.div_value = parameters, classes, div_value
        self._counts = None
        self._frozen, self.num_threads = None, None

    @classmethod
    def _of(cls, parameters: dict[str, NDArray[Any]], classes: Classes, div_value: float) -> Self:
        """A layer of parameters that have been checked."""
        layer = cls.__new__(cls)
        layer._begin(parameters, classes, div_value)
        return layer

    def _update(self, gradients: dict[str, Any], weights: RowOptimizer, biases: RowOptimizer) -> None:
        """Let the optimisers move the parameters, except those of frozen classes."""
        self._own()
        optimizers = {name: biases if name == "head_bias" else weights for name in gradients}
        for (
            name,
            optimizer,
        ) in optimizers.items():  # all before the first update, so that a refused step changes nothing
            check_state(optimizer, name, self._parameters[name])
        for name, gradient in gradients.items():
            rows = self._find_free_rows(name)
            if rows is not None:
                gradient = RowGradient(rows, gradient[rows])
            optimizers[name].update(name, self._parameters[name], gradient)

    def _decay(self, weights: RowOptimizer) -> None:
        """Apply the weight decay that is due to all parameters but the bias."""
        for name, a in self.parameters.items():
            if name != "head_bias":
                weights.apply_decay(name, a, self._find_free_rows(name))

    def _own(self) -> None:
        """Replace parameters that are read-only, such as memory maps of a file, by copies."""
        if not all(a.flags.writeable for a in self._parameters.values()):
            owned = {name: a if a.flags.writeable else a.copy() for name, a in self._parameters.items()}
            self._parameters = owned

    def _find_free_rows(self, name: str) -> NDArray[np.intp] | None:
        """The rows of a parameter that are not frozen; None for all."""
        given, classes = self._frozen, self._classes
        if given is None:
            return None
        frozen = given[classes.order]
        if name.startswith("head"):
            whole = [bool(frozen[ranks].all()) for ranks in classes.clusters]
            return np.flatnonzero(~np.concatenate([frozen[: classes.shortlist], np.array(whole, bool)]))
        ranks = classes.clusters[int(name.removeprefix("projection").removeprefix("tail"))]
        if name.startswith("tail"):
            return np.flatnonzero(~frozen[ranks])
        return np.arange(0 if frozen[ranks].all() else len(self._parameters[name]))

    def _insert(self, n: int, places: NDArray[np.intp], added: NDArray[np.float64] | None) -> None:
        """Make room for n classes in all; places: numbers of those so far; added: counts of the others, in order."""
        is_new = np.ones(n, bool)
        is_new[places] = False
        new, more = np.flatnonzero(is_new), n - len(places)
        counts, frozen = self._counts, self._frozen
        if counts is not None:
            wide = np.zeros(n)
            wide[places], wide[is_new] = counts, 0 if added is None else added
            counts = wide
        if frozen is not None:
            mask = np.zeros(n, bool)
            mask[places] = frozen
            frozen = mask
        old, last = self._parameters, len(self.classes.cutoffs) - 1
        parameters = dict(old)
        grown = "head" if last < 0 else f"tail{last}"
        parameters[grown] = np.concatenate([old[grown], np.zeros((more, old[grown].shape[1]), self.dtype)])
        if last < 0 and self.has_bias:
            bias: Any = np.full(more, old["head_bias"].min())
            if added is not None and counts is not None:
                with np.errstate(divide="ignore"):
                    share = np.log(added / counts.sum())
                bias = np.where(added > 0, share, bias)
            parameters["head_bias"] = np.concatenate([old["head_bias"], bias.astype(self.dtype)])
        order = np.concatenate([np.asarray(places)[self.classes.order], new])
        self._classes = make_classes(order, self._classes.cutoffs)
        self._parameters, self._counts, self._frozen = parameters, counts, frozen


def make_parameters(
    classes: Classes,
    features: int,
    div_value: float,
    has_bias: bool,
    dtype: np.dtype[Any],
    is_zero: bool,
    generator: np.random.Generator,
) -> dict[str, NDArray[Any]]:
    """The parameters at the start; random numbers are drawn layer by layer, in the order of the parameters."""

    def fill(rows: int, columns: int, *, random: bool) -> NDArray[Any]:
        if not random:
            return np.zeros((rows, columns), dtype)
        a: NDArray[Any] = generator.random((rows, columns), dtype.type)
        a -= dtype.type(0.5)
        a *= dtype.type(2 * np.sqrt(6 / (rows + columns)))
        return a

    rows = classes.shortlist + len(classes.cutoffs)
    parameters = {"head": fill(rows, features, random=not is_zero)}
    if has_bias:
        parameters["head_bias"] = np.zeros(rows, dtype)
    for c, ranks in enumerate(classes.clusters):
        width = count_features(features, div_value, c)
        parameters[f"projection{c}"] = fill(width, features, random=True)
        parameters[f"tail{c}"] = fill(ranks.stop - ranks.start, width, random=not is_zero)
    return parameters
