"""Random calls over shards, compared by == with the calls of whole rows."""

import numpy as np

import csoftmax
from csoftmax import distributed
from helpers import assert_same_bits

try:
    import ml_dtypes
except ImportError:  # its type is then not tested, as in all of the tests
    ml_dtypes = None

DTYPES = [np.float32, np.float64, np.float16] + ([] if ml_dtypes is None else [ml_dtypes.bfloat16])
KINDS = [
    "normal", "ties", "constant", "holes", "dominated", "nan", "huge", "empty", "infinite", "sorted", "negative zero",
    "steps",
]  # fmt: skip
OPERATIONS = ["softmax", "log_softmax", "logsumexp", "softmax_vjp", "log_softmax_vjp", "loss", "gradient"]
TEMPERATURES = [1.0, 1.0, 0.5, 2.0, 1e-30, 3.3, 1e-3, 1e20]


def make_rows(rng, kind, shape, dtype):
    x = rng.normal(size=shape) * rng.choice([0.1, 1, 5, 30])
    at = rng.integers(shape[-1])
    if kind == "ties":
        x = np.round(x)
    elif kind == "constant":
        x[:] = 1.5
    elif kind == "holes":
        x[:, ::7] = -np.inf
    elif kind == "dominated":
        x[0, at] = 60
    elif kind == "nan":
        x[0, at] = np.nan
    elif kind == "huge":
        x *= 1e30 if dtype != np.float16 else 1e3
    elif kind == "empty":
        x[0] = -np.inf
    elif kind == "infinite":
        x[0, at] = np.inf
    elif kind == "sorted":
        x = np.sort(x, axis=-1)
    elif kind == "negative zero":
        x[:] = -np.inf
        x[:, at] = -0.0
    elif kind == "steps":
        x -= 3 * (np.arange(shape[-1]) // 4096)
    with np.errstate(all="ignore"):
        return x.astype(dtype)


def make_boundaries(rng, n):
    """Boundaries of up to 12 shards: at multiples of 4096, or anywhere; some shards are empty."""
    count = int(rng.integers(1, 13))
    inner = rng.integers(0, n + 1, count - 1)
    if rng.random() < 0.5:
        inner = np.minimum(n, inner // 4096 * 4096)
    return [0, *sorted(map(int, inner)), n]


def merge_in_a_tree(rng, parts):
    parts = list(parts)
    while len(parts) > 1:
        count = min(len(parts), int(rng.integers(2, 4)))
        chosen = [parts.pop(int(rng.integers(len(parts)))) for _ in range(count)]
        parts.append(distributed.merge(chosen) if rng.random() < 0.5 else distributed.merge(*chosen))
    return distributed.merge(parts[0])


def significant(records):
    """Records without the words of the maximum's power where it is not counted: they are not read."""
    records = records.copy()
    records[..., 8:11] = np.where(records[..., 7:8] > 0, records[..., 8:11], 0)
    return records


class Call:
    """A random call: its arguments for whole rows, and for each shard."""

    def __init__(self, rng, temperatures=False):
        """temperatures: some calls have one for each row."""
        self.operation = str(rng.choice(OPERATIONS))
        dtype = DTYPES[rng.integers(len(DTYPES))]
        self.n = int(rng.choice([rng.integers(1, 4097), rng.integers(4097, 16000), rng.integers(16000, 40000)]))
        self.rows, kind = int(rng.integers(1, 4)), str(rng.choice(KINDS))
        self.x = make_rows(rng, kind, (self.rows, self.n), dtype)
        self.y = self.where = None
        gradient = self.operation.endswith("_vjp")
        limits = [0.0, np.inf] if not gradient and self.operation not in ("loss", "gradient") else []
        self.temperature = float(rng.choice(TEMPERATURES + limits))
        if temperatures and rng.random() < 0.2:
            self.temperature = rng.choice(TEMPERATURES + limits, (self.rows, 1))
        if gradient:
            forward = csoftmax.softmax if self.operation == "softmax_vjp" else csoftmax.log_softmax
            self.y = forward(self.x)
            self.x = make_rows(rng, str(rng.choice(KINDS)), (self.rows, self.n), dtype)
        self.losses = self._make_losses(rng, dtype) if self.operation in ("loss", "gradient") else None
        if self.losses is None and rng.random() < 0.4:
            self.where = rng.random((self.rows, self.n)) < rng.choice([0, 0.001, 0.5])
        self.upstream = 1.0 if rng.random() < 0.5 else rng.normal(size=self.rows)
        self.group_options = self._make_group_options(rng)
        self.boundaries = make_boundaries(rng, self.n)
        self.keep = bool(rng.random() < 0.3)
        self.description = (
            f"{self.operation} {np.dtype(dtype).name} {kind} n={self.n} T={self.temperature} {self.boundaries} "
            f"where={self.where is not None} {sorted(self.losses or ())} {self.group_options}"
        )

    def _make_losses(self, rng, dtype):
        compute = np.float64 if dtype == np.float64 else np.float32
        losses = {"target": rng.integers(0, self.n, self.rows)}
        if rng.random() < 0.2:
            losses["target"][0] = -100
        if rng.random() < 0.3:
            soft = rng.random((self.rows, self.n)) * (rng.random((self.rows, self.n)) < 0.01)
            losses["target"] = soft.astype(compute)
        if rng.random() < 0.4:
            losses["label_smoothing"] = float(rng.choice([0.1, 0.9]))
        if rng.random() < 0.4:
            losses["weight"] = rng.random(self.n) * (rng.random(self.n) < 0.9)
        if rng.random() < 0.3:
            losses["sample_weight"] = rng.random(self.rows) * (rng.random(self.rows) < 0.8)
        if rng.random() < 0.2:
            losses["z_loss"] = 1e-3
        if rng.random() < 0.3:
            losses["softcap"] = float(rng.choice([0.5, 4.0, 30.0, 1e4, 1e-20, 1e20]))
        return losses

    def _make_group_options(self, rng):
        """Options of cross-entropy that only functions over groups have; large factors bring underflows back."""
        options = {"reduction": str(rng.choice(["mean", "sum", "none"]))}
        options["upstream"] = float(rng.choice([1.0, 2.5e7]))
        if rng.random() < 0.3:
            options["clip_norm"] = float(rng.choice([1e-3, 0.5, 10]))
        if rng.random() < 0.2:
            options["clip_value"] = 1e-3
        return options

    def whole(self):
        options = {"temperature": self.temperature}
        with np.errstate(all="ignore"):
            if self.operation == "loss":
                return csoftmax.cross_entropy(self.x, **self.losses, reduction="none", **options)
            if self.operation == "gradient":
                losses = self.losses | {"reduction": "none", "upstream": self.upstream}
                return csoftmax.cross_entropy_with_grad(self.x, **losses, **options).grad
            arrays = (self.x,) if self.y is None else (self.x, self.y)
            return getattr(csoftmax, self.operation)(*arrays, where=self.where, **options)

    def _arguments(self, a, b):
        kinds = {"log_softmax": "log", "logsumexp": "log", "gradient": "loss"}
        arguments = {
            "offset": a,
            "n_classes": self.n,
            "kind": kinds.get(self.operation, self.operation),
            "temperature": self.temperature,
            "keep": self.keep,
        }
        if self.y is not None:
            arguments["y"] = self.y[:, a:b]
        if self.where is not None:
            arguments["where"] = self.where[:, a:b]
        if self.losses is not None:
            arguments |= self.losses
            if "weight" in self.losses:
                arguments["weight"] = self.losses["weight"][a:b]
            if self.losses["target"].ndim == 2:
                arguments["target"] = self.losses["target"][:, a:b]
        return arguments

    @property
    def shards(self):
        return list(zip(self.boundaries, self.boundaries[1:], strict=False))

    def check(self, rng):
        expected, got = self.whole(), self.over_shards(rng)
        assert_same_bits(np.asarray(got), np.asarray(expected), self.description)

    def over_shards(self, rng):
        row_max = None
        for _ in range(2):
            parts = [
                distributed.partial(self.x[:, a:b], row_max=row_max, **self._arguments(a, b)) for a, b in self.shards
            ]
            merged, again = merge_in_a_tree(rng, parts), merge_in_a_tree(rng, parts)
            if merged.records is not None:
                assert_same_bits(significant(again.records), significant(merged.records), self.description)
            if (row_max := merged.second_round) is None:
                break
        results = [
            self._finish(self.x[:, a:b], None if self.y is None else self.y[:, a:b], part, merged)
            for (a, b), part in zip(self.shards, parts, strict=True)
        ]
        if self.operation in ("loss", "logsumexp"):
            for result in results:
                assert_same_bits(np.asarray(result), np.asarray(results[0]), self.description)
            return results[0]
        return np.concatenate(results, axis=1)

    def over_group(self, group, rank=None):
        """The shard of this rank, by the function of the group that has the name of the operation."""
        a, b = self.shards[group.rank if rank is None else rank]
        if self.losses is not None:
            losses = {k: v[a:b] if k == "weight" else v for k, v in self.losses.items()}
            if losses["target"].ndim == 2:
                losses["target"] = losses["target"][:, a:b]
            losses |= {"temperature": self.temperature, **self.group_options}
            if self.operation == "loss":
                losses = {k: v for k, v in losses.items() if k not in ("upstream", "clip_norm", "clip_value")}
                return distributed.cross_entropy(self.x[:, a:b], group=group, **losses)
            return distributed.cross_entropy_with_grad(self.x[:, a:b], group=group, **losses)
        arrays = [self.x[:, a:b]] if self.y is None else [self.x[:, a:b], self.y[:, a:b]]
        where = None if self.where is None else self.where[:, a:b]
        function = getattr(distributed, self.operation)
        return function(*arrays, group=group, temperature=self.temperature, where=where)

    def check_over_group(self, results):
        """Compare what the ranks have returned with the call of whole rows."""
        for result in results:
            if isinstance(result, Exception):
                raise AssertionError(self.description) from result
        if self.operation in ("loss", "gradient"):
            losses = self.losses | {"temperature": self.temperature} | self.group_options
            with np.errstate(all="ignore"):
                expected = csoftmax.cross_entropy_with_grad(self.x, **losses)
            for result in results:
                loss = np.asarray(result if self.operation == "loss" else result.loss)
                assert_same_bits(loss, np.asarray(expected.loss), self.description)
            if self.operation == "gradient":
                gradient = np.concatenate([result.grad for result in results], axis=1)
                assert_same_bits(gradient, expected.grad, self.description)
            return
        expected = self.whole()
        for result in results if self.operation == "logsumexp" else []:
            assert_same_bits(np.asarray(result), np.asarray(expected), self.description)
        if self.operation != "logsumexp":
            assert_same_bits(np.concatenate(results, axis=1), expected, self.description)

    def _finish(self, x, y, part, merged):
        if self.operation == "logsumexp":
            return distributed.finish_logsumexp(x, part, merged)
        if self.operation == "loss":
            return distributed.finish_loss(x, part, merged)
        if self.operation == "gradient":
            return distributed.finish_gradient(x, part, merged, upstream=self.upstream)
        if y is not None:
            return distributed.finish_vjp(x, y, part, merged)
        return getattr(distributed, f"finish_{self.operation}")(x, part, merged)
