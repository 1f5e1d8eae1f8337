from collections.abc import Callable
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

_Function = TypeVar("_Function", bound=Callable[..., Any])

OPS: Final[dict[str, int]]
DTYPES: Final[dict[str, int]]
INTEGER: Final[int]
SUFFIXES: Final[dict[str, str]]
LABELS: Final[dict[str, int]]
REDUCTIONS: Final[dict[str, int]]
NORMALIZE: Final[dict[str | None, int]]
FILTERS: Final[dict[str, int]]
CRF_TASKS: Final[dict[str, int]]
CRF_REDUCTIONS: Final[dict[str, int]]
CRF_METHODS: Final[dict[str, int]]
NORMS: Final[dict[float | None, int]]
OPTIMIZERS: Final[dict[str, int]]
ISAS: Final[tuple[str, ...]]
BLOCK_ELEMENTS: Final[int]
FEATURE_LANES: Final[int]
GEOMETRIC_LANES: Final[int]
GEOMETRIC_TASKS: Final[dict[str, int]]
SHARD_KINDS: Final[dict[str, int]]
FIRST_SELECTED: Final[int]
MANY_SELECTED: Final[int]
MANY_PART: Final[int]
SUM_WORDS: Final[int]
RECORD_WORDS: Final[int]
LABEL_WORDS: Final[int]
TERMS_WORDS: Final[int]
SOFT_WORDS: Final[int]
INT8_GROUP: Final[int]
INT8_MAX_FEATURES: Final[int]
STRUCT_BYTES: Final[dict[str, int]]
SOURCE_HASH: Final[str]
VERSION: Final[str]
OPENMP: Final[int]
XLA_TARGETS: Final[dict[str, Any]]
ABI: Final[str]
C_API: Final[Any]
__test__: dict[str, str]

