"""
An Ops class for thinc
======================

The layers of thinc call `ops.softmax` and `ops.backprop_softmax` of their backend.  A subclass of NumpyOps replaces
them by csoftmax's kernels, which are exact in the tails, work along every axis and take a fraction of the time
(`pip install thinc`).
"""

# %%
# The class: thinc's methods in terms of csoftmax's functions.
import time

import numpy as np
import thinc
from sklearn.datasets import load_digits
from thinc.api import Adam, NumpyOps, Relu, Softmax, chain, set_current_ops

import csoftmax


@thinc.registry.ops("csoftmax")
class CsoftmaxOps(NumpyOps):
    name = "csoftmax"

    def softmax(self, x, *, inplace=False, axis=-1, temperature=1.0):
        return csoftmax.softmax(x, axis, temperature=temperature, out=x if inplace else None)

    def backprop_softmax(self, Y, dY, *, axis=-1, temperature=1.0):
        return csoftmax.softmax_vjp(dY, Y, axis, temperature=temperature)

    def softmax_sequences(self, Xs, lengths, *, inplace=False, axis=-1):
        """Softmax down the columns of each sequence; NumpyOps clips logits to 20 instead of subtracting a maximum."""
        result = Xs if inplace else np.empty_like(Xs)
        ends = np.cumsum(lengths)
        for begin, end in zip(ends - lengths, ends):
            csoftmax.softmax(Xs[begin:end], axis=0, out=result[begin:end])
        return result


# %%
# The same numbers, faster.
x = np.random.default_rng(0).normal(scale=5, size=(256, 4000)).astype(np.float32)
ours, theirs = CsoftmaxOps(), NumpyOps()
for name, function in (("softmax", lambda ops: ops.softmax(x)), ("gradient", lambda ops: ops.backprop_softmax(x, x))):
    seconds = []
    for ops in (ours, theirs):
        function(ops)
        begin = time.perf_counter()
        for _ in range(5):
            function(ops)
        seconds.append(time.perf_counter() - begin)
    print(f"{name}: {seconds[1] / seconds[0]:.1f} times as fast as NumpyOps")
exact = csoftmax.softmax(x.astype(np.float64))
for ops in (ours, theirs):
    print(f"{ops.name}: largest relative error {np.max(np.abs(ops.softmax(x) / exact - 1)):.1e}")

# %%
# A model on the new backend: two layers on digits.
set_current_ops(ours)
X, y = load_digits(return_X_y=True)
X = (X / 16).astype(np.float32)
order = np.random.default_rng(0).permutation(len(y))
train, test = order[:1300], order[1300:]
model = chain(Relu(64), Softmax())
model.initialize(X[train], np.eye(10, dtype=np.float32)[y[train]])
optimizer = Adam(0.005)
for _ in range(20):
    for rows in np.array_split(np.random.default_rng(1).permutation(train), 20):
        p, backprop = model.begin_update(X[rows])
        backprop((p - np.eye(10, dtype=np.float32)[y[rows]]) / len(rows))
        model.finish_update(optimizer)
print(f"accuracy on held-out digits: {np.mean(model.predict(X[test]).argmax(axis=1) == y[test]):.3f}")
