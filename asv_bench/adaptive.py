"""Adaptive softmax beside PyTorch's: time of training and of predictions, one thread, and whether the answers agree.

    pip install torch threadpoolctl
    python asv_bench/adaptive.py [--rounds 7] [--classes 200000]
    python asv_bench/adaptive.py --layers

Both have the same parameters, those that ``torch.nn.AdaptiveLogSoftmaxWithLoss(div_value=4, head_bias=True)`` draws.
Labels are drawn by 1 / (rank + 1). Predictions are for 512 rows: with the clusters' logits far below the others, with
the bias of the clusters shifted until a cluster has the largest logit of the head in half of the rows, and further,
until half of the predicted classes lie in a cluster. Times are CPU times, the least of the rounds, in which the two
take turns. The answers agree where the predicted classes are the same in every row, and the gradients to 1e-4 of their
largest element, in float32. --layers measures single layers, and fits the constants of
`csoftmax/_learn/adaptive/cutoffs.py`.
"""

import argparse
import functools
import os
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

import csoftmax
from csoftmax.heads import AdaptiveSoftmax

SHAPES = ((200_000, 256, 512, [4_000, 40_000]), (1_000_000, 128, 256, [10_000, 100_000]))
PREDICTED_ROWS = 512


def measure(rounds, *functions):
    """The least CPU time of each function, in milliseconds."""
    least = [np.inf] * len(functions)
    for _ in range(rounds):
        for i, function in enumerate(functions):
            begin = time.process_time()
            function()
            least[i] = min(least[i], time.process_time() - begin)
    return [1e3 * t for t in least]


def say(what, times, agrees):
    theirs, ours = times
    print(f"| {what} | {theirs:.1f} | {ours:.1f} | {theirs / ours:.2f} | {'yes' if agrees else 'NO'} |", flush=True)


def compare_training(torch, module, layer, x, y, name, rounds):
    tx, ty = torch.from_numpy(x).requires_grad_(), torch.from_numpy(y)

    def train():
        module.zero_grad(set_to_none=True)
        tx.grad = None
        loss = module(tx, ty).loss
        loss.backward()
        return loss.detach()

    def forward():
        with torch.no_grad():
            return module(tx, ty).loss

    loss, result = train(), layer.loss_with_grad(x, y)
    given = {"head": module.head.weight.grad, "head_bias": module.head.bias.grad}
    for c, tail in enumerate(module.tail):
        given |= {f"projection{c}": tail[0].weight.grad, f"tail{c}": tail[1].weight.grad}
    pairs = [(tx.grad, result.grad_x), *((g, result.gradients[k]) for k, g in given.items())]
    agrees = abs(float(loss) - result.loss) < 1e-5 * float(loss) and all(
        np.abs(g.numpy() - ours).max() <= 1e-4 * np.abs(ours).max() for g, ours in pairs
    )
    say(f"{name}, forward and backward", measure(rounds, train, lambda: layer.loss_with_grad(x, y)), agrees)
    say(f"{name}, forward", measure(rounds, forward, lambda: layer.loss(x, y)), agrees)


def find_shift(layer, x, shortlist, wins):
    """The shift of the clusters' bias with which they win in half of the rows."""
    bias = layer.parameters["head_bias"]
    start, low, high = bias[shortlist:].copy(), -40.0, 80.0
    for _ in range(16):
        shift = (low + high) / 2
        bias[shortlist:] = start + shift
        low, high = (low, shift) if wins() >= 0.5 else (shift, high)
    bias[shortlist:] = start
    return high


def compare_predictions(torch, module, layer, x, cutoffs, name, rounds):
    tx, shortlist = torch.from_numpy(x), cutoffs[0]
    head, bias = layer.parameters["head"], layer.parameters["head_bias"]

    def predict():
        with torch.inference_mode():
            return module.predict(tx).numpy()

    cases = {
        "no cluster wins": lambda: 0.5,
        "a cluster has the largest logit in half of the rows": lambda: np.mean(
            (x @ head.T + bias).argmax(axis=1) >= shortlist
        ),
        "half of the classes lie in a cluster": lambda: np.mean(layer.predict(x) >= shortlist),
    }
    start = bias.copy()
    for case, wins in cases.items():
        bias[shortlist:] += -100 if case.startswith("no") else find_shift(layer, x, shortlist, wins)
        with torch.no_grad():
            module.head.bias.copy_(torch.from_numpy(bias))
        same = np.array_equal(predict(), layer.predict(x))
        say(f"{name}, predict, {case}", measure(rounds, predict, lambda: layer.predict(x)), same)
        bias[:] = start


def compare(rounds, only):
    import torch

    torch.set_num_threads(1)
    print("| | PyTorch, ms | csoftmax, ms | ratio | same |\n|---|---|---|---|---|")
    for classes, features, rows, cutoffs in SHAPES:
        if only not in (None, classes):
            continue
        rng = np.random.default_rng(0)
        torch.manual_seed(0)
        module = torch.nn.AdaptiveLogSoftmaxWithLoss(features, classes, cutoffs, div_value=4.0, head_bias=True)
        layer = AdaptiveSoftmax.from_torch(module.state_dict())
        shares = 1 / np.arange(1, classes + 1)
        y = rng.choice(classes, rows, p=shares / shares.sum())
        x = rng.standard_normal((rows, features), np.float32)
        name = f"{classes:,} classes, {features} features"
        compare_training(torch, module, layer, x, y, f"{name}, {rows} rows", rounds)
        x = rng.standard_normal((PREDICTED_ROWS, features), np.float32)
        compare_predictions(torch, module, layer, x, cutoffs, name, rounds)


def fit_layers(rounds):
    from scipy.optimize import nnls

    rng, rows = np.random.default_rng(0), []
    for n, k, d in [
        *((n, k, d) for n in (8, 64, 512) for k in (1_000, 10_000) for d in (16, 64, 256)),
        *((n, k, d) for n in (8, 64) for k in (100_000, 500_000) for d in (4, 16, 64)),
    ]:
        x, w = rng.standard_normal((n, d), np.float32), rng.standard_normal((k, d), np.float32)
        y = rng.integers(0, k, n)
        (found,) = measure(rounds, functools.partial(csoftmax.linear_cross_entropy_with_grad, x, w, y))
        rows.append((found / 1e3, 1.0, k * d, n * k, n * k * d))
        print(f"{n:5} rows, {k:7} classes, {d:4} features: {found:8.2f} ms")
    table = np.array(rows)
    found, _ = nnls(table[:, 1:] / table[:, :1], np.ones(len(table)))  # least relative errors
    print("seconds: a call {:.2e}, a weight {:.2e}, a logit {:.2e}, a product {:.2e}".format(*found))
    errors = table[:, 1:] @ found / table[:, 0]
    print(f"predicted over measured: {errors.min():.2f} to {errors.max():.2f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--classes", type=int, choices=[shape[0] for shape in SHAPES])
    parser.add_argument("--layers", action="store_true")
    arguments = parser.parse_args()
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1), csoftmax.threads(1):
        if arguments.layers:
            fit_layers(arguments.rounds)
        else:
            compare(arguments.rounds, arguments.classes)


if __name__ == "__main__":
    main()
