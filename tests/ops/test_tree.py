"""Trees of classes: constructors against other ways to the same, refused trees and files, chains of a million."""

import contextlib
import copy
import heapq
import json
import pickle

import numpy as np
import pytest
from helpers import RECORDS, ROOT
from oracles.tree import paths

from csoftmax._learn import store
from csoftmax.heads import HierarchicalSoftmax, Tree

needs_benchmarks = pytest.mark.skipif(
    not (ROOT / "asv_bench").is_dir(), reason="tests of an installed package are copied without the benchmarks"
)


def as_paths(tree):
    """Arguments of from_paths."""
    found = paths(tree)
    nodes = [node for path in found for node, _ in path]
    codes = [side for path in found for _, side in path]
    return nodes, codes, np.append(0, np.cumsum([len(path) for path in found]))


@pytest.mark.parametrize("n", [1, 2, 3, 7, 16, 17, 1000])
def test_huffman_against_a_heap(n):
    """The mean depth is that of Huffman's algorithm with a heap, for counts with ties, zeros and a huge range."""
    rng = np.random.default_rng(n)
    for counts in (rng.zipf(1.3, n), np.ones(n), np.zeros(n), rng.integers(0, 3, n), 10.0 ** rng.uniform(-200, 200, n)):
        heap, total = [float(c) for c in counts], 0.0
        heapq.heapify(heap)
        while len(heap) > 1:
            merged = heapq.heappop(heap) + heapq.heappop(heap)
            total += merged
            heapq.heappush(heap, merged)
        tree = Tree.huffman(counts)
        assert (tree.depths() * np.asarray(counts, float)).sum() == pytest.approx(total, rel=1e-12)
        assert tree.n_classes == n
        assert [len(path) for path in paths(tree)] == tree.depths().tolist()
        if total:
            assert tree.mean_depth() == pytest.approx(total / np.sum(counts, dtype=float), rel=1e-12)


def test_huffman_ties():
    """Leaves before nodes, lowest class first: four equal counts make a balanced tree of neighbours."""
    assert Tree.huffman([1, 1, 1, 1]).children.tolist() == [[2, 1], [~2, ~3], [~0, ~1]]
    assert Tree.huffman([1, 1, 2]).children.tolist() == [[~2, 1], [~0, ~1]]


def test_balanced():
    for n in (1, 2, 3, 5, 8, 9, 1000):
        tree = Tree.balanced(n)
        assert tree.depth == int(np.ceil(np.log2(n)))
        assert tree.depths().min() >= int(np.log2(n))
        order = np.random.default_rng(n).permutation(n)
        leaves = [leaf for _, leaf in sorted((p, c) for c, p in enumerate(map(sides, paths(Tree.balanced(n, order)))))]
        assert leaves == order.tolist()


def sides(path):
    return tuple(side for _, side in path)


def test_two_means():
    """Groups stay together, weights shorten paths, equal points and zero weights are allowed, the seed decides."""
    rng = np.random.default_rng(0)
    group = rng.integers(0, 8, 240)
    vectors = (100 * np.eye(8)[group] + rng.normal(size=(240, 8))).astype(np.float32)
    tree = Tree.two_means(vectors, rng=3)
    assert tree == Tree.two_means(vectors, rng=3)
    assert tree.depth == 8
    counts = rng.zipf(1.5, 240)
    weighted = Tree.two_means(vectors, counts, rng=3)
    assert weighted.mean_depth(counts) < tree.mean_depth(counts) - 1
    assert weighted.mean_depth(counts) < Tree.huffman(counts).mean_depth() + 2
    few = 100 * np.eye(4)[rng.integers(0, 4, 64)] + rng.normal(size=(64, 4))
    shared = np.mean([common(p, q) for p, q, same in pairs_of(Tree.two_means(few, rng=0), few) if same])
    apart = np.mean([common(p, q) for p, q, same in pairs_of(Tree.two_means(few, rng=0), few) if not same])
    assert shared > apart + 1
    for vectors, counts in (
        (np.zeros((9, 2)), None),
        (np.zeros((9, 2)), np.zeros(9)),
        (np.arange(3)[:, None], [0, 0, 9]),
    ):
        assert Tree.two_means(vectors, counts, rng=0).n_classes == len(vectors)
    assert Tree.two_means([[1.0]]).n_classes == 1


