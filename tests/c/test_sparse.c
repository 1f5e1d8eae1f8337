/* Top-k, entmax and sampling in the C core: every dtype, layout, thread count and instruction set against the scalar
 * unit on contiguous rows, byte for byte; top-k also against a plain selection sort.  Called by test_core.c, whose hash
 * it continues.
 */
#include "../../src_c/core/call.h"
#include "../../src_c/core/extension.h"
#include "../../src_c/vec/half.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TOPK(name, storage, compute) csm_topk_##name,
#define ENTMAX(name, storage, compute) csm_entmax_##name,
#define VJP(name, storage, compute) csm_entmax_vjp_##name,
#define LOSS(name, storage, compute) csm_entmax_loss_##name,
#define DRAW(name, storage, compute) csm_sample_##name,
#define PENALIZE(name, storage, compute) csm_penalize_##name,
#define ITEM(name, storage, compute) sizeof(storage),
#define ISA_NAME(name, bits) #name,
static csm_status (*const topk[])(const csm_shape *, const csm_view *, size_t, const csm_view *, const csm_view *,
                                  const csm_topk_options *) = {CSM_DTYPES(TOPK)};
static csm_status (*const entmax[])(const csm_shape *, const csm_view *, const csm_view *,
                                    const csm_entmax_options *) = {CSM_DTYPES(ENTMAX)};
static csm_status (*const vjp[])(const csm_shape *, const csm_view *, const csm_view *, const csm_view *,
                                 const csm_entmax_options *) = {CSM_DTYPES(VJP)};
static csm_status (*const loss[])(const csm_shape *, const csm_view *, const csm_view *, const csm_view *,
                                  const csm_view *, double *, const csm_entmax_options *) = {CSM_DTYPES(LOSS)};
static csm_status (*const draw[])(const csm_shape *, const csm_view *, size_t, const csm_view *, const csm_view *,
                                  const csm_sample_options *) = {CSM_DTYPES(DRAW)};
static csm_status (*const penalize[])(const csm_shape *, const csm_view *, const csm_view *, size_t, const csm_view *,
                                      const csm_penalize_options *) = {CSM_DTYPES(PENALIZE)};
static const size_t sizes[] = {CSM_DTYPES(ITEM)};
static const char *const isas[] = {CSM_ISAS(ISA_NAME)};
enum { ISAS = sizeof isas / sizeof isas[0], ROWS = 4, DRAWS = 9 };

static uint64_t state = 1181783497276652981u;
static uint32_t next(void) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 32);
}

static char *need(size_t size) {
    char *p = calloc(size + 64, 1);
    if (!p) abort();
    return p;
}

static double get(const char *from, csm_dtype dtype) {
    float f;
    double d;
    uint16_t h;
    if (dtype == CSM_DTYPE_f64) return memcpy(&d, from, 8), d;
    if (dtype == CSM_DTYPE_f32) return memcpy(&f, from, 4), (double)f;
    memcpy(&h, from, 2);
    return (double)(dtype == CSM_DTYPE_f16 ? csm_from_f16(h) : csm_from_bf16(h));
}
static void put(char *to, csm_dtype dtype, double value) {
    float f = (float)value;
    uint16_t h = dtype == CSM_DTYPE_f16 ? csm_to_f16(f) : csm_to_bf16(f);
    if (dtype == CSM_DTYPE_f64) memcpy(to, &value, 8);
    else if (dtype == CSM_DTYPE_f32) memcpy(to, &f, 4);
    else memcpy(to, &h, 2);
}

/* The results of a problem, row by row. */
typedef struct result {
    char *values, *full, *y, *dx, *gradient;
    int64_t *indices, *lowest, draws[4][ROWS * DRAWS];
    double loss[ROWS], logs[3][ROWS * DRAWS];
    csm_status status[11];
    char *penalized;
} result;

