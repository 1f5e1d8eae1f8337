"""Hierarchical softmax, which `csoftmax.heads` exports as HierarchicalSoftmax."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..._arguments.foreign import as_native
from ..._arguments.generators import as_generator, restore_states, save_states
from ..._arguments.labels import check_target, raise_bad_label
from ..._arguments.layers import check_float_dtype
from ..._arguments.methods import accept_foreign_features
from ..._arguments.numbers import check_count, check_draws, check_flag, check_num_threads
from ..._arguments.places import DeviceError, parse_device
from ..._ops.row_optimizer import RowOptimizer
from ..._ops.topk import TopK
from ..head_result import HeadResult
from ..layer_file import StoredLayer
from ..store import Arrays
from . import loss as losses
from .state import Parts, check_layer, log_odds, make_parts, refuse_others
from .tree import Tree, shape_of
from .tree_parts import check_counts, check_integers, shrink_counts

if TYPE_CHECKING:
    from typing import Self


class HierarchicalSoftmax(StoredLayer):
    """An output layer whose probability of a class is a product of decisions down a tree.

    Node n of the tree has the logit ``u_n = theta[n] @ x + bias[n]`` and goes to its side 1 with the probability
    sigma(u_n), to side 0 with sigma(-u_n). The probability of a class is the product along its path, so that
    probabilities sum to 1 without a sum over all classes, and the cost of a training example is that of the depth of
    its label: about log2 K nodes instead of K (Morin & Bengio 2005; Mnih & Hinton 2009; Mikolov et al. 2013).

    Parameters
    ----------
    n_features : int
        D, the length of x.
    tree : Tree
        A `csoftmax.heads.Tree`, such as ``Tree.huffman(counts)``.
    bias : bool, default True
        Whether nodes have a bias.
    dtype : {float32, float64}, default float32
        The dtype of the parameters, to which x is converted.
    device : {None, "cpu"}, optional
        The layer is on the CPU.
    num_threads : int, optional
        Upper bound on the number of threads.

    Attributes
    ----------
    tree : Tree
        The tree; `add_classes` replaces it.
    theta : ndarray, shape (K - 1, D)
        Weights of the nodes, changed in place by `step`; 0 at the start.
    bias : ndarray, shape (K - 1,), or None
        Their biases; 0 at the start.
    frozen : ndarray of bool, shape (K,), or None
        Classes that `freeze` was given.
    stats : dict
        "nodes_mean": the number of nodes that the last `topk` or `predict` evaluated, on average over its rows.

    Notes
    -----
    All methods give the same bits for every number of threads, batch and instruction set. Products are computed in the
    dtype, decisions and their sums along a path in float64, without a table and without a limit: a log-probability is
    within 4 ULP of the exact sum for the logits. Log-probabilities are float64 whatever the dtype. Losses take
    `weight`, `sample_weight`, `ignore_index`, `reduction`, `upstream` and the clips as `csoftmax.cross_entropy` does;
    clips apply to the derivatives by the logits on a row's path.

    Examples
    --------
    >>> import numpy as np
    >>> from csoftmax.heads import HierarchicalSoftmax, RowOptimizer, Tree
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((500, 4), np.float32)
    >>> y = (x[:, 0] > 0) * 2 + (x[:, 1] > 0)
    >>> head = HierarchicalSoftmax(4, Tree.huffman(np.bincount(y)))
    >>> optimizer = RowOptimizer("rowwise_adagrad", 0.3)
    >>> before = head.loss(x, y)
    >>> for _ in range(50):
    ...     loss, grad_x = head.step(x, y, optimizer)
    >>> bool(loss < before / 4)
    True
    >>> bool((head.predict(x) == y).mean() > 0.95)
    True
    >>> bool(abs(np.exp(head.log_proba(x)).sum(axis=1) - 1).max() < 1e-6)
    True
    """

    stats: dict[str, float]

    def __init__(
        self,
        n_features: int,
        tree: Tree,
        *,
        bias: bool = True,
        dtype: Any = np.float32,
        device: str | None = None,
        num_threads: SupportsIndex | None = None,
    ) -> None:
        features = check_count("n_features", n_features, 1)
        if not isinstance(tree, Tree):
            raise TypeError(f"tree must be a Tree, such as Tree.huffman(counts), got {type(tree).__name__}")
        dtype = check_float_dtype(dtype)
        if device is not None and parse_device(device)[0] == "cuda":
            raise DeviceError(f'device is {device!r}, but HierarchicalSoftmax computes on the CPU: device="cpu"')
        has_bias = check_flag("bias", bias)
        threads, nodes = check_num_threads(num_threads), tree.n_classes - 1
        bias_of_nodes = np.zeros(nodes, dtype) if has_bias else None
        self._parts = make_parts(tree, np.zeros((nodes, features), dtype), bias_of_nodes, num_threads=threads)
        self.stats = {}

    @classmethod
    def _from_arrays(
        cls, tree: Tree, theta: NDArray[Any], bias: NDArray[Any] | None, frozen: Any = None, num_threads: Any = None
    ) -> Self:
        """A layer of arrays that have been checked."""
        layer = cls.__new__(cls)
        layer._parts, layer.stats = make_parts(tree, theta, bias, frozen, num_threads), {}
        return layer

    def _own(self) -> Parts:
        """Replace parameters that are read-only, such as memory maps of a file, by copies."""
        owned = {name: a if a.flags.writeable else a.copy() for name, a in self.parameters.items()}
        self._parts = self._parts._replace(theta=owned["theta"], bias=owned.get("bias"))
        return self._parts

    @property
    def tree(self) -> Tree:
        """The tree; `add_classes` replaces it."""
        return self._parts.tree

    @property
    def n_features(self) -> int:
        """D, the number of features."""
        return self._parts.n_features

    @property
    def num_threads(self) -> int | None:
        """Upper bound on the number of threads, or None."""
        return self._parts.num_threads

    @num_threads.setter
    def num_threads(self, value: SupportsIndex | None) -> None:
        self._parts = self._parts._replace(num_threads=check_num_threads(value))

    @property
    def theta(self) -> NDArray[Any]:
        """Weights of the nodes, (K - 1, D)."""
        return self._parts.theta

    @property
    def bias(self) -> NDArray[Any] | None:
        """Biases of the nodes, (K - 1,), or None."""
        return self._parts.bias

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the parameters."""
        return self._parts.dtype

    @property
    def frozen(self) -> NDArray[np.bool_] | None:
        """Classes that `freeze` was given, or None."""
        return self._parts.frozen

    @property
    def parameters(self) -> dict[str, NDArray[Any]]:
        """The arrays that training changes: "theta" and, with a bias, "bias"; in a new dict."""
        parts = self._parts
        return {"theta": parts.theta} | ({} if parts.bias is None else {"bias": parts.bias})

    @property
    def n_classes(self) -> int:
        """The number of classes."""
        return self.tree.n_classes

    @property
    def nbytes(self) -> int:
        """Bytes of the parameters and of the tree."""
        shape = shape_of(self.tree)
        of_tree = (self.tree.children, shape.leaf_parent, shape.node_parent, shape.order, shape.depth)
        return sum(int(a.nbytes) for a in (*self.parameters.values(), *of_tree))

    def __repr__(self) -> str:
        return f"<HierarchicalSoftmax: {self.n_features} features, {self.tree!r}, {self.dtype}>"

    # Training

    @accept_foreign_features
    def loss(
        self,
        x: ArrayLike,
        target: ArrayLike,
        *,
        weight: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        ignore_index: SupportsIndex = -100,
        temperature: float = 1.0,
        label_smoothing: float = 0.0,
        reduction: Literal["none", "sum", "mean"] = "mean",
        num_threads: SupportsIndex | None = None,
    ) -> Any:
        """Negative log-probability of the labels, a sum of terms that are at least 0.

        Parameters
        ----------
        x : array_like of shape (..., D)
            Features.
        target : array_like of int of shape (...)
            Labels.
        weight, sample_weight, ignore_index, reduction
            As in `csoftmax.cross_entropy`.
        temperature : float > 0, default 1.0
            Divides the logits of the nodes.
        label_smoothing : 0, default 0.0
            Refused otherwise: it needs all classes.
        num_threads : int, optional
            Upper bound on the number of threads; default: that of the layer.

        Returns
        -------
        scalar, or ndarray of the shape of the rows with reduction "none"
            In the dtype of the layer.

        Raises
        ------
        IndexError
            If a label is no class.
        DeviceError
            If an array is on a CUDA device.
        TypeError, ValueError
            If an argument has another type, shape or range, and for soft labels, which need all classes.
        """
        parts = self._parts
        plan = losses.plan_loss(
            parts, x, target, weight=weight, sample_weight=sample_weight, ignore_index=ignore_index,
            temperature=temperature, label_smoothing=label_smoothing, reduction=reduction, num_threads=num_threads,
        )  # fmt: skip
        return losses.compute_loss(parts, plan)

    @accept_foreign_features
    def loss_with_grad(
        self,
        x: ArrayLike,
        target: ArrayLike,
        *,
        weight: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        ignore_index: SupportsIndex = -100,
        temperature: float = 1.0,
        label_smoothing: float = 0.0,
        reduction: Literal["none", "sum", "mean"] = "mean",
        upstream: ArrayLike = 1.0,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        num_threads: SupportsIndex | None = None,
    ) -> HeadResult:
        """The loss and its gradients, which touch only the nodes on the paths of the labels.

        Parameters
        ----------
        x, target, weight, sample_weight, ignore_index, temperature, label_smoothing, reduction, num_threads
            As in `loss`.
        upstream, clip_norm, clip_value
            As in `csoftmax.cross_entropy_with_grad`; clips apply to the derivatives by the logits on a row's path.

        Returns
        -------
        HeadResult
            loss; grad_x, of the shape and dtype of x; gradients, {"theta": RowGradient, "bias": RowGradient} of the
            same rows. Frozen nodes are left out.

        Raises
        ------
        IndexError, DeviceError, TypeError, ValueError
            As in `loss`.

        Examples
        --------
        >>> from csoftmax.heads import HierarchicalSoftmax, Tree
        >>> head = HierarchicalSoftmax(2, Tree.huffman([4, 2, 1]))
        >>> result = head.loss_with_grad([[1.0, 2.0]], [0])
        >>> result.gradients["theta"].rows, result.gradients["theta"].values
        (array([0]), array([[-0.5, -1. ]], dtype=float32))
        """
        parts = self._parts
        plan = losses.plan_loss(
            parts, x, target, weight=weight, sample_weight=sample_weight, ignore_index=ignore_index,
            temperature=temperature, label_smoothing=label_smoothing, reduction=reduction, upstream=upstream,
            clip_norm=clip_norm, clip_value=clip_value, num_threads=num_threads,
        )  # fmt: skip
        return HeadResult(*losses.compute_gradients(parts, plan))

    @accept_foreign_features
    def step(
        self, x: ArrayLike, target: ArrayLike, optimizer: RowOptimizer, *, sample_weight: ArrayLike | None = None
    ) -> tuple[Any, Any]:
        """Take one step of training on a minibatch; gradients of the parameters are used where they are computed.

        Parameters
        ----------
        x, target, sample_weight
            As in `loss`; rows whose label is -100 take no part. The loss is the mean.
        optimizer : RowOptimizer
            Keeps its state under "theta" and "bias"; the bias does not decay.

        Returns
        -------
        loss : scalar
            Before the step.
        grad_x : ndarray of the shape of x
            Gradient of the features, of the loss before the step: train what they come from with it.

        Raises
        ------
        IndexError, DeviceError, TypeError, ValueError
            As in `loss`; nothing has changed then, nor after KeyboardInterrupt or MemoryError.

        Notes
        -----
        The parameters become what `loss_with_grad` and `RowOptimizer.update` would make of them, bit for bit.
        """
        if not isinstance(optimizer, RowOptimizer):
            raise TypeError(f"optimizer must be a RowOptimizer, got {type(optimizer).__name__}")
        parts = self._own()
        plan = losses.plan_step(parts, x, target, sample_weight, None)
        return losses.take_step(parts, plan, optimizer, optimizer)

    def freeze(self, classes: ArrayLike | None = None) -> Self:
        """Keep what belongs to some classes unchanged: nodes that have only frozen classes below them.

        Parameters
        ----------
        classes : array_like of int, optional
            Classes; None freezes all of them, an empty list none. Replaces what was frozen before.

        Returns
        -------
        self

        Raises
        ------
        IndexError, TypeError
            If an element is no class.
        """
        parts = self._parts
        k = parts.n_classes
        frozen = np.ones(k, bool)
        if classes is not None:
            chosen = check_integers("classes", classes)
            bad = np.flatnonzero((chosen < 0) | (chosen >= k))
            if len(bad):
                raise IndexError(f"classes[{bad[0]}] is {chosen[bad[0]]}; classes are 0 to {k - 1}")
            frozen[...] = False
            frozen[chosen] = True
        self._parts = parts.with_frozen(frozen)
        return self

    def add_classes(self, n: SupportsIndex, counts: ArrayLike | None = None) -> Self:
        """Add classes, whose numbers follow the others': each splits the leaf of a class that there is.

        The leaf with the lowest count becomes a node of its class and the new one; without counts in the tree, the
        shallowest leaf, of these the one of the lowest class. The node has a theta of 0 and, where the tree has counts,
        a bias of ``log((new + 0.5) / (old + 0.5))``; the probabilities of all other classes stay as they are. An
        optimiser needs `RowOptimizer.forget` afterwards.

        Parameters
        ----------
        n : int
            How many.
        counts : array_like of shape (n,), optional
            Their counts, comparable to those of the tree; default: 0.

        Returns
        -------
        self

        Raises
        ------
        TypeError, ValueError
            If counts do not fit, or the tree has none.

        Examples
        --------
        >>> from csoftmax.heads import HierarchicalSoftmax, Tree
        >>> head = HierarchicalSoftmax(2, Tree.huffman([4, 2, 1]))
        >>> head.add_classes(1, [2]).tree.depths()  # 2 has become a node of 2 and 3
        array([1, 2, 3, 3])
        """
        n, added = check_count("n", n), None
        if counts is not None:
            added = check_counts("counts", counts) if n or np.size(counts) else None
        if added is not None and self.tree.counts is None:
            raise ValueError("counts need those of the other classes, which the tree does not have")
        if added is not None and len(added) != n:
            raise ValueError(f"counts has {len(added)} elements, n is {n}")
        return self._grow(n, added, self.tree) if n else self

    def _grow(self, n: int, counts: NDArray[np.float64] | None, tree: Tree) -> Self:
        """Add n classes to the layer; tree: its own, or the same with other counts."""
        parts = self._parts
        known = parts.n_classes
        tree, split = tree._grown(n, counts)
        theta = np.concatenate([parts.theta, np.zeros((n, parts.n_features), parts.dtype)])
        bias = parts.bias
        if bias is not None:
            added = np.zeros(n, parts.dtype)
            if tree.counts is not None:
                added[...] = log_odds(tree.counts[known:], tree.counts[split])
            bias = np.concatenate([bias, added])
        frozen = None if parts.frozen is None else np.append(parts.frozen, np.zeros(n, bool))
        self._parts, self.stats = make_parts(tree, theta, bias, frozen, parts.num_threads), {}
        return self

    def set_log_prior(self, counts: ArrayLike | None = None) -> None:
        """Set the bias so that, with a theta of 0, the probabilities are the frequencies of the classes.

        Parameters
        ----------
        counts : array_like of shape (K,), optional
            How frequent each class is; default: the counts of the tree. Half a count is added to both sides of each
            node, so that none has the probability 0.

        Raises
        ------
        TypeError, ValueError
            If the layer has no bias, or counts are missing or do not fit.

        Examples
        --------
        >>> import numpy as np
        >>> from csoftmax.heads import HierarchicalSoftmax, Tree
        >>> head = HierarchicalSoftmax(2, Tree.huffman([500, 300, 200]))
        >>> head.set_log_prior()
        >>> np.exp(head.log_proba([0.0, 0.0])).round(2)
        array([0.5, 0.3, 0.2])
        """
        parts = self._parts
        if parts.bias is None:
            raise ValueError("the layer has no bias")
        weights = parts.tree.counts if counts is None else check_counts("counts", counts)
        if weights is None:
            raise ValueError("counts are missing, and the tree has none")
        if len(weights) != parts.n_classes:
            raise ValueError(f"counts has {len(weights)} elements; there are {parts.n_classes} classes")
        shrunk = shrink_counts(weights)
        sides, half = parts.tree._side_sums(shrunk), 0.5
        if shrunk is not weights:
            half *= float(shrunk.max() / weights.max())
        parts = self._own()
        assert parts.bias is not None
        parts.bias[...] = log_odds(sides[:, 1], sides[:, 0], half)

    def _relabel(self, places: NDArray[Any]) -> None:
        """Let class k become class places[k]."""
        parts, frozen = self._parts, None
        if parts.frozen is not None:
            frozen = np.empty(parts.n_classes, bool)
            frozen[places] = parts.frozen
        self._parts = make_parts(parts.tree._relabelled(places), parts.theta, parts.bias, frozen, parts.num_threads)

    # Predictions

    @accept_foreign_features
    def log_proba(
        self, x: ArrayLike, target: ArrayLike | None = None, *, num_threads: SupportsIndex | None = None
    ) -> NDArray[np.float64]:
        """Log-probabilities of all classes, or of a given one for each row.

        Parameters
        ----------
        x : array_like of shape (..., D)
            Features.
        target : array_like of int of shape (...), optional
            One class for each row. Only the nodes on its path are evaluated.
        num_threads : int, optional
            Upper bound on the number of threads; default: that of the layer.

        Returns
        -------
        ndarray of float64, shape (..., K), or (...) with a target
            The same bits for a class either way.

        Raises
        ------
        IndexError
            If a label is no class.
        DeviceError, TypeError, ValueError
            If an argument has another device, type or shape.
        """
        parts = self._parts
        rows, batch, _ = losses.check_features(parts, x)
        threads = check_num_threads(parts.num_threads if num_threads is None else num_threads)
        if target is None:
            result: NDArray[np.float64] = losses.compute_log_proba(parts, rows, threads)
            return result.reshape(*batch, parts.n_classes)
        labels, soft = check_target(as_native(target, "target"), (*batch, parts.n_classes), batch, parts.dtype)
        if soft is not None:
            raise ValueError("target must hold integer labels, one for each row")
        labels = labels.copy()
        raise_bad_label(labels, parts.n_classes, None)
        of_labels = losses.compute_log_proba_of(parts, rows, labels.reshape(len(rows)).astype(np.int64), threads)
        return of_labels.reshape(batch)[()]  # type: ignore[no-any-return]

    @accept_foreign_features
    def predict(self, x: ArrayLike, *, num_threads: SupportsIndex | None = None) -> NDArray[np.int64]:
        """The most probable class of each row; of equally probable ones the lowest.

        Parameters
        ----------
        x : array_like of shape (..., D)
            Features.
        num_threads : int, optional
            Upper bound on the number of threads; default: that of the layer.

        Returns
        -------
        ndarray of int64, shape (...)

        Raises
        ------
        DeviceError, TypeError, ValueError
            If x has another device, type or shape.
        """
        return self.topk(x, 1, num_threads=num_threads).indices[..., 0]  # type: ignore[no-any-return]

    @accept_foreign_features
    def topk(self, x: ArrayLike, k: SupportsIndex, *, num_threads: SupportsIndex | None = None) -> TopK:
        """The k most probable classes of each row, exactly, by a best-first search.

        Parameters
        ----------
        x : array_like of shape (..., D)
            Features.
        k : int
            From 0 to the number of classes.
        num_threads : int, optional
            Upper bound on the number of threads; default: that of the layer.

        Returns
        -------
        TopK
            values, log-probabilities in float64 in descending order, and indices; each of the shape (..., k). Of equal
            values the lowest classes, in order. NaN comes last, with -inf.

        Raises
        ------
        DeviceError, TypeError, ValueError
            If x has another device, type or shape, or k is out of range.

        Notes
        -----
        The log-probability of a path bounds those of all classes below its end, so that the search ends when the k-th
        class that it has found is no worse than the best open path. `stats` has the number of nodes evaluated.
        """
        parts = self._parts
        rows, batch, _ = losses.check_features(parts, x)
        threads = check_num_threads(parts.num_threads if num_threads is None else num_threads)
        k = check_count("k", k)
        if k > parts.n_classes:
            raise ValueError(f"k must be at most {parts.n_classes}, the number of classes, got {k}")
        values, indices, evaluated = losses.search(parts, rows, k, threads)
        self.stats = {"nodes_mean": float(evaluated.mean()) if len(evaluated) else 0.0}
        return TopK(values.reshape(*batch, k), indices.reshape(*batch, k))

    @accept_foreign_features
    def sample(
        self,
        x: ArrayLike,
        size: SupportsIndex | tuple[int, ...] | None = None,
        rng: Any = None,
        *,
        num_threads: SupportsIndex | None = None,
    ) -> NDArray[np.int64]:
        """Draw classes from their probabilities, by a decision at each node on the way down.

        Parameters
        ----------
        x : array_like of shape (..., D)
            Features.
        size : int or tuple of ints, optional
            Draws from each row; default: one, without an axis of its own.
        rng : None, int, SeedSequence or numpy.random.Generator, optional
            Source of random numbers. A call that fails leaves it as it was.
        num_threads : int, optional
            Upper bound on the number of threads; default: that of the layer.

        Returns
        -------
        ndarray of int64, shape (..., *size), or a scalar

        Raises
        ------
        DeviceError, TypeError, ValueError
            If an argument has another device, type or shape, or a logit is NaN.

        Notes
        -----
        Uniform numbers, in C order of the draws, are read for up to 16 levels at a time, for up to 2**18 draws. The
        memory beside the result is that of one such part.
        """
        parts = self._parts
        rows, batch, _ = losses.check_features(parts, x)
        threads = check_num_threads(parts.num_threads if num_threads is None else num_threads)
        shape = check_draws(size)
        states = save_states(rng)
        try:
            drawn: NDArray[np.int64] = losses.draw(parts, rows, math.prod(shape), as_generator(rng), threads)
            return drawn.reshape((*batch, *shape))[()]  # of one row and one draw a scalar
        except BaseException:
            restore_states(states)
            raise

    # Files

    def _contents(self) -> tuple[Arrays, dict[str, Any]]:
        parts = self._parts
        arrays, header = parts.tree._contents()
        if parts.frozen is not None:
            arrays["frozen"] = parts.frozen.astype(np.uint8)
        return arrays | self.parameters, header

    @classmethod
    def _from_contents(cls, arrays: Arrays, header: dict[str, Any]) -> Self:
        refuse_others(arrays, ("children", "counts", "theta", "bias", "frozen"))
        tree = Tree._from_contents(arrays, header)
        return cls._from_arrays(tree, *check_layer(tree, arrays))
