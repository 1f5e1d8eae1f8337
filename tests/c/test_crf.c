/* The linear-chain CRF in the C core: every unit against the scalar one, byte for byte, over numbers of tags around
 * every vector length, dtypes, ragged sequences, forbidden and improbable transitions, sets of labels, threads; every
 * task.  Called by test_core.c, whose hash it continues. */
#include "problem.h"

#include <string.h>

void test_crf(size_t every, uint64_t *hash, long counts[2]);

enum { SEQUENCES = 37, LENGTH = 6, ROWS = SEQUENCES * LENGTH };
enum { PLAIN, FORBIDDEN, IMPROBABLE, FAR, SETS, CRF_KINDS };

typedef struct chain {
    int dtype, kind;
    size_t tags;
    char *x;
    double *parameters, *uniforms;
    int64_t labels[ROWS], offsets[SEQUENCES + 1], rows[ROWS];
    unsigned char *sets;
} chain;
/* All results of a chain, in one piece of memory. */
typedef struct results {
    size_t bytes;
    char *begin;
} results;

static double number(void) { return (double)next() / 0x1p30 - 2; }

static chain make_chain(int dtype, int kind, size_t tags) {
    chain c = {.dtype = dtype, .kind = kind, .tags = tags};
    c.x = need(ROWS * tags * sizes_of[dtype]);
    c.parameters = need((tags * tags + 2 * tags) * sizeof(double));
    c.uniforms = need(2 * ROWS * sizeof(double));
    c.sets = need(ROWS * tags);
    for (size_t i = 0; i < ROWS * tags; i++) {
        double v = 3 * number();
        if (kind == FAR) v *= 300; /* beside others, weights vanish */
        if (kind == FORBIDDEN && next() % 8 == 0) v = -CSM_INF;
        put(dtype, c.x, i, v);
        c.sets[i] = next() % 2 == 0;
    }
    for (size_t i = 0; i < tags * tags + 2 * tags; i++) {
        c.parameters[i] = number();
        if (next() % 4 == 0 && kind == FORBIDDEN) c.parameters[i] = -CSM_INF;
        if (next() % 4 == 0 && kind == IMPROBABLE) c.parameters[i] = -1e4;
    }
    for (size_t i = 0; i < 2 * ROWS; i++) c.uniforms[i] = (double)next() / 0x1p32;
    for (size_t i = 0; i < ROWS; i++) c.labels[i] = next() % 9 == 0 && kind == SETS ? -100 : (int64_t)(next() % tags);
    int64_t used = 0;
    for (size_t i = 0; i < SEQUENCES; i++) {
        c.offsets[i] = used;
        for (size_t t = 0; t < LENGTH; t++)
            if (next() % 5) c.rows[used++] = (int64_t)(i * LENGTH + t);
    }
    c.offsets[SEQUENCES] = used;
    return c;
}
static void drop_chain(chain *c) {
    free(c->x);
    free(c->parameters);
    free(c->uniforms);
    free(c->sets);
}