def set_openmp_default(threads: int) -> None: ...
def set_thread_limit(limit: int) -> None: ...
def get_threads() -> int: ...
def thread_settings() -> tuple[int, int, int]: ...
def thread_bounds() -> int: ...
def set_threads(num_threads: int | None) -> None: ...
def enter_threads(num_threads: int | None) -> tuple[Any, Any]: ...
def leave_threads(entered: tuple[Any, Any]) -> None: ...
def isa() -> str: ...
def isa_built() -> tuple[str, ...]: ...
def isa_available() -> tuple[str, ...]: ...
def select_isa(name: str) -> None: ...
def scales(dtype: int, temperature: float) -> NDArray[Any]: ...
def entmax(dtype: int, alpha: float) -> NDArray[Any]: ...
def softcap(dtype: int, cap: float) -> NDArray[Any]: ...
def loss_call(
    n: int,
    temperature: float,
    label_smoothing: float,
    z_loss: float,
    clip_norm: float,
    clip_value: float,
    soft: bool,
    gradient: bool,
) -> NDArray[Any]: ...
def run_softmax(
    op: int,
    dtype: int,
    first: NDArray[Any],
    second: NDArray[Any] | None,
    result: NDArray[Any],
    where: NDArray[Any] | None,
    temperature: float,
    num_threads: int | None,
    temperatures: NDArray[Any] | None,
) -> None: ...
def empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]: ...
def empty_like(x: NDArray[Any]) -> NDArray[Any]: ...
def set_pages_limit(size: int) -> None: ...
def set_tracemalloc(track: int, untrack: int) -> None: ...
def kept_pages() -> int: ...
def quick(function: _Function) -> _Function: ...
def quick_returning(result_type: type) -> Callable[[_Function], _Function]: ...
def run_cross_entropy(
    dtype: int,
    x: NDArray[Any],
    y: NDArray[Any] | None,
    loss: NDArray[Any],
    labels: NDArray[Any] | None,
    ignore: int | None,
    soft: NDArray[Any] | None,
    weight: NDArray[Any] | None,
    sample_weight: NDArray[Any] | None,
    upstream: NDArray[Any] | None,
    temperature: float,
    label_smoothing: float,
    z_loss: float,
    clip_norm: float,
    clip_value: float,
    reduction: int,
    num_threads: int | None,
    temperatures: NDArray[Any] | None = None,
    softcap: float = 0,
) -> int | None: ...
def sort_segments(ids: Any, count: int, indptr: Any, places: Any) -> bool | int | None: ...
def invert_places(places: Any, order: Any) -> None: ...
def run_segments(
    op: int,
    dtype: int,
    first: Any,
    second: Any,
    result: Any,
    where: Any,
    temperature: float,
    temperatures: Any,
    indptr: Any,
    order: Any,
    places: Any,
    num_threads: Any,
) -> None: ...
def run_segment_loss(
    dtype: int,
    x: Any,
    y: Any,
    losses: Any,
    labels: Any,
    ignore: int | None,
    soft: Any,
    positives: Any,
    sample_weight: Any,
    upstream: Any,
    temperature: float,
    label_smoothing: float,
    z_loss: float,
    clip_norm: float,
    clip_value: float,
    reduction: int,
    temperatures: Any,
    indptr: Any,
    order: Any,
    num_threads: Any,
) -> float | int: ...
def run_geometric(
    task: int,
    similarities: NDArray[np.float64],
    group: NDArray[np.int32] | None,
    x: NDArray[np.float64],
    dy: NDArray[np.float64] | None,
    y: NDArray[np.float64] | None,
    excess: NDArray[np.float64] | None,
    gap: NDArray[np.float64] | None,
    num_threads: int | None,
) -> None: ...
def run_emissions(
    indptr: NDArray[np.int64],
    attributes: NDArray[np.int32],
    values: NDArray[np.float32] | None,
    offsets: NDArray[np.int64],
    labels: NDArray[np.uint16],
    weights: NDArray[np.float64],
    row: NDArray[np.int32],
    rows: NDArray[np.float64],
    emissions: NDArray[np.float64],
    n_labels: int,
    fills: bool,
    num_threads: int | None,
) -> None: ...
def run_feature_gradient(
    blocks: NDArray[np.int64],
    indptr: NDArray[np.int64],
    tokens: NDArray[np.int32],
    values: NDArray[np.float32] | None,
    grad: NDArray[np.float64],
    offsets: NDArray[np.int64],
    labels: NDArray[np.uint16],
    row: NDArray[np.int32],
    result: NDArray[np.float64],
    n_labels: int,
    num_threads: int | None,
) -> None: ...
def run_topk(
    dtype: int,
    x: NDArray[Any],
    values: NDArray[Any],
    indices: NDArray[Any],
    smallest: bool,
    unsorted: bool,
    normalize: int,
    temperature: float,
    num_threads: int | None,
    temperatures: NDArray[Any] | None = None,
) -> None: ...
def run_entmax(
    dtype: int,
    first: NDArray[Any],
    second: NDArray[Any] | None,
    result: NDArray[Any],
    where: NDArray[Any] | None,
    alpha: float,
    num_threads: int | None,
    alphas: NDArray[Any] | None = None,
    alpha_gradient: NDArray[Any] | None = None,
) -> None: ...
def run_weighted_sum(
    dtype: int,
    x: NDArray[Any],
    b: NDArray[Any],
    result: NDArray[Any],
    sign: NDArray[Any],
    where: NDArray[Any] | None,
    temperature: float,
    temperatures: NDArray[Any] | None,
    num_threads: int | None,
) -> None: ...
def run_divergence(
    dtype: int,
    x: NDArray[Any],
    y: NDArray[Any],
    gradient: NDArray[Any] | None,
    loss: NDArray[Any],
    where: NDArray[Any] | None,
    temperature: float,
    temperatures: NDArray[Any] | None,
    sample_weight: NDArray[Any] | None,
    upstream: NDArray[Any] | None,
    reduction: int,
    num_threads: int | None,
) -> None: ...
def run_entmax_loss(
    dtype: int,
    x: NDArray[Any],
    labels: NDArray[Any] | None,
    soft: NDArray[Any] | None,
    gradient: NDArray[Any] | None,
    loss: NDArray[Any],
    alpha: float,
    reduction: int,
    num_threads: int | None,
    alphas: NDArray[Any] | None = None,
    weight: NDArray[Any] | None = None,
    sample_weight: NDArray[Any] | None = None,
) -> None: ...
def run_sample(
    dtype: int,
    x: NDArray[Any],
    uniform: NDArray[Any],
    indices: NDArray[Any],
    where: NDArray[Any] | None,
    temperature: NDArray[Any] | None,
    top_k: NDArray[Any] | None,
    top_p: NDArray[Any] | None,
    min_p: NDArray[Any] | None,
    num_threads: int | None,
    typical_p: NDArray[Any] | None = None,
    top_n_sigma: NDArray[Any] | None = None,
    order: tuple[int, ...] | None = None,
    replace: bool = True,
    log_prob: NDArray[Any] | None = None,
    raw_log_prob: NDArray[Any] | None = None,
) -> bool: ...
def run_penalize(
    dtype: int,
    x: NDArray[Any],
    y: NDArray[Any],
    tokens: NDArray[np.int64],
    lengths: NDArray[np.int64] | None,
    repetition: NDArray[np.float64] | None,
    presence: NDArray[np.float64] | None,
    frequency: NDArray[np.float64] | None,
    bias: NDArray[np.float64] | None,
    classes: NDArray[np.int64] | None,
    values: NDArray[np.float64] | None,
    num_threads: int | None,
) -> None: ...
def run_crf(
    task: int,
    dtype: int,
    emissions: NDArray[Any],
    shape: tuple[int, int, int],
    transitions: NDArray[Any],
    start: NDArray[Any] | None,
    end: NDArray[Any] | None,
    offsets: NDArray[Any] | None,
    rows: NDArray[Any] | None,
    allowed: NDArray[Any] | None,
    labels: NDArray[Any] | None,
    ignore: int | None,
    sets: NDArray[Any] | None,
    num_threads: int | None,
    *,
    is_slow: bool = False,
    sample_weight: NDArray[Any] | None = None,
    upstream: NDArray[Any] | None = None,
    result: NDArray[Any] | None = None,
    total: NDArray[Any] | None = None,
    by_tag: NDArray[Any] | None = None,
    pairs: NDArray[Any] | None = None,
    pair_sums: NDArray[Any] | None = None,
    grad_transitions: NDArray[Any] | None = None,
    grad_start: NDArray[Any] | None = None,
    grad_end: NDArray[Any] | None = None,
    method: int = 0,
    paths: int = 1,
    decoded: NDArray[Any] | None = None,
    sequence_step: int = 0,
    path_step: int = 0,
    fill: int = -1,
    log_prob: NDArray[Any] | None = None,
    uniforms: NDArray[Any] | None = None,
    reduction: int = 0,
    single: int = 0,
) -> int | None: ...
def quick_crf_loss(
    emissions: Any,
    tags: Any,
    transitions: Any,
    start: Any,
    end: Any,
    lengths: Any,
    reduction: Any,
    out: Any,
    num_threads: Any,
) -> tuple[Any, Any, Any, Any, Any] | None: ...
def quick_crf_marginals(
    emissions: Any, transitions: Any, start: Any, end: Any, lengths: Any, out: Any, num_threads: Any
) -> tuple[Any, Any] | None: ...
def quick_crf_decode(
    emissions: Any, transitions: Any, start: Any, end: Any, lengths: Any, num_threads: Any
) -> tuple[Any, Any] | None: ...
def run_row_update(
    dtype: int,
    kind: int,
    learning_rate: float,
    penalty: float,
    w: NDArray[Any],
    rows: NDArray[np.int64] | None,
    g: NDArray[Any] | None,
    state: NDArray[Any] | None,
    second: NDArray[Any] | None,
    visits: NDArray[np.uint32] | None,
    last: NDArray[np.int64] | None,
    step: int,
    num_threads: int | None,
) -> None: ...
def run_alias_masses(
    weights: NDArray[Any] | None, smoothing: float, power: float, masses: NDArray[Any], num_threads: int | None
) -> bool: ...
def run_alias_table(masses: NDArray[Any], cells: NDArray[Any]) -> None: ...
def run_alias_draw(
    n: int, cells: NDArray[Any] | None, random: NDArray[Any], classes: NDArray[Any], num_threads: int | None
) -> None: ...
def run_alias_log_q(
    masses: NDArray[Any] | None,
    total: int,
    rate: float,
    is_poisson: bool,
    classes: NDArray[Any],
    log_q: NDArray[Any],
) -> None: ...
def run_alias_inclusion(masses: NDArray[Any] | None, n: int, t: float) -> tuple[float, float]: ...
def run_row_dots(
    dtype: int,
    x: NDArray[Any],
    w: NDArray[Any],
    ids: NDArray[Any],
    out: NDArray[Any],
    num_threads: int | None,
) -> None: ...
def run_row_sums(
    dtype: int,
    offsets: NDArray[Any],
    g: NDArray[Any],
    w: NDArray[Any],
    ids: NDArray[Any],
    start: NDArray[Any] | None,
    start_ids: NDArray[Any] | None,
    out: NDArray[Any],
    num_threads: int | None,
) -> None: ...
def run_row_add(
    dtype: int,
    ids: NDArray[Any],
    values: NDArray[Any],
    scale: float,
    w: NDArray[Any],
    num_threads: int | None,
) -> None: ...

