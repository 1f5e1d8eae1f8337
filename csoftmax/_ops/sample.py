HEAD


def sample(
    logits,
    *,
    axis=-1,
    temperature=1.0,
    top_k=None,
    top_p=None,
    min_p=None,
    size=None,
    rng=None,
    where=None,
    out=None,
    device=None,
    num_threads=None,
):
    """Draw classes from rows of logits.

    Temperature, top-k, top-p and min-p are applied in this order, each to what the one before left; ties at a boundary
    go to the lowest index. Each of them is a number, or has one for each row.

    Parameters
    ----------
    logits : array_like of shape (..., K)
        In one of the dtypes of `softmax`; K is the length of `axis`.
    axis : int, tuple of ints or None, default -1
        Of the classes.
    temperature : float or array_like, broadcastable to the rows, default 1.0
        T >= 0; 0 takes the largest logit.
    top_k : int or array_like of int, optional
        At least 1: only the k largest logits take part.
    top_p : float or array_like, optional
        In (0, 1]: only the smallest set of most probable classes whose mass is at least top_p (Holtzman et al. 2020).
    min_p : float or array_like, optional
        In [0, 1]: only classes with at least min_p times the probability of the most probable one (Nguyen et al. 2025).
    size : int or tuple of ints, optional
        How many draws from each row; None is one, without an axis of its own.
    rng : None, int or numpy.random.Generator
        Source of the uniform numbers, or its seed.
    where : array_like of bool, broadcastable to logits, optional
        Classes where it is False are never drawn.
    out : ndarray of int64 of the shape of the result, optional
        Where to write.
    device, num_threads
        As in `softmax`.

    Returns
    -------
    ndarray of int64, or a scalar for one row and no size
        Of the shape of the rows, then `size`. Of CuPy logits a CuPy array.

    Raises
    ------
    ValueError
        For a parameter out of its range, and for a row without mass: it holds NaN or +inf, or nothing but -inf.
    TypeError, DeviceError, MemoryError
        As in `softmax`.

    Notes
    -----
    Every draw takes one number u of ``rng.random``, in C order of the result, and is the first class at which the sum
    of the probabilities exceeds u: of all classes in the order of their indices; if `top_k` or `top_p` selects, in
    falling order of the logits. So the same generator gives the same draws whatever the number of threads, the
    layout of the logits, the instruction set or the device. A CuPy array's draws are a CuPy array. The call waits for
    the device: parameters that lie there are copied, and rows without mass raise.

    Examples
    --------
    >>> import numpy as np
    >>> import csoftmax
    >>> logits = np.log(np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]]))
    >>> csoftmax.sample(logits, size=5, rng=0)
    array([[0, 0, 0, 0, 1],
           [2, 2, 2, 2, 2]])
    >>> csoftmax.sample(logits, temperature=[1.0, 0.0], top_k=2, rng=0)
    array([0, 2])
    """
    return _sample(
        logits,
        axis,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        size=size,
        rng=rng,
        where=where,
        out=out,
        device=device,
        num_threads=num_threads,
    )