def common(p, q):
    return next((i for i, (a, b) in enumerate(zip(p, q)) if a != b), min(len(p), len(q)))


def pairs_of(tree, vectors):
    found, group = paths(tree), vectors.argmax(axis=1)
    for i in range(len(found)):
        for j in range(i):
            yield found[i], found[j], group[i] == group[j]


def test_from_parents():
    """A random taxonomy: the classes below each of its nodes stay together, and a chain of one child vanishes."""
    rng = np.random.default_rng(1)
    for _ in range(20):
        k = int(rng.integers(2, 40))
        parent, tops, m = {}, list(range(k)), k
        while len(tops) > 1:
            some = [tops.pop(rng.integers(len(tops))) for _ in range(min(len(tops), rng.integers(1, 5)))]
            parent |= dict.fromkeys(some, m)
            tops.append(m)
            m += 1
        parents = [parent.get(i, -1) for i in range(m)]
        tree = Tree.from_parents(parents)
        assert tree.n_classes == k
        below = {i: {i} for i in range(k)} | {i: set() for i in range(k, m)}
        for i in range(m):
            if parents[i] >= 0:
                below[parents[i]] |= below[i]
        assert {frozenset(s) for s in below.values()} <= sets_of(tree)
    wide = Tree.from_parents([7] * 7 + [-1])
    assert wide.depths().tolist() == Tree.huffman(np.ones(7)).depths().tolist()
    assert Tree.from_parents([-1]).n_classes == Tree.from_parents([1, 2, -1]).n_classes == 1


def sets_of(tree):
    """The classes below each node and leaf."""
    found = {frozenset([k]) for k in range(tree.n_classes)}
    by_node = {}
    for k, path in enumerate(paths(tree)):
        for node, _ in path:
            by_node.setdefault(node, set()).add(k)
    return found | {frozenset(s) for s in by_node.values()}


def test_from_paths_keeps_the_numbers():
    tree = Tree.huffman([5, 1, 1, 2, 9])
    assert Tree.from_paths(*as_paths(tree)).children.tolist() == tree.children.tolist()
    nodes, codes, offsets = as_paths(tree)
    turned = Tree.from_paths([3 - node for node in nodes], codes, offsets)
    assert turned.root == 3
    assert [sides(p) for p in paths(turned)] == [sides(p) for p in paths(tree)]
    assert Tree.from_paths([], [], [0, 0]).n_classes == 1


PATHS = dict(zip(("nodes", "codes", "offsets"), as_paths(Tree.balanced(4))))