class TreeShape:
    child: NDArray[np.int32]
    leaf_parent: NDArray[np.uint32]
    node_parent: NDArray[np.uint32]
    order: NDArray[np.int32]
    depth: NDArray[np.int32]
    def __init__(self, classes: int, root: int, child: NDArray[np.int32]) -> None: ...
    def trace(self) -> int: ...
    def sums(self, weights: NDArray[np.float64]) -> NDArray[np.float64]: ...

class TreeCall:
    def __init__(
        self,
        dtype: int,
        shape: TreeShape,
        theta: NDArray[Any],
        bias: NDArray[Any] | None,
        x: NDArray[Any],
        temperature: float,
        num_threads: int | None,
    ) -> None: ...
    def log_proba(self, out: NDArray[np.float64]) -> None: ...
    def topk(
        self, k: int, values: NDArray[np.float64], indices: NDArray[np.int64], evaluated: NDArray[np.int64]
    ) -> None: ...
    def walk(self, rows: NDArray[np.int64], uniforms: NDArray[np.float64], places: NDArray[np.int64]) -> bool: ...

class TreeLoss:
    loss: NDArray[np.float64]
    grad_x: NDArray[Any] | None
    def __init__(
        self,
        call: TreeCall,
        labels: NDArray[np.int64],
        offsets: NDArray[np.int64],
        scale: NDArray[np.float64] | None,
        upstream: NDArray[np.float64] | None,
        clip_norm: float,
        clip_value: float,
        is_rounded: bool,
        gradient: bool,
    ) -> None: ...
    def run(self) -> None: ...
    def gradients(self, has_bias: bool) -> tuple[NDArray[np.int64], NDArray[Any], NDArray[Any] | None]: ...
    def step(
        self, kind: int, learning_rate: float, theta: Any, bias: Any, frozen: NDArray[np.uint8] | None
    ) -> None: ...

