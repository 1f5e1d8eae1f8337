"""Asserts that `asv run` has measured something: without an environment it may end without results.

    python asv_bench/check_results.py [folder of the results]

Every benchmark that asv has discovered must have results, and no parameter may have failed.
"""

import json
import sys
from pathlib import Path


def find_problems(folder):
    """A list of messages, empty if all is well."""
    known = folder / "benchmarks.json"
    if not known.is_file():
        return [f"no {known}: asv run has found no benchmarks"]
    names = set(json.loads(known.read_text())) - {"version"}
    files = [path for path in folder.glob("*/*.json") if path.name != "machine.json"]
    if not files:
        return [f"no results in {folder}: asv run has measured nothing (see README.md)"]
    newest = max(files, key=lambda path: path.stat().st_mtime)
    content = json.loads(newest.read_text())
    found = {}
    for name, row in content["results"].items():
        entry = dict(zip(content["result_columns"], row))
        found[name] = entry["result"]
    missing = [f"{name}: no results in {newest}" for name in sorted(names - set(found))]
    failed = [
        f"{name}: {'failed' if not values else f'{values.count(None)} of {len(values)} parameters failed'}"
        for name, values in sorted(found.items())
        if not values or None in values
    ]
    if not missing and not failed:
        count = sum(len(values) for values in found.values())
        print(f"{len(found)} benchmarks, {count} results in {newest}")
    return missing + failed


def main():
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent / ".asv" / "results"
    found = find_problems(folder)
    print("\n".join(found), file=sys.stderr, end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