static result empty_result(size_t n, size_t k, size_t size) {
    result r = {need(ROWS * k * size),
                need(ROWS * k * size),
                need(ROWS * n * size),
                need(ROWS * n * size),
                need(ROWS * n * size),
                (int64_t *)(void *)need(ROWS * k * 8),
                (int64_t *)(void *)need(ROWS * k * 8),
                {{0}},
                {0},
                {{0}},
                {0},
                need(ROWS * n * size)};
    return r;
}
static void release(result *r) {
    void *const all[] = {r->values, r->full, r->y, r->dx, r->gradient, r->indices, r->lowest, r->penalized};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

/* Draws with other filters in another order, draws without replacement, penalties. */
static void compute_more(csm_dtype dtype, const csm_shape *shape, const csm_view *vx, const csm_view *vu, int threads,
                         result *r) {
    static const csm_filter order[] = {CSM_FILTER_TOP_P, CSM_FILTER_TEMPERATURE, CSM_FILTER_TYPICAL_P,
                                       CSM_FILTER_TOP_N_SIGMA};
    const size_t n = shape->n, wide = dtype == CSM_DTYPE_f64 ? 8 : 4, few = n < DRAWS ? n : DRAWS;
    double top_p = 0.9, temperature = 0.75, typical_p = 0.8, top_n_sigma = 1.5, one = 1.25, half = 0.5;
    csm_view views[6], drawn = csm_contiguous(shape, DRAWS, r->draws[2], 8);
    csm_view taken = csm_contiguous(shape, DRAWS, r->draws[3], 8), log = csm_contiguous(shape, DRAWS, r->logs[0], wide);
    csm_view raw = csm_contiguous(shape, DRAWS, r->logs[1], wide), own = csm_contiguous(shape, DRAWS, r->logs[2], wide);
    double *const values[] = {&top_p, &temperature, &typical_p, &top_n_sigma, &one, &half};
    for (int i = 0; i < 6; i++) {
        views[i] = csm_contiguous(shape, 1, values[i], 8);
        views[i].strides[0] = 0;
    }
    csm_sample_options s = csm_default_sample_options();
    s.threads = threads;
    s.top_p = &views[0];
    s.temperature = &views[1];
    s.typical_p = &views[2];
    s.top_n_sigma = &views[3];
    s.order = order;
    s.order_count = 4;
    s.log_prob = &log;
    s.raw_log_prob = &raw;
    r->status[8] = draw[dtype](shape, vx, DRAWS, vu, &drawn, &s);
    s = csm_default_sample_options();
    s.threads = threads;
    s.without_replacement = 1;
    s.log_prob = &own;
    r->status[9] = draw[dtype](shape, vx, few, vu, &taken, &s);
    int64_t tokens[ROWS * DRAWS];
    for (int i = 0; i < ROWS * DRAWS; i++) tokens[i] = (int64_t)((size_t)i * 7 % (n + 2)) - 1;
    csm_view seen = csm_contiguous(shape, DRAWS, tokens, 8), to = csm_contiguous(shape, n, r->penalized, sizes[dtype]);
    csm_penalize_options p = csm_default_penalize_options();
    p.threads = threads;
    p.repetition = &views[4];
    p.presence = p.frequency = &views[5];
    r->status[10] = penalize[dtype](shape, vx, &to, DRAWS, &seen, &p);
}

/* Computes all results as contiguous rows.  transposed: x is transposed in memory. */
static void compute(csm_dtype dtype, const char *x, size_t n, size_t k, double alpha, int transposed, int threads,
                    result *r) {
    const size_t size = sizes[dtype];
    csm_shape shape = {.n = n, .ndim = 1, .shape = {ROWS}};
    char *laid = need(ROWS * n * size);
    for (size_t row = 0; row < ROWS; row++)
        for (size_t j = 0; j < n; j++)
            memcpy(laid + (transposed ? j * ROWS + row : row * n + j) * size, x + (row * n + j) * size, size);
    csm_view vx = csm_contiguous(&shape, n, laid, size), vy = csm_contiguous(&shape, n, r->y, size);
    if (transposed) {
        vx.axis_stride = (ptrdiff_t)(ROWS * size);
        vx.strides[0] = (ptrdiff_t)size;
    }
    csm_view vv = csm_contiguous(&shape, k, r->values, size), vf = csm_contiguous(&shape, k, r->full, size);
    csm_view vi = csm_contiguous(&shape, k, r->indices, 8), vd = csm_contiguous(&shape, n, r->dx, size);
    csm_view vl = csm_contiguous(&shape, k, r->lowest, 8), vg = csm_contiguous(&shape, n, r->gradient, size);
    csm_topk_options t = csm_default_topk_options();
    t.threads = threads;
    t.smallest = 1;
    r->status[0] = topk[dtype](&shape, &vx, k, &vv, &vl, &t);
    t.smallest = 0;
    t.normalize = CSM_TOPK_FULL;
    r->status[1] = topk[dtype](&shape, &vx, k, &vf, &vi, &t);
    t.normalize = CSM_TOPK_NONE;
    r->status[2] = topk[dtype](&shape, &vx, k, &vv, &vi, &t);
    csm_entmax_options e = csm_default_entmax_options();
    e.alpha = alpha;
    e.threads = threads;
    e.reduction = CSM_NONE;
    r->status[3] = entmax[dtype](&shape, &vx, &vy, &e);
    r->status[4] = vjp[dtype](&shape, &vx, &vy, &vd, &e);
    int64_t labels[ROWS];
    for (size_t row = 0; row < ROWS; row++) labels[row] = (int64_t)(row * 7 % n);
    csm_view classes = csm_contiguous(&shape, 1, labels, 8);
    r->status[5] = loss[dtype](&shape, &vx, &classes, NULL, &vg, r->loss, &e);
    double uniform[ROWS * DRAWS], top_p = 0.9, temperature = 0.5;
    for (int i = 0; i < ROWS * DRAWS; i++) uniform[i] = (double)(i * 37 % 101) / 101;
    csm_view vu = csm_contiguous(&shape, DRAWS, uniform, 8), plain = csm_contiguous(&shape, DRAWS, r->draws[0], 8);
    csm_view nucleus = csm_contiguous(&shape, DRAWS, r->draws[1], 8);
    csm_view p = csm_contiguous(&shape, 1, &top_p, 8), warm = csm_contiguous(&shape, 1, &temperature, 8);
    p.strides[0] = warm.strides[0] = 0;
    csm_sample_options s = csm_default_sample_options();
    s.threads = threads;
    r->status[6] = draw[dtype](&shape, &vx, DRAWS, &vu, &plain, &s);
    s.top_p = &p;
    s.temperature = &warm;
    r->status[7] = draw[dtype](&shape, &vx, DRAWS, &vu, &nucleus, &s);
    compute_more(dtype, &shape, &vx, &vu, threads, r);
    free(laid);
}

static int is_before(double a, double b) { /* whether a precedes b in falling order, NaN first */
    if (a != a) return !(b != b);
    return !(b != b) && a > b;
}

static int is_selected(csm_dtype dtype, const char *x, size_t n, size_t k, const result *r) {
    for (size_t row = 0; row < ROWS; row++) {
        const char *from = x + row * n * sizes[dtype];
        char *taken = need(n);
        int ok = 1;
        for (size_t i = 0; i < k && ok; i++) {
            size_t best = n;
            for (size_t j = 0; j < n; j++)
                if (!taken[j] && (best == n || is_before(get(from + j * sizes[dtype], dtype),
                                                         get(from + best * sizes[dtype], dtype))))
                    best = j;
            taken[best] = 1;
            ok = r->indices[row * k + i] == (int64_t)best;
        }
        free(taken);
        if (!ok) return 0;
    }
    return 1;
}

static int all_drawn(const result *r) {
    return r->status[6] == CSM_OK && r->status[7] == CSM_OK && r->status[8] == CSM_OK && r->status[9] == CSM_OK;
}
static int is_same(const result *a, const result *b, size_t n, size_t k, size_t size) {
    return !memcmp(a->values, b->values, ROWS * k * size) && !memcmp(a->full, b->full, ROWS * k * size) &&
           !memcmp(a->y, b->y, ROWS * n * size) && !memcmp(a->dx, b->dx, ROWS * n * size) &&
           !memcmp(a->gradient, b->gradient, ROWS * n * size) && !memcmp(a->indices, b->indices, ROWS * k * 8) &&
           !memcmp(a->lowest, b->lowest, ROWS * k * 8) && !memcmp(a->loss, b->loss, sizeof a->loss) &&
           !memcmp(a->status, b->status, sizeof a->status) && !memcmp(a->penalized, b->penalized, ROWS * n * size) &&
           (!all_drawn(a) ||
            (!memcmp(a->draws, b->draws, sizeof a->draws) && !memcmp(a->logs, b->logs, sizeof a->logs)));
}

static void add_to(uint64_t *hash, const void *data, size_t size) {
    for (size_t i = 0; i < size; i++) *hash = (*hash ^ ((const unsigned char *)data)[i]) * 0x100000001b3u;
}

/* Element j of integers of any type, in the order of uint64_t. */
static uint64_t integer_at(const char *x, size_t size, int is_signed, size_t j) {
    uint64_t bits = 0;
    for (size_t b = size; b-- > 0;) bits = bits << 8 | (unsigned char)x[j * size + b]; /* little-endian machines */
    return is_signed ? bits ^ (uint64_t)1 << (8 * size - 1) : bits;
}
/* Top-k of integers of every type on every instruction set: each selected element precedes the next, none that is
 * left out precedes the last. */
static void test_integers(long counts[2]) {
    static const size_t lengths[] = {1, 2, 7, 16, 33, 64, 65, 127, 129, 200, 1000, 4100}, bytes[] = {1, 2, 4, 8};
    for (int type = CSM_INT8; type <= CSM_UINT64; type++)
        for (size_t l = 0; l < sizeof lengths / sizeof lengths[0]; l++)
            for (int kind = 0; kind < 24; kind++) {
                const size_t n = lengths[l], size = bytes[type % 4],
                             k = kind % 3 == 0   ? n
                                 : kind % 3 == 1 ? 1
                                                 : n / 2 + 1;
                const int is_signed = type < CSM_UINT8, smallest = kind / 3 % 2;
                const csm_shape shape = {.n = n};
                char *x = need(n * size), *values = need(k * size);
                int64_t *indices = (int64_t *)(void *)need(k * 8);
                for (size_t i = 0; i < n * size; i++) /* any bytes; all but the last alike; few different ones */
                    x[i] = (char)(kind / 6 == 0 || (kind / 6 == 1 && i % size == 0) ? next()
                                  : kind / 6 == 2                                   ? next() % 2 * 255
                                                                                    : 127);
                csm_view vx = csm_contiguous(&shape, n, x, size), vv = csm_contiguous(&shape, k, values, size);
                csm_view vi = csm_contiguous(&shape, k, indices, 8);
                csm_topk_options o = csm_default_topk_options();
                o.smallest = smallest;
                for (int i = 0; i < ISAS; i++) {
                    if (csm_select_isa(isas[i])) continue;
                    int ok = csm_topk_integer((csm_label_type)type, &shape, &vx, k, &vv, &vi, &o) == CSM_OK;
                    char *taken = need(n);
                    memset(taken, 0, n);
                    uint64_t last = 0;
                    for (size_t at = 0; at < k && ok; at++) {
                        const size_t j = (size_t)indices[at];
                        ok = j < n && !taken[j] && memcmp(values + at * size, x + j * size, size) == 0;
                        if (!ok) break;
                        const uint64_t here = integer_at(x, size, is_signed, j), key = smallest ? ~here : here;
                        taken[j] = 1;
                        if (at > 0) ok = key < last || (key == last && indices[at - 1] < indices[at]);
                        last = key;
                    }
                    for (size_t j = 0; j < n && ok; j++) {
                        const uint64_t here = integer_at(x, size, is_signed, j), key = smallest ? ~here : here;
                        if (!taken[j]) ok = key < last || (key == last && (int64_t)j > indices[k - 1]);
                    }
                    counts[!ok]++;
                    if (!ok) printf("FAILED integers type %d n %zu k %zu kind %d %s\n", type, n, k, kind, isas[i]);
                    free(taken);
                }
                free(x);
                free(values);
                free(indices);
            }
}

void test_sparse(size_t every, uint64_t *hash, long counts[2]);
void test_sparse(size_t every, uint64_t *hash, long counts[2]) {
    static const size_t lengths[] = {1, 2, 7, 16, 17, 33, 64, 65, 100, 127, 128, 129, 200, 1000, 4096, 4100, 9001};
    static const double alphas[] = {1.01, 1.3, 1.5, 2, 3};
    const char *chosen = csm_isa();
    size_t at = 0;
    for (int dtype = 0; dtype < CSM_DTYPE_COUNT; dtype++)
        for (size_t l = 0; l < sizeof lengths / sizeof lengths[0]; l++)
            for (int kind = 0; kind < 12; kind++) {
                const size_t n = lengths[l], size = sizes[dtype];
                const size_t counts_of_k[] = {1, 5, 40, n / 2, n}, k_or_0 = counts_of_k[(size_t)kind % 5] % (n + 1);
                const size_t k = k_or_0 ? k_or_0 : 1;
                const double alpha = alphas[(l + (size_t)kind) % 5];
                if (at++ % every) continue;
                char *x = need(ROWS * n * size);
                for (size_t i = 0; i < ROWS * n; i++) {
                    double v = (double)(int)(next() % 4001 - 2000) / 512;
                    if (kind == 1) v = (double)(i % n) / 64; /* ascending */
                    if (kind == 2) v = -(double)(i % n) / 64;
                    if (kind == 3) v = 1;
                    if (kind == 4) v = next() % 2 ? 0.0 : -0.0;
                    if (kind == 5) v = (double)(next() % 5);
                    if (kind == 6) v /= 1024;
                    if (kind == 7 && next() % 3 == 0) v = -CSM_INF;
                    if (kind == 8 && i % n == n / 2) v = CSM_NAN;
                    if (kind == 9 && i / n == 1) v = next() % 2 ? CSM_NAN : CSM_INF;
                    if (kind == 10) v *= dtype == CSM_DTYPE_f16 ? 1000 : 1e30; /* transformed */
                    put(x + i * size, (csm_dtype)dtype, v);
                }
                result expected = empty_result(n, k, size), got = empty_result(n, k, size);
                if (csm_select_isa("scalar")) abort();
                compute((csm_dtype)dtype, x, n, k, alpha, 0, 1, &expected);
                int ok = (n * k > 400000 || is_selected((csm_dtype)dtype, x, n, k, &expected));
                for (int i = 0; i < 6; i++) ok &= expected.status[i] == CSM_OK;
                ok &= expected.status[10] == CSM_OK;
                for (int i = 6; i < 10; i++)
                    ok &=
                        expected.status[i] ==
                        (kind == 8 || kind == 9 || kind == 10 || (kind == 7 && n < 100) ? expected.status[i] : CSM_OK);
                add_to(hash, expected.values, ROWS * k * size);
                add_to(hash, expected.full, ROWS * k * size);
                add_to(hash, expected.y, ROWS * n * size);
                add_to(hash, expected.dx, ROWS * n * size);
                add_to(hash, expected.gradient, ROWS * n * size);
                add_to(hash, expected.loss, sizeof expected.loss);
                add_to(hash, expected.penalized, ROWS * n * size);
                if (all_drawn(&expected)) {
                    add_to(hash, expected.draws, sizeof expected.draws);
                    add_to(hash, expected.logs, sizeof expected.logs);
                }
                for (int i = 0; i < ISAS; i++) {
                    if (csm_select_isa(isas[i])) continue;
                    for (int form = 0; form < 3; form++) {
                        compute((csm_dtype)dtype, x, n, k, alpha, form & 1, form == 2 ? 3 : 1, &got);
                        ok &= is_same(&got, &expected, n, k, size);
                    }
                }
                counts[!ok]++;
                if (!ok && counts[1] < 20) printf("FAILED sparse dtype %d n %zu k %zu kind %d\n", dtype, n, k, kind);
                free(x);
                release(&expected);
                release(&got);
            }
    test_integers(counts);
    csm_select_isa(chosen);
}