@pytest.mark.parametrize(
    ("error", "match", "make"),
    [
        (TypeError, "not by Tree()", Tree),
        (ValueError, "counts is empty", lambda: Tree.huffman([])),
        (ValueError, "counts must be at least 0 and finite, got -1.0 for class 1", lambda: Tree.huffman([1, -1])),
        (ValueError, "got nan for class 0", lambda: Tree.huffman([np.nan])),
        (TypeError, "counts must be real numbers", lambda: Tree.huffman(["a"])),
        (TypeError, "one axis", lambda: Tree.huffman([[1.0]])),
        (ValueError, "n_classes must be at least 1, got 0", lambda: Tree.balanced(0)),
        (ValueError, "2147483647 classes", lambda: Tree.balanced(2**31)),
        (ValueError, r"order has shape \(2,\)", lambda: Tree.balanced(3, [0, 1])),
        (ValueError, r"order\[2\] is 3", lambda: Tree.balanced(3, [0, 1, 3])),
        (ValueError, "order has the class 1 2 times", lambda: Tree.balanced(3, [0, 1, 1])),
        (TypeError, "order must be integers", lambda: Tree.balanced(2, [0.0, 1.0])),
        (ValueError, r"vectors\[1\] is not finite", lambda: Tree.two_means([[0.0], [np.inf]])),
        (TypeError, "vectors must be real numbers of shape", lambda: Tree.two_means([1.0, 2.0])),
        (ValueError, "counts has 1 elements, vectors has 2 rows", lambda: Tree.two_means([[1.0], [2.0]], [1])),
        (ValueError, "parent is empty", lambda: Tree.from_parents([])),
        (ValueError, r"parent\[1\] is 5; nodes are 0 to 2", lambda: Tree.from_parents([2, 5, -1])),
        (ValueError, "parent has 0 roots", lambda: Tree.from_parents([1, 0])),
        (ValueError, "parent has 2 roots .*: 0, 1", lambda: Tree.from_parents([-1, -1])),
        (ValueError, "2 of 5 nodes cannot be reached", lambda: Tree.from_parents([2, 2, -1, 4, 3])),
        (ValueError, "node 1 is a leaf, node 0 is not", lambda: Tree.from_parents([-1, 0, 0])),
        (ValueError, "offsets descend at class 2", lambda: Tree.from_paths(**PATHS | {"offsets": [0, 2, 6, 4, 8]})),
        (ValueError, "the path empty at class 1", lambda: Tree.from_paths(**PATHS | {"offsets": [0, 2, 2, 6, 8]})),
        (ValueError, "begin at 0 and end at 7", lambda: Tree.from_paths(**PATHS | {"offsets": [0, 2, 4, 6, 7]})),
        (ValueError, "offsets has 1 elements", lambda: Tree.from_paths([], [], [0])),
        (ValueError, r"nodes\[1\] is 3; allowed are 0 to 2", lambda: changed_paths(nodes={1: 3})),
        (ValueError, r"nodes\[0\] is -1", lambda: changed_paths(nodes={0: -1})),
        (ValueError, r"codes\[7\] is 2; allowed are 0 and 1", lambda: changed_paths(codes={7: 2})),
        (ValueError, "the path of class 1 begins at node 2", lambda: changed_paths(nodes={2: 2})),
        (ValueError, "the paths differ in what side", lambda: changed_paths(nodes={5: 1})),
        (ValueError, "the paths differ", lambda: changed_paths(codes={1: 1})),
        (ValueError, "the paths differ", lambda: Tree.from_paths([0, 0, 1, 0, 1], [0, 0, 0, 0, 1], [0, 1, 3, 5])),
    ],
)  # fmt: skip
def test_refused(error, match, make):
    with pytest.raises(error, match=match):
        make()


def changed_paths(**changes):
    arguments = {name: list(a) for name, a in PATHS.items()}
    for name, places in changes.items():
        for at, value in places.items():
            arguments[name][at] = value
    return Tree.from_paths(**arguments)


# What a file may claim: children of four classes, root.
HOSTILE = {
    "root": ([[1, 2], [-1, -2], [-3, -4]], 3, "the root is node 3; the nodes are 0 to 2"),
    "negative root": ([[1, 2], [-1, -2], [-3, -4]], -1, "the root is node -1"),
    "node out of range": ([[1, 3], [-1, -2], [-3, -4]], 0, "side 1 of node 0 is node 3"),
    "class out of range": ([[1, 2], [-1, -2], [-3, -5]], 0, "side 1 of node 2 is class 4"),
    "class twice": ([[1, 2], [-1, -1], [-3, -4]], 0, "class 0 is a side of 2 nodes"),
    "class never": ([[1, 2], [-1, 2], [-3, -4]], 0, "node 2 is a side of 2 nodes"),
    "orphan": ([[-1, -2], [-3, -4], [-3, -4]], 0, "node 1 is a side of 0 nodes"),
    "circle": ([[-1, -2], [2, -3], [1, -4]], 0, "2 of 3 nodes cannot be reached"),
    "self": ([[-1, -2], [1, 2], [-3, -4]], 0, "2 of 3 nodes cannot be reached from the root, node 0"),
    "root below": ([[1, -2], [0, -3], [-1, -4]], 0, "node 0 is a side of 1 nodes; the root"),
    "lowest number": ([[1, 2], [-1, -2], [-3, -(2**31)]], 0, "class 2147483647"),
}