/* Runs every task; each result follows the last one. */
static results run(const chain *c, int threads) {
    static csm_status (*const functions[])(csm_crf_task, const void *, csm_crf_options *) = {csm_crf_f32, csm_crf_f64,
                                                                                             csm_crf_f16, csm_crf_bf16};
    const size_t L = c->tags, item = sizes_of[c->dtype], matrix = ROWS * L * item, N = SEQUENCES;
    const size_t doubles = 7 * N + 1 + L * L + 2 * L + N * L * L, integers = 6 * ROWS;
    results r = {.bytes = 2 * matrix + (doubles + integers) * 8};
    r.begin = need(r.bytes);
    memset(r.begin, 0, r.bytes);
    double *at = (double *)(void *)r.begin;
    int64_t *tags = (int64_t *)(void *)(at + doubles);
    char *by_tag = (char *)(tags + integers);
    csm_crf_options o = csm_default_crf_options();
    o.sequences = N;
    o.tags = L;
    o.offsets = c->offsets;
    o.rows = c->rows;
    o.transitions = c->parameters;
    o.start = c->parameters + L * L;
    o.end = o.start + L;
    o.has_ignore = 1;
    o.ignore = -100;
    o.threads = threads;
    o.sequence_step = LENGTH;
    o.path_step = LENGTH;
    csm_crf_options loss = o, marginals = o, decode = o, sample = o;
    if (c->kind == SETS && L % 2) loss.sets = c->sets;
    else loss.labels = c->labels;
    loss.reduction = CSM_CRF_TOKEN_MEAN;
    loss.result = at, loss.total = at + N, loss.by_tag = by_tag, loss.grad_transitions = at + N + 1;
    loss.grad_start = loss.grad_transitions + L * L, loss.grad_end = loss.grad_start + L;
    marginals.result = loss.grad_end + L, marginals.by_tag = by_tag + matrix;
    marginals.pair_sums = marginals.result + N;
    decode.result = marginals.pair_sums + N * L * L, decode.log_prob = decode.result + 2 * N;
    decode.paths = 2, decode.decoded = tags;
    sample.paths = 2, sample.decoded = tags + 2 * ROWS, sample.uniforms = c->uniforms;
    csm_crf_options posterior = o;
    posterior.method = CSM_CRF_POSTERIOR_PATH, posterior.result = decode.log_prob + 2 * N;
    posterior.decoded = tags + 4 * ROWS, posterior.sequence_step = 0;
    struct {
        csm_crf_task task;
        csm_crf_options *options;
    } all[] = {{CSM_CRF_LOSS, &loss},
               {CSM_CRF_MARGINALS, &marginals},
               {CSM_CRF_DECODE, &posterior},
               {CSM_CRF_DECODE, &decode},
               {CSM_CRF_SAMPLE, &sample}};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        check(functions[c->dtype](all[i].task, c->x, all[i].options) == CSM_OK, "crf, task %d", (int)all[i].task);
    return r;
}

static void compare_units(const chain *c, uint64_t *hash) {
    use("scalar");
    const results want = run(c, 1);
    for (size_t i = 0; i < want.bytes; i++) *hash = (*hash ^ (unsigned char)want.begin[i]) * 1099511628211u;
    for (int unit = 0; unit < isa_count; unit++)
        for (int threads = 1; threads < 4; threads += 2) {
            use(isas[unit]);
            const results got = run(c, threads);
            check(memcmp(got.begin, want.begin, want.bytes) == 0, "crf, %s, %s, %zu tags, kind %d, %d threads",
                  isas[unit], dtypes[c->dtype], c->tags, c->kind, threads);
            free(got.begin);
        }
    free(want.begin);
}

/* Every failing allocation ends the call with CSM_NO_MEMORY, and nothing leaks. */
static void fail_allocations(void) {
    chain c = make_chain(CSM_DTYPE_f32, SETS, 5);
    double total;
    csm_crf_options o = csm_default_crf_options();
    char *by_tag = need(ROWS * c.tags * sizeof(float));
    o.sequences = SEQUENCES, o.tags = c.tags, o.offsets = c.offsets, o.rows = c.rows, o.transitions = c.parameters;
    o.labels = c.labels, o.has_ignore = 1, o.ignore = -100, o.total = &total, o.by_tag = by_tag, o.threads = 1;
    for (long at = 1;; at++) {
        arm(at);
        const csm_status status = csm_crf_f32(CSM_CRF_LOSS, c.x, &o);
        disarm();
        check(live == 0, "crf leaks after allocation %ld", at);
        if (status == CSM_OK) break;
        check(status == CSM_NO_MEMORY, "crf, allocation %ld: status %d", at, (int)status);
    }
    free(by_tag);
    drop_chain(&c);
}

void test_crf(size_t every, uint64_t *hash, long counts[2]) {
    static const size_t tags[] = {1, 2, 3, 4, 5, 7, 8, 9, 12, 13, 16, 17, 20, 31, 33, 46, 65};
    const long before[2] = {passed, failed};
    const char *isa = csm_isa();
    size_t number_of_case = 0;
    seed(99);
    for (size_t i = 0; i < sizeof tags / sizeof *tags; i++)
        for (int kind = 0; kind < CRF_KINDS; kind++)
            for (int dtype = 0; dtype < CSM_DTYPE_COUNT; dtype++) {
                if (number_of_case++ % every) continue;
                chain c = make_chain(dtype, kind, tags[i]);
                compare_units(&c, hash);
                drop_chain(&c);
            }
    use(isa);
    fail_allocations();
    counts[0] += passed - before[0];
    counts[1] += failed - before[1];
    passed = before[0];
    failed = before[1];
}
