"""Measures whether csoftmax slows down beside other libraries with threads of their own, and they beside it.

    pip install torch scikit-learn
    python asv_bench/together.py [--pause SECONDS]

Each figure is a median in a fresh process: of a library alone, and of one that takes turns with the others.  A library
alone sleeps during the turns of the others, and each turn begins with a pass over 128 MB, so that the runs differ in
threads, not in caches or in how long ago a thread was last awake.  With --pause, each turn begins with that much sleep,
as in a server between two requests; the first call of a turn is shown separately.  The processes are interleaved.
"""

import argparse
import json
import subprocess
import sys

import numpy as np

ROUNDS = 9
CODE = """
import json, statistics, sys, time
import numpy as np
which, pause = sys.argv[1].split("+"), float(sys.argv[2])
for name in which:
    __import__(name)
x = np.random.default_rng(0).standard_normal((512, 4000)).astype(np.float32)
out = np.empty_like(x)
calls = dict.fromkeys(("csoftmax", "torch", "sklearn"))
if "csoftmax" in which:
    import csoftmax
    calls["csoftmax"] = lambda: csoftmax.softmax(x, out=out)
if "torch" in which:
    import torch
    t, to = torch.from_numpy(x.copy()), torch.empty(512, 4000)
    calls["torch"] = lambda: torch.softmax(t, -1, out=to)
if "sklearn" in which:
    from sklearn.metrics import pairwise_distances_argmin
    a, b = x[:, :64].copy(), x[:256, 64:128].copy()
    calls["sklearn"] = lambda: pairwise_distances_argmin(a, b)
seconds = {name: [] for name in which}
big = np.ones(2**24)
for i in range(30):
    for name, call in calls.items():
        np.add(big, 1.0, out=big)
        time.sleep(pause)
        if not call:
            continue
        times = []
        for _ in range(3):
            begin = time.perf_counter()
            call()
            times.append(time.perf_counter() - begin)
        seconds[name].append((times[0], sum(times) / 3))
print(json.dumps({name: [statistics.median(t) for t in zip(*s[10:])] for name, s in seconds.items()}))
"""


def run_process(libraries, pause):
    command = [sys.executable, "-c", CODE, libraries, str(pause)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--pause", type=float, default=0, help="seconds of sleep before each turn")
    pause = parser.parse_args().pause
    combinations = ["csoftmax", "torch", "sklearn", "csoftmax+torch+sklearn", "torch+sklearn+csoftmax", "torch+sklearn"]
    found = {libraries: [] for libraries in combinations}
    for _ in range(ROUNDS):
        for libraries in combinations:
            found[libraries].append(run_process(libraries, pause))
    for column, what in enumerate(("first call", "mean of three calls")):
        print(what)
        for name in ("csoftmax", "torch", "sklearn"):
            medians = {
                libraries: np.median([each[name][column] for each in found[libraries]])
                for libraries in combinations
                if name in libraries.split("+")
            }
            alone = medians.pop(name)
            others = ", ".join(f"{libraries} {median / alone:.2f}" for libraries, median in medians.items())
            print(f"  {name:9} alone {alone * 1e6:7.0f} us; {others}")


if __name__ == "__main__":
    main()