def test_files(tmp_path):
    """A tree comes back as it was; a damaged, forged or hostile file is refused before anything follows its numbers."""
    path = tmp_path / "tree.safetensors"
    for tree in (Tree.huffman([5, 1, 1, 2]), Tree.balanced(1), Tree.balanced(9), Tree.huffman([0.0])):
        tree.save(path)
        loaded = Tree.load(path)
        assert loaded == tree
        assert hash(loaded) == hash(tree)
        assert (loaded.depths() == tree.depths()).all()
    for name, (children, root, match) in HOSTILE.items():
        store.write(path, "Tree", {"children": np.array(children, np.int32)}, {"root": root})
        with pytest.raises(ValueError, match=match):
            Tree.load(path)
        with pytest.raises(ValueError, match=r"'.*tree.safetensors' cannot be read as a model"):
            Tree.load(path)
        assert name
    good = np.array([[1, 2], [-1, -2], [-3, -4]], np.int32)
    for arrays, header, match in (
        ({}, {"root": 0}, "children is missing"),
        ({"children": good.ravel()}, {"root": 0}, "children has shape"),
        ({"children": good.astype(np.int64)}, {"root": 0}, "dtype int64"),
        ({"children": good}, {"root": 0.0}, "root is not an integer"),
        ({"children": good}, {"root": True}, "root is not an integer"),
        ({"children": good}, {}, "root is not an integer"),
        ({"children": good, "counts": np.ones(3)}, {"root": 0}, "counts has shape"),
        ({"children": good, "counts": -np.ones(4)}, {"root": 0}, "counts must be at least 0"),
    ):
        store.write(path, "Tree", arrays, header)
        with pytest.raises(ValueError, match=match):
            Tree.load(path)
    Tree.huffman([5, 1, 1, 2]).save(path)
    blob = path.read_bytes()
    rng = np.random.default_rng(0)
    for end in rng.integers(0, len(blob), 30):
        path.write_bytes(blob[:end])
        with pytest.raises(ValueError, match="cannot be read as a model"):
            Tree.load(path)
    for at in rng.integers(0, len(blob), 60):
        forged = bytearray(blob)
        forged[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(forged)
        with contextlib.suppress(store.DamagedError):
            assert Tree.load(path) == Tree.huffman([5, 1, 1, 2])  # blanks in the header
    with pytest.raises(FileNotFoundError):
        Tree.load(tmp_path / "none")
    assert json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])["children"]["dtype"] == "I32"


def test_trees_do_not_change():
    tree = Tree.huffman([3, 2, 1])
    assert copy.deepcopy(tree) is tree
    assert copy.copy(tree) is tree
    assert pickle.loads(pickle.dumps(tree)) == tree
    assert tree != Tree.huffman([3, 2, 2])
    assert tree != 3
    with pytest.raises(ValueError, match="read-only"):
        tree.children[0, 0] = 7
    with pytest.raises(ValueError, match="read-only"):
        tree.counts[0] = 7
    with pytest.raises(ValueError, match="all 0"):
        tree.mean_depth([0, 0, 0])
    with pytest.raises(ValueError, match="2 elements"):
        tree.mean_depth([1, 2])
    assert "3 classes, depth 2" in repr(tree)


def chain(n):
    """Children of a chain: class k is side 0 of node k, the last two classes are below the last node."""
    children = np.empty((n - 1, 2), np.int32)
    children[:, 0] = ~np.arange(n - 1)
    children[:-1, 1] = np.arange(1, n - 1)
    children[-1, 1] = ~(n - 1)
    return children


