"""Whether csoftmax is slower beside other libraries with threads of their own, and they beside it.

    pip install torch scikit-learn
    python asv_bench/together.py

Each figure is a median in a fresh process: alone, and with the others imported and working in turns with it.  Each turn
begins with a copy that fills the caches, so that what differs is threads, not who has evicted whom.  The processes are
interleaved.
"""

import json
import subprocess
import sys

import numpy as np

ROUNDS = 7
CODE = """
import json, statistics, sys, time
import numpy as np
which = sys.argv[1].split("+")
for name in which:
    __import__(name)
x = np.random.default_rng(0).standard_normal((512, 4000)).astype(np.float32)
out = np.empty_like(x)
work = {}
if "csoftmax" in which:
    import csoftmax
    work["csoftmax"] = lambda: csoftmax.softmax(x, out=out)
if "torch" in which:
    import torch
    t, to = torch.from_numpy(x.copy()), torch.empty(512, 4000)
    work["torch"] = lambda: torch.softmax(t, -1, out=to)
if "sklearn" in which:
    from sklearn.metrics import pairwise_distances_argmin
    a, b = x[:, :64].copy(), x[:256, 64:128].copy()
    work["sklearn"] = lambda: pairwise_distances_argmin(a, b)
seconds = {name: [] for name in work}
big = np.zeros(2**23), np.zeros(2**23)  # twice 64 MB
for i in range(30):
    for name, call in work.items():
        np.copyto(*big)
        begin = time.perf_counter()
        for _ in range(3):
            call()
        seconds[name].append(time.perf_counter() - begin)
print(json.dumps({name: statistics.median(s[10:]) / 3 for name, s in seconds.items()}))
"""


def run(which):
    done = subprocess.run([sys.executable, "-c", CODE, which], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def main():
    ways = ["csoftmax", "torch", "sklearn", "csoftmax+torch+sklearn", "torch+sklearn+csoftmax", "torch+sklearn"]
    found = {way: [] for way in ways}
    for _ in range(ROUNDS):
        for way in ways:
            found[way].append(run(way))

    def median(way, name):
        return float(np.median([each[name] for each in found[way]]))

    for name in ("csoftmax", "torch", "sklearn"):
        alone = median(name, name)
        rest = {way: median(way, name) / alone for way in ways if name in way.split("+") and way != name}
        print(f"{name:9} alone {alone * 1e6:7.0f} us; " + ", ".join(f"{way} {r:.2f}" for way, r in rest.items()))


if __name__ == "__main__":
    main()
