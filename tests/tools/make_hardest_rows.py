"""Writes tests/records/hardest_rows.json: the hardest rows that a search has found for each function and dtype.

    python tests/tools/make_hardest_rows.py [--seed 0] [--rounds 40]

A row replaces the recorded one if its error is larger.  tests/ops/test_hardest_rows.py checks the recorded rows in
every run, and searches again with -m long.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from helpers.climbing import climb  # noqa: E402

from csoftmax._spec.formats import dtype_of  # noqa: E402
from csoftmax._spec.operations import OPERATIONS  # noqa: E402

PATH = ROOT / "tests" / "records" / "hardest_rows.json"
NAMES = ("softmax", "log_softmax", "logsumexp", "cross_entropy", "cross_entropy_with_grad")
LENGTHS = (2, 3, 7, 16, 17, 40, 100)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=40)
    arguments = parser.parse_args()
    found = json.loads(PATH.read_text()) if PATH.exists() else {}
    for record in OPERATIONS:
        for dtype in ("float32", "float64") if record.name in NAMES else ():
            for k in LENGTHS:
                row, error = climb(record, dtype, k, arguments.seed, arguments.rounds)
                key = f"{record.name} {dtype} {k}"
                print(f"{key}: {error:.3f} of the bound", flush=True)
                if error > found.get(key, {"error": 0})["error"]:
                    values = [float(value).hex() for value in row.astype(dtype_of(dtype)).astype(np.float64)]
                    found[key] = {"error": round(error, 4), "row": values}
    PATH.write_text(json.dumps(dict(sorted(found.items())), indent=0) + "\n")
    print("wrote", PATH)


if __name__ == "__main__":
    main()