def test_a_chain_of_a_million(tmp_path):
    """Nothing recurses: constructors, files, sums, classes that are added."""
    n = 10**6
    tree = Tree._from_children(chain(n), 0)
    assert tree.depth == n - 1
    assert tree.mean_depth() == pytest.approx(n / 2, rel=1e-5)
    tree.save(tmp_path / "tree")
    assert Tree.load(tmp_path / "tree") == tree
    sums = tree._side_sums(np.ones(n))
    assert (sums[:, 1] == np.arange(n - 1, 0, -1)).all()
    assert Tree.huffman(2.0 ** np.arange(1000)).depth == 999
    children = chain(n)
    children[n // 2, 1], children[-1, 1] = ~(n - 1), n // 2 + 1
    with pytest.raises(ValueError, match="they form a circle"):
        Tree._from_children(children, 0)


@pytest.mark.slow
def test_a_chain_of_a_million_parents():
    n = 10**6
    parents = np.append(n + np.minimum(np.arange(n), n - 2), np.append(-1, np.arange(n, 2 * n - 2)))
    assert Tree.from_parents(parents).depth == n - 1


@needs_benchmarks
def test_a_model_of_fasttext(monkeypatch):
    """A model that fastText has trained, rebuilt through from_paths, has the probabilities that fastText predicts.

    tests/records/fasttext_hs.json has its counts, matrices and predictions, which it takes from a table of 512 sigmas.
    """
    monkeypatch.syspath_prepend(str(ROOT / "asv_bench"))
    from trees import paths_of_fasttext

    model = json.loads((RECORDS / "fasttext_hs.json").read_text())
    tree = Tree.from_paths(*paths_of_fasttext(model["counts"]))
    layer = HierarchicalSoftmax(4, tree, bias=False)
    layer.theta[...] = model["output"][:-1]
    got = np.exp(layer.log_proba(model["hidden"]))
    np.testing.assert_allclose(got.sum(axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(got, model["probabilities"], rtol=0.02, atol=1e-5)
    best = layer.topk(model["hidden"], 7).indices
    assert (best[:, 0] == np.argmax(model["probabilities"], axis=1)).all()


def test_fasttext_itself(monkeypatch, tmp_path):
    """The same with a model that is trained on the spot, where fastText is installed."""
    fasttext = pytest.importorskip("fasttext")
    monkeypatch.syspath_prepend(str(ROOT / "asv_bench"))
    from trees import paths_of_fasttext

    rng = np.random.default_rng(0)
    y, x = rng.zipf(1.4, 3000) % 30, rng.integers(0, 9, 3000)
    data = tmp_path / "data.txt"
    data.write_text("".join(f"__label__{a} w{b}\n" for a, b in zip(y, x)))
    options = {"loss": "hs", "thread": 1, "minn": 0, "maxn": 0, "bucket": 1, "minCount": 1, "verbose": 0}
    model = fasttext.train_supervised(str(data), dim=5, epoch=5, lr=0.3, **options)
    labels, counts = model.get_labels(include_freq=True)
    layer = HierarchicalSoftmax(5, Tree.from_paths(*paths_of_fasttext(list(map(int, counts)))), bias=False)
    layer.theta[...] = model.get_output_matrix()[: len(labels) - 1]
    for word in range(9):
        ids = [model.get_word_id(f"w{word}"), model.get_word_id("</s>")]
        hidden = np.mean([model.get_input_vector(i) for i in ids], axis=0)
        predicted = {label: p for p, label in model.f.predict(f"w{word}\n", len(labels), 0.0, "strict")}
        got = dict(zip(labels, np.exp(layer.log_proba(hidden))))
        for label, p in predicted.items():
            assert got[label] == pytest.approx(p, rel=0.03, abs=2e-5)