class SamplePlan(NamedTuple):
    """What a backend's run_sample takes, and what the caller gets."""

    dtype: int
    x: np.ndarray
    uniform: np.ndarray
    where: np.ndarray | None
    temperature: np.ndarray
    top_k: np.ndarray | None
    top_p: np.ndarray | None
    min_p: np.ndarray | None
    num_threads: int | None
    shape: tuple
    out: np.ndarray | None
    place: Place

    def run(self):
        if self.place.number is not None:
            with self.place.context():
                return self.finish(self.run_on_device())
        indices = np.empty(self.uniform.shape, np.int64)
        if not _cpu.run_sample(self.dtype, bits(self.x), self.uniform, indices, *self[3:9]):
            x = self.x.astype(np.float64)
            if self.where is not None:
                x = np.where(self.where, x, -np.inf)
            most = np.max(x, axis=-1, initial=-np.inf)
            self.raise_without_mass(int(np.argmax(~np.isfinite(most))), most)
        return self.finish(indices)

    def run_on_device(self):
        """The draws, or the error of a row without mass, for which the device is waited for."""
        xp, (*batch, n) = self.place.xp, self.x.shape
        rows, draws = math.prod(batch), self.uniform.shape[-1]
        if rows == 0 or draws == 0:
            return xp.empty((rows, draws), np.int64)
        if n == 0:
            self.raise_without_mass(0, np.full(batch, -np.inf))
        x = bits(self.x if self.where is None else masked(xp, self.where, self.x))
        x = xp.ascontiguousarray(x).reshape(rows, n)
        uniform = self.uniform.reshape(rows, draws)
        parameters = (None if p is None else p.reshape(rows) for p in self[4:8])
        indices, states = _cuda.run_sample(self.dtype, x, uniform, *parameters)
        if np.any(states):
            first = int(np.argmax(states != 0))
            most = np.zeros(batch)
            most.flat[first] = np.max(x[first].get().view(self.x.dtype).astype(np.float64))
            self.raise_without_mass(first, most)
        return indices

    def finish(self, indices):
        indices = indices.reshape(self.shape)
        if self.out is not None:
            self.out[...] = indices
            return self.out
        return indices if self.place.number is not None else indices[()]

    @staticmethod
    def raise_without_mass(row, most):
        """For the first row without mass; most: the largest logits of the rows."""
        at = np.unravel_index(row, most.shape)
        raise ValueError(
            f"logits have no mass to draw from in row ({', '.join(map(str, at))}): it holds "
            f"{'nothing but -inf' if most[at] == -np.inf else 'NaN' if most[at] != most[at] else '+inf'}"
        )


def plan_sample(
    logits,
    axis,
    *,
    temperature,
    top_k,
    top_p,
    min_p,
    size,
    rng,
    where=None,
    out=None,
    device=None,
    num_threads=None,
):
    """Check the arguments of sample, take its uniform numbers, and lay them out."""
    place = place_of(device, logits)
    with place.context():
        return lay_out_sample(
            place, logits, axis, (temperature, top_k, top_p, min_p), size, rng, where, out, num_threads
        )


def lay_out_sample(place, logits, axis, parameters, size, rng, where, out, num_threads):
    x, code = as_float("logits", logits, place)
    axes = normalize_axes(axis, x.ndim)
    mask = None if where is None else check_where(where, x.shape, place)
    if place.number is not None or place.moves:  # the parameters are checked, and few
        parameters = to_host(*parameters)
    temperature, top_k, top_p, min_p = parameters
    if x.ndim == 0:
        x, mask = x.reshape(1), None if mask is None else mask.reshape(1)
    x = axis_last(x, axes)
    mask = None if mask is None else axis_last(mask, axes)
    batch = x.shape[:-1]
    given = size if isinstance(size, tuple) else () if size is None else (size,)
    draws = tuple(check_count("size", n, 0, "an int, a tuple of ints or None") for n in given)
    parameters = (
        check_parameter("temperature", temperature, batch, np.float64, "at least 0", lambda v: v >= 0),
        check_parameter("top_k", top_k, batch, np.int64, "at least 1", lambda v: v >= 1),
        check_parameter(
            "top_p", top_p, batch, np.float64, "greater than 0 and at most 1", lambda v: (v > 0) & (v <= 1)
        ),
        check_parameter("min_p", min_p, batch, np.float64, "at least 0 and at most 1", lambda v: (v >= 0) & (v <= 1)),
    )
    if out is not None:
        check_out(out, batch + draws, np.dtype(np.int64), place)
    try:
        generator = np.random.default_rng(rng)
    except TypeError:
        raise TypeError(f"rng must be None, an int or a numpy.random.Generator, got {rng!r}") from None
    except ValueError:
        raise ValueError(f"rng must be at least 0 where it is an int, got {rng!r}") from None
    uniform = generator.random((*batch, math.prod(draws)))
    return SamplePlan(code, x, uniform, mask, *parameters, num_threads, batch + draws, out, place)