def huffman(weights: NDArray[np.float64], classes: NDArray[np.int64]) -> NDArray[np.int32]: ...
def sort_rows(keys: NDArray[Any], bins: int) -> tuple[NDArray[Any], NDArray[Any]]: ...
def group_rows(
    keys: NDArray[Any], columns: int, has_source: bool
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]: ...
def split_terms(offsets: NDArray[Any], order: NDArray[Any], m: int) -> tuple[NDArray[Any], ...]: ...
def run_sampled_loss(
    dtype: int,
    is_softmax: bool,
    x: NDArray[Any],
    w: NDArray[Any],
    ids: NDArray[Any] | None,
    labels: NDArray[Any],
    u: NDArray[Any],
    terms: NDArray[Any] | None,
    label_terms: NDArray[Any] | None,
    hits: tuple[Any, ...] | None,
    counts: NDArray[Any] | None,
    scale: NDArray[Any] | None,
    upstream: NDArray[Any] | None,
    loss: NDArray[Any],
    sums: NDArray[Any] | None,
    grad_x: NDArray[Any] | None,
    gradient: bool,
    temperature: float,
    clip_norm: float,
    clip_value: float,
    num_threads: int | None,
) -> None: ...
def run_logistic_loss(
    dtype: int,
    u: NDArray[Any],
    counts: NDArray[Any] | None,
    scale: NDArray[Any] | None,
    upstream: NDArray[Any] | None,
    loss: NDArray[Any],
    gradient: bool,
    temperature: float,
    clip_norm: float,
    clip_value: float,
    num_threads: int | None,
) -> None: ...
def run_hash_buckets(
    family: NDArray[np.uint64], buckets: int, ids: NDArray[Any], out: NDArray[np.int64], num_threads: Any
) -> None: ...
def run_hash_scores(
    family: NDArray[np.uint64],
    tables: NDArray[np.float32],
    begin: int,
    ids: NDArray[Any] | None,
    rule: tuple[bool, float, NDArray[np.float32] | None],
    out: NDArray[np.float32],
    num_threads: Any,
) -> None: ...
def run_hash_topk(
    family: NDArray[np.uint64],
    tables: NDArray[np.float32],
    count: int,
    ids: NDArray[Any] | None,
    rule: tuple[bool, float, NDArray[np.float32] | None],
    values: NDArray[np.float32],
    places: NDArray[np.int64],
    num_threads: Any,
) -> None: ...
def run_int8_quantise(layer: Any, w: NDArray[Any], ids: NDArray[Any] | None, num_threads: Any) -> None: ...
def run_int8_nibbles(layer: Any, groups: NDArray[Any] | None, num_threads: Any) -> None: ...
def run_int8_topk(
    layer: Any,
    x: NDArray[Any],
    k: int,
    limbs: int,
    where: NDArray[Any] | None,
    indptr: NDArray[Any] | None,
    excluded: NDArray[Any] | None,
    values: NDArray[Any],
    indices: NDArray[Any],
    found: NDArray[Any],
    rescored: NDArray[Any],
    num_threads: Any,
) -> None: ...
def run_int8_lists(
    layer: Any,
    centers: Any,
    lists: tuple[NDArray[Any], ...],
    x: NDArray[Any],
    k: int,
    probes: int,
    is_exact: bool,
    limit: int,
    where: NDArray[Any] | None,
    indptr: NDArray[Any] | None,
    excluded: NDArray[Any] | None,
    values: NDArray[Any],
    indices: NDArray[Any],
    found: NDArray[Any],
    rescored: NDArray[Any],
    certified: NDArray[Any],
    scanned: NDArray[Any],
    probed: NDArray[Any],
    num_threads: Any,
) -> None: ...
def run_int8_scores(
    layer: Any, x: NDArray[Any], ids: NDArray[Any] | None, scores: NDArray[Any], num_threads: Any
) -> None: ...
def run_int8_bounds(
    layer: Any, x: NDArray[Any], scores: NDArray[Any], bounds: NDArray[Any], num_threads: Any
) -> float: ...
def run_int8_dots(
    vnni: bool, codes: NDArray[Any], x: NDArray[Any], vectors: int, offset: NDArray[Any], out: NDArray[Any]
) -> bool: ...
def run_int8_narrow_dots(
    codes: NDArray[Any],
    x: NDArray[Any],
    vectors: int,
    offset: NDArray[Any],
    scratch: NDArray[Any],
    out: NDArray[Any],
) -> None: ...
def run_int8_nibble_dots(nibbles: NDArray[Any], x: NDArray[Any], offset: int, out: NDArray[Any]) -> None: ...
def run_certify(
    x: NDArray[Any],
    w: NDArray[Any],
    bias: NDArray[Any] | None,
    target: NDArray[Any] | None,
    low: NDArray[Any] | None,
    high: NDArray[Any] | None,
    norm: tuple[int, float],
    radius: NDArray[Any],
    margin: NDArray[Any],
    rival: NDArray[Any],
    num_threads: Any,
) -> None: ...
def run_dual_norms(
    w: NDArray[Any], classes: NDArray[Any], norm: tuple[int, float], out: NDArray[Any], num_threads: Any
) -> None: ...
def run_climb(
    dtype: int,
    x: NDArray[Any],
    layer: tuple[NDArray[Any], NDArray[Any], NDArray[Any] | None],
    labels: NDArray[Any],
    walls: tuple[NDArray[Any], NDArray[Any]] | None,
    ball: tuple[float, int, float],
    steps: int,
    start: NDArray[Any] | None,
    delta: NDArray[Any],
    num_threads: Any,
) -> None: ...
def run_climb_step(
    dtype: int,
    delta: NDArray[Any],
    g: NDArray[Any],
    low: NDArray[Any],
    high: NDArray[Any],
    step: float,
    num_threads: Any,
) -> None: ...
def run_stream_blocks(
    operation: int,
    dtype: int,
    x: NDArray[Any],
    temperature: float,
    max: NDArray[Any] | None,
    blocks: NDArray[Any],
    num_threads: Any,
) -> None: ...
def combine_stream(
    operation: int,
    dtype: int,
    temperature: float,
    max: NDArray[Any] | None,
    blocks: NDArray[Any],
    rows: NDArray[Any],
    lse: NDArray[Any] | None,
) -> None: ...
def run_stream_results(
    dtype: int,
    x: NDArray[Any],
    temperature: float,
    max: NDArray[Any] | None,
    rows: NDArray[Any],
    y: NDArray[Any],
    num_threads: Any,
) -> bool: ...
def run_stream_values(
    dtype: int,
    x: NDArray[Any],
    temperature: float,
    max: NDArray[Any] | None,
    values: NDArray[Any],
    blocks: NDArray[Any],
    sums: NDArray[Any],
    num_threads: Any,
) -> None: ...
def run_subsets(
    x: NDArray[Any],
    offsets: NDArray[Any],
    k: NDArray[Any],
    log_sums: NDArray[Any] | None,
    marginals: NDArray[Any] | None,
    single: NDArray[Any] | None,
    num_threads: Any,
) -> None: ...

