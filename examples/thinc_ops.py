"""
An Ops class for thinc
======================

The layers of thinc call `ops.softmax` and `ops.backprop_softmax` of their backend.  A subclass of NumpyOps replaces
them by csoftmax's kernels, which are exact in the tails, work along every axis and take a fraction of the time.  Needs:
`pip install 'csoftmax[learn]' thinc`.
"""

# %%
# The class: thinc's methods in terms of csoftmax's functions.
import time

try:
    import matplotlib.pyplot as plt
    import numpy as np
    import thinc
    from sklearn.datasets import load_digits
    from thinc.api import Adam, NumpyOps, Relu, Softmax, chain, set_current_ops
    from tqdm import tqdm

    import csoftmax
except ImportError as error:
    raise SystemExit(f"{error}; this example needs: pip install 'csoftmax[learn]' thinc") from None


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
# The same numbers, faster and closer to the true ones, here those of NumPy in long double.
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
exact = x.astype(np.longdouble)
exact = np.exp(exact - exact.max(axis=1, keepdims=True))
exact /= exact.sum(axis=1, keepdims=True)
errors = {ops.name: np.abs(ops.softmax(x) / exact - 1).astype(float) for ops in (ours, theirs)}
for name, error in errors.items():
    print(f"{name}: largest relative error {error.max():.1e}")

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
for _ in tqdm(range(20), desc="epochs", disable=None):
    for rows in np.array_split(np.random.default_rng(1).permutation(train), 20):
        p, backprop = model.begin_update(X[rows])
        backprop((p - np.eye(10, dtype=np.float32)[y[rows]]) / len(rows))
        model.finish_update(optimizer)
print(f"accuracy on held-out digits: {np.mean(model.predict(X[test]).argmax(axis=1) == y[test]):.3f}")

# %%
# The relative error over the probability: NumpyOps rounds the difference to the maximum to float32, so that its error
# grows in the tails.
plt.style.use("csoftmax.style")
fig, ax = plt.subplots()
shown = np.random.default_rng(0).choice(x.size, 4000, replace=False)
for name, label, style in (("numpy", "NumpyOps", "C1."), ("csoftmax", "CsoftmaxOps", "C0.")):
    ax.plot(exact.ravel()[shown], 1e6 * errors[name].ravel()[shown], style, markersize=2.5, label=label)
ax.set(xlabel="probability", ylabel="relative error in millionths", xscale="log", ylim=0)
ax.set_title("Error of softmax in float32")
ax.legend(markerscale=4)
plt.show()
