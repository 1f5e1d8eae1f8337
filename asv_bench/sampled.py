"""Losses over sampled classes beside TensorFlow and the three matrix products that every implementation needs.

    pip install tensorflow-cpu
    OPENBLAS_NUM_THREADS=1 python asv_bench/sampled.py [--rounds 15] [--shapes 512x128x1024x100000]

A step is the loss and its gradients with respect to x, w and the bias, for negatives that the batch shares.
TensorFlow's is a tf.function with the same classes and expected counts, whose gradient of w is an IndexedSlices, that
is, without the merging of rows that csoftmax's includes. Times are CPU times of one thread, in turn; the ratios are of
their minima, and before each step of csoftmax the other one has run, so that no contender finds its own caches.
"""

import argparse
import os
import time

import numpy as np

import csoftmax
from csoftmax.samplers import UnigramSampler


def make_products(x, w, negatives):
    """The three products alone, into existing arrays."""
    rows = w[negatives.ids]
    logits, grad_x, grad_w = np.empty((len(x), len(rows)), x.dtype), np.empty_like(x), np.empty_like(rows)

    def step():
        np.matmul(x, rows.T, logits), np.matmul(logits, rows, grad_x), np.matmul(logits.T, x, grad_w)

    return step


def make_tensorflow(tf, kind, x, w, bias, target, negatives):
    """TensorFlow's loss and gradients."""
    n, k = len(target), len(w)
    arrays = [tf.Variable(v) for v in (x, w, bias)]
    labels = tf.constant(target[:, None], tf.int64)
    triple = (
        tf.constant(negatives.ids, tf.int64),
        tf.constant(np.exp(negatives.target_log_q)[:, None], tf.float32),
        tf.constant(np.exp(negatives.log_q), tf.float32),
    )
    loss = tf.nn.sampled_softmax_loss if kind == "softmax" else tf.nn.nce_loss

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            values = loss(
                arrays[1], arrays[2], labels, arrays[0], len(negatives.ids), k,
                sampled_values=triple, remove_accidental_hits=True,
            )  # fmt: skip
            total = tf.reduce_sum(values) / n
        return total, tape.gradient(total, arrays)

    return step


def make_csoftmax(kind, x, w, bias, target, negatives):
    """The same with csoftmax."""
    loss = csoftmax.sampled_softmax_loss_with_grad if kind == "softmax" else csoftmax.nce_loss_with_grad
    return lambda: loss(x, w, target, negatives, bias=bias, num_threads=1)


def measure(steps, rounds):
    """The least CPU time of each step, in milliseconds."""
    times = {name: [] for name in steps}
    for step in steps.values():
        step(), step()
    for _ in range(rounds):
        for name, step in steps.items():
            begin = time.process_time()
            for _ in range(5):
                step()
            times[name].append((time.process_time() - begin) / 5)
    return {name: min(of) * 1e3 for name, of in times.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--shapes", default="512x128x1024x100000,512x512x1024x100000,2048x128x4096x100000")
    arguments = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    isa = csoftmax.show_config("dicts")["isa"]["used"]
    print(f"TensorFlow {tf.__version__}, NumPy {np.__version__}, csoftmax with {isa}; ms, one thread")
    print(
        f"{'rows x D x m x K':24s} {'loss':8s} {'products':>9s} {'csoftmax':>9s} {'ratio':>6s} {'TF':>9s} {'ratio':>6s}"
    )
    for shape in arguments.shapes.split(","):
        n, d, m, k = map(int, shape.split("x"))
        rng = np.random.default_rng(0)
        x = rng.standard_normal((n, d), dtype=np.float32)
        w = 0.1 * rng.standard_normal((k, d), dtype=np.float32)
        bias = np.zeros(k, np.float32)
        sampler = UnigramSampler(1 / np.arange(1, k + 1))
        target = sampler.draw(n, rng=rng)
        negatives = sampler.sample(m, target=target, rng=rng)
        for kind in ("softmax", "nce"):
            steps = {
                "products": make_products(x, w, negatives),
                "ours": make_csoftmax(kind, x, w, bias, target, negatives),
                "tf": make_tensorflow(tf, kind, x, w, bias, target, negatives),
            }
            total, ours = float(steps["tf"]()[0]), float(steps["ours"]().loss)
            assert abs(total - ours) < 1e-4 * abs(ours), (total, ours)
            ms = measure(steps, arguments.rounds)
            print(
                f"{shape:24s} {kind:8s} {ms['products']:9.2f} {ms['ours']:9.2f} {ms['ours'] / ms['products']:6.2f} "
                f"{ms['tf']:9.2f} {ms['tf'] / ms['ours']:6.2f}"
            )


if __name__ == "__main__":
    main()
