"""Hierarchical softmax, which `csoftmax.heads` exports as HierarchicalSoftmax."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..._arguments.foreign import as_native
from ..._arguments.generators import as_generator, restore_states, save_states
from ..._arguments.labels import check_target, raise_bad_label
from ..._arguments.numbers import check_count, check_flag, check_num_threads
from ..._arguments.places import DeviceError, place_of
from ..._ops.row_optimizer import RowOptimizer
from ..._ops.topk import TopK
from .. import store
from ..head_result import HeadResult
from . import loss as losses
from .tree import Tree
from .tree_parts import check_counts, check_integers

if TYPE_CHECKING:
    from typing import Self

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


class HierarchicalSoftmax:
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
        Of the parameters. x is converted to it.
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

    tree: Tree
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
        self.n_features = check_count("n_features", n_features, 1)
        if not isinstance(tree, Tree):
            raise TypeError(f"tree must be a Tree, such as Tree.huffman(counts), got {type(tree).__name__}")
        if np.dtype(dtype) not in FLOATS:
            raise TypeError(f"dtype must be float32 or float64, got {np.dtype(dtype)}")
        if device is not None and place_of(device, None).on_cuda:
            raise DeviceError(f'device is {device!r}, but HierarchicalSoftmax computes on the CPU: device="cpu"')
        has_bias = check_flag("bias", bias)
        self.num_threads = check_num_threads(num_threads)
        nodes = tree.n_classes - 1
        self._set(tree, np.zeros((nodes, self.n_features), dtype), np.zeros(nodes, dtype) if has_bias else None)

    def _set(self, tree: Tree, theta: NDArray[Any], bias: NDArray[Any] | None, frozen: Any = None) -> None:
        self.tree, self._theta, self._bias, self.stats = tree, theta, bias, {}
        self._set_frozen(frozen)

    def _set_frozen(self, frozen: NDArray[np.bool_] | None) -> None:
        self._frozen, self.frozen_nodes = frozen, None
        if frozen is not None and frozen.any():
            # nodes without a class below them that may change, as numbers that the kernels read
            self.frozen_nodes = (self.tree._side_sums((~frozen).astype(np.float64)).sum(axis=1) == 0).astype(np.uint8)

    @classmethod
    def _from_arrays(
        cls, tree: Tree, theta: NDArray[Any], bias: NDArray[Any] | None, frozen: Any = None, num_threads: Any = None
    ) -> Self:
        """A layer of arrays that have been checked."""
        layer = cls.__new__(cls)
        layer.n_features, layer.num_threads = theta.shape[1], num_threads
        layer._set(tree, theta, bias, frozen)
        return layer

    @property
    def theta(self) -> NDArray[Any]:
        """Weights of the nodes, (K - 1, D)."""
        return self._theta

    @property
    def bias(self) -> NDArray[Any] | None:
        """Biases of the nodes, (K - 1,), or None."""
        return self._bias

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the parameters."""
        return self._theta.dtype

    @property
    def frozen(self) -> NDArray[np.bool_] | None:
        """Classes that `freeze` was given, or None."""
        return self._frozen

    @property
    def parameters(self) -> dict[str, NDArray[Any]]:
        """The arrays that training changes: "theta" and, with a bias, "bias"."""
        return {"theta": self._theta} | ({} if self._bias is None else {"bias": self._bias})

    @property
    def n_classes(self) -> int:
        """The number of classes."""
        return self.tree.n_classes

    @property
    def nbytes(self) -> int:
        """Bytes of the parameters and of the tree."""
        shape = self.tree._shape
        of_tree = (self.tree.children, shape.leaf_parent, shape.node_parent, shape.order, shape.depth)
        return sum(int(a.nbytes) for a in (*self.parameters.values(), *of_tree))

    def __repr__(self) -> str:
        return f"<HierarchicalSoftmax: {self.n_features} features, {self.tree!r}, {self.dtype}>"

    # Training

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
        plan = losses.plan_loss(
            self, x, target, weight=weight, sample_weight=sample_weight, ignore_index=ignore_index,
            temperature=temperature, label_smoothing=label_smoothing, reduction=reduction, num_threads=num_threads,
        )  # fmt: skip
        return losses.compute_loss(self, plan)

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
        plan = losses.plan_loss(
            self, x, target, weight=weight, sample_weight=sample_weight, ignore_index=ignore_index,
            temperature=temperature, label_smoothing=label_smoothing, reduction=reduction, upstream=upstream,
            clip_norm=clip_norm, clip_value=clip_value, num_threads=num_threads,
        )  # fmt: skip
        return HeadResult(*losses.compute_gradients(self, plan))

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
        plan = losses.plan_step(self, x, target, sample_weight, None)
        return losses.take_step(self, plan, optimizer, optimizer)

    def freeze(self, classes: ArrayLike | None = None) -> None:
        """Keep what belongs to some classes unchanged: nodes that have only frozen classes below them.

        Parameters
        ----------
        classes : array_like of int, optional
            Classes; None freezes all of them, an empty list none. Replaces what was frozen before.

        Raises
        ------
        IndexError, TypeError
            If an element is no class.
        """
        frozen = np.ones(self.n_classes, bool)
        if classes is not None:
            chosen = check_integers("classes", classes)
            bad = np.flatnonzero((chosen < 0) | (chosen >= self.n_classes))
            if len(bad):
                raise IndexError(f"classes[{bad[0]}] is {chosen[bad[0]]}; classes are 0 to {self.n_classes - 1}")
            frozen[...] = False
            frozen[chosen] = True
        self._set_frozen(frozen if frozen.any() else None)

    def add_classes(self, n: int, counts: ArrayLike | None = None) -> None:
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

        Raises
        ------
        TypeError, ValueError
            If counts do not fit, or the tree has none.

        Examples
        --------
        >>> from csoftmax.heads import HierarchicalSoftmax, Tree
        >>> head = HierarchicalSoftmax(2, Tree.huffman([4, 2, 1]))
        >>> head.add_classes(1, [2])
        >>> head.tree.depths()  # 2 has become a node of 2 and 3
        array([1, 2, 3, 3])
        """
        n = check_count("n", n)
        if counts is not None:
            counts = check_counts("counts", counts) if n or np.size(counts) else None
        if counts is not None and self.tree.counts is None:
            raise ValueError("counts need those of the other classes, which the tree does not have")
        if counts is not None and len(counts) != n:
            raise ValueError(f"counts has {len(counts)} elements, n is {n}")
        if n == 0:
            return
        known = self.n_classes
        tree, split = self.tree._grown(n, counts)
        theta = np.concatenate([self._theta, np.zeros((n, self.n_features), self.dtype)])
        bias = self._bias
        if bias is not None:
            added = np.zeros(n, self.dtype)
            if tree.counts is not None:
                added[...] = np.log((tree.counts[known:] + 0.5) / (tree.counts[split] + 0.5))
            bias = np.concatenate([bias, added])
        frozen = None if self._frozen is None else np.append(self._frozen, np.zeros(n, bool))
        self._set(tree, theta, bias, frozen)

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
        if self._bias is None:
            raise ValueError("the layer has no bias")
        weights = self.tree.counts if counts is None else check_counts("counts", counts)
        if weights is None:
            raise ValueError("counts are missing, and the tree has none")
        if len(weights) != self.n_classes:
            raise ValueError(f"counts has {len(weights)} elements; there are {self.n_classes} classes")
        sides = self.tree._side_sums(weights) + 0.5
        self._bias[...] = np.log(sides[:, 1] / sides[:, 0])

    def _relabel(self, places: NDArray[Any]) -> None:
        """Let class k become class places[k]."""
        frozen = None
        if self._frozen is not None:
            frozen = np.empty(self.n_classes, bool)
            frozen[places] = self._frozen
        self._set(self.tree._relabelled(places), self._theta, self._bias, frozen)

    # Predictions

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
        rows, batch, _ = losses.check_features(self, x)
        threads = check_num_threads(self.num_threads if num_threads is None else num_threads)
        if target is None:
            result: NDArray[np.float64] = losses.compute_log_proba(self, rows, threads)
            return result.reshape(*batch, self.n_classes)
        labels, soft = check_target(as_native(target, "target"), (*batch, self.n_classes), batch, self.dtype)
        if soft is not None:
            raise ValueError("target must hold integer labels, one for each row")
        labels = labels.copy()
        raise_bad_label(labels, self.n_classes, None)
        of_labels = losses.compute_log_proba_of(self, rows, labels.reshape(len(rows)).astype(np.int64), threads)
        return of_labels.reshape(batch)[()]  # type: ignore[no-any-return]

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

    def topk(self, x: ArrayLike, k: SupportsIndex, *, num_threads: SupportsIndex | None = None) -> TopK:
        """The k most probable classes of each row, exactly, by a best-first search.

        Parameters
        ----------
        x : array_like of shape (..., D)
            Features.
        k : int
            From 1 to the number of classes.
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
        rows, batch, _ = losses.check_features(self, x)
        threads = check_num_threads(self.num_threads if num_threads is None else num_threads)
        k = check_count("k", k, 1)
        if k > self.n_classes:
            raise ValueError(f"k must be 1 to {self.n_classes}, the number of classes, got {k}")
        values, indices, evaluated = losses.search(self, rows, k, threads)
        self.stats = {"nodes_mean": float(evaluated.mean()) if len(evaluated) else 0.0}
        return TopK(values.reshape(*batch, k), indices.reshape(*batch, k))

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
        ndarray of int64, shape (..., *size)

        Raises
        ------
        DeviceError, TypeError, ValueError
            If an argument has another device, type or shape, or a logit is NaN.

        Notes
        -----
        Uniform numbers, in C order of the draws, are read for up to 16 levels at a time.
        """
        rows, batch, _ = losses.check_features(self, x)
        threads = check_num_threads(self.num_threads if num_threads is None else num_threads)
        given = size if isinstance(size, tuple) else () if size is None else (size,)
        shape = tuple(check_count("size", n, 0, "an int, a tuple of ints or None") for n in given)
        states = save_states(rng)
        try:
            drawn = losses.draw(self, rows, int(np.prod(shape, dtype=np.int64)), as_generator(rng), threads)
        except BaseException:
            restore_states(states)
            raise
        return drawn.reshape(*batch, *shape)  # type: ignore[no-any-return]

    # Files

    def save(self, path: str | PathLike[str]) -> None:
        """Write the layer and its tree to a safetensors file, which is replaced as a whole or not at all.

        Parameters
        ----------
        path : str or path-like
            File name.

        Raises
        ------
        ValueError
            If the name ends in .npz.
        ImportError
            If safetensors is missing.
        """
        arrays, header = self.tree._contents()
        arrays = arrays | self.parameters
        if self._frozen is not None:
            arrays["frozen"] = self._frozen.astype(np.uint8)
        store.write(path, type(self).__name__, arrays, header)

    @classmethod
    def load(cls, path: str | PathLike[str], *, num_threads: SupportsIndex | None = None) -> Self:
        """Read a layer from a file that `save` has written; nothing in it is executed.

        Parameters
        ----------
        path : str or path-like
            File name.
        num_threads : int, optional
            Upper bound on the number of threads.

        Returns
        -------
        HierarchicalSoftmax

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If the file is damaged, of another class, or holds no tree with its parameters.
        """
        num_threads = check_num_threads(num_threads)
        arrays, header = store.read(path, "HierarchicalSoftmax")
        with store.reading(path):
            tree = Tree._from_contents(arrays, header)
            theta, bias, frozen = check_layer(tree, arrays)
            return cls._from_arrays(tree, theta, bias, frozen, num_threads)


def check_layer(tree: Tree, arrays: dict[str, NDArray[Any]]) -> tuple[Any, Any, Any]:
    """theta, bias and frozen classes in a file, after every check."""
    nodes, theta, bias = tree.n_classes - 1, arrays.get("theta"), arrays.get("bias")
    store.need(theta is not None, "the array theta is missing")
    assert theta is not None
    store.need(
        theta.ndim == 2 and len(theta) == nodes and theta.shape[1] > 0 and theta.dtype in FLOATS,
        f"theta has shape {theta.shape}, dtype {theta.dtype}; the tree has {nodes} nodes",
    )
    if bias is not None:
        store.need(
            bias.shape == (nodes,) and bias.dtype == theta.dtype,
            f"bias has shape {bias.shape}, dtype {bias.dtype}; theta has {theta.shape}, {theta.dtype}",
        )
    frozen = arrays.get("frozen")
    if frozen is not None:
        store.need(frozen.shape == (tree.n_classes,), f"frozen has shape {frozen.shape}")
        frozen = frozen.astype(bool)
    return theta, bias, frozen