RANKING_TIES: dict[str, int]

def run_rankings(
    dtype: int,
    x: NDArray[Any],
    relevance: NDArray[Any],
    observed: NDArray[Any] | None,
    offsets: NDArray[Any],
    ties: int,
    top: int | None,
    temperature: Any,
    sample_weight: NDArray[Any] | None,
    upstream: NDArray[Any] | None,
    reduction: int,
    losses: NDArray[Any],
    single: NDArray[Any] | None,
    grad: NDArray[Any] | None,
    num_threads: Any,
) -> float: ...
def run_shard(
    kind: int,
    dtype: int,
    input: NDArray[Any],
    y: NDArray[Any] | None,
    e: NDArray[Any] | None,
    where: NDArray[Any] | None,
    records: NDArray[np.int64],
    block_max: NDArray[np.float64],
    classes: int,
    offset: int,
    temperature: float,
    temperatures: NDArray[np.float64] | None,
    row_max: NDArray[np.float64] | None,
    num_threads: int | None,
) -> None: ...
def finish_shard(
    kind: int,
    dtype: int,
    input: NDArray[Any],
    y: NDArray[Any] | None,
    from_e: bool,
    where: NDArray[Any] | None,
    records: NDArray[np.int64],
    block_max: NDArray[np.float64] | None,
    result: NDArray[Any],
    classes: int,
    offset: int,
    temperature: float,
    temperatures: NDArray[np.float64] | None,
    row_max: NDArray[np.float64] | None,
    num_threads: int | None,
) -> None: ...
def run_sample_masses(
    dtype: int, masses: NDArray[np.float64], sums: NDArray[np.int64] | None, *arguments: Any
) -> None: ...
def run_sample_nucleus(
    dtype: int, top_p: NDArray[np.float64], sums: NDArray[np.int64], kept: NDArray[np.int64], *arguments: Any
) -> None: ...
def run_sample_draws(
    dtype: int, masses: NDArray[np.float64], uniforms: NDArray[np.float64], indices: NDArray[np.int64], *arguments: Any
) -> None: ...
def run_shard_loss(
    dtype: int,
    e: NDArray[Any] | None,
    records: NDArray[np.int64],
    block_max: NDArray[np.float64],
    *arguments: Any,
) -> bool: ...
def run_shard_squares(
    dtype: int,
    records: NDArray[np.int64],
    block_max: NDArray[np.float64],
    squares: NDArray[np.int64],
    *arguments: Any,
) -> None: ...
def run_shard_lost(dtype: int, records: NDArray[np.int64], lost: NDArray[np.int64], *arguments: Any) -> bool: ...
def finish_shard_loss(
    dtype: int,
    from_e: bool,
    records: NDArray[np.int64] | None,
    block_max: NDArray[np.float64] | None,
    loss: NDArray[np.float64] | None,
    gradient: NDArray[Any] | None,
    squares: NDArray[np.int64] | None,
    *arguments: Any,
) -> None: ...
def shard_weights(dtype: int, weight: NDArray[Any]) -> NDArray[np.int64]: ...
def sum_totals(words: NDArray[np.int64], totals: NDArray[np.float64]) -> None: ...
def merge_sums(into: NDArray[np.int64], other: NDArray[np.int64]) -> None: ...
def clear_records(records: NDArray[np.int64]) -> None: ...
def tree_sum(values: NDArray[np.float64]) -> float: ...
def check_records(records: NDArray[np.int64]) -> None: ...
def merge_records(into: NDArray[np.int64], other: NDArray[np.int64]) -> None: ...
def merge_gathered(gathered: NDArray[np.int64], first: int, words: int) -> None: ...
def all_below(labels: NDArray[np.int64], n: int) -> bool: ...
def find_bad_owner(records: NDArray[np.int64], labels: NDArray[np.int64]) -> int: ...
def fold_records(records: NDArray[np.int64], row_max: NDArray[np.float64]) -> None: ...
def raise_records(records: NDArray[np.int64], highest: NDArray[np.int64]) -> None: ...
def record_sums(words: int) -> int: ...
def find_second_round(
    kind: int,
    dtype: int,
    records: NDArray[np.int64],
    temperature: float,
    temperatures: NDArray[np.float64] | None,
    row_max: NDArray[np.float64],
) -> int: ...
