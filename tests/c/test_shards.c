/* Rows whose classes are divided into shards, each computed on an instruction set of its own: results equal those of
 * the whole row bit for bit, whatever the order in which the records are merged, and by reductions of integers.  Called
 * by test_core.c.
 */
#include "problem.h"

#include <math.h>

enum { ROWS = 2, MAX_BLOCKS = 5, LENGTH = MAX_BLOCKS * CSM_BLOCK, MAX_SHARDS = 4 };

static size_t below(size_t n) { return next() % n; }
static void use_any(void) { use(isas[below((size_t)isa_count)]); }

/* The boundaries of up to MAX_SHARDS shards, some of them empty; returns their number. */
static size_t cut(size_t n, size_t *bounds) {
    const size_t count = 1 + below(MAX_SHARDS), blocks = (n + CSM_BLOCK - 1) / CSM_BLOCK;
    bounds[0] = 0;
    for (size_t s = 1; s < count; s++) {
        const size_t at = below(blocks + 1) * CSM_BLOCK;
        bounds[s] = at < bounds[s - 1] ? bounds[s - 1] : at > n ? n : at;
    }
    bounds[count] = n;
    return count;
}

static void fill(int dtype, int kind, char *x, size_t n) {
    for (size_t i = 0; i < ROWS * n; i++) {
        double v = (double)(int32_t)next() / (kind == WIDE ? 2e8 : 1e9);
        if (kind == TIES) v = floor(v);
        if (kind == BEYOND) v *= dtype == CSM_DTYPE_f16 ? 3e3 : 1e30;
        if (kind == SPECIAL && next() % n == 0) v = (double[]){NAN, INFINITY, -INFINITY}[below(3)];
        put(dtype, x, i, v);
    }
    if (kind == AHEAD) put(dtype, x, below(ROWS * n), 60);
}

typedef struct shards {
    int dtype;
    size_t n, item, count, words, bounds[MAX_SHARDS + 1];
    csm_shard_options options[MAX_SHARDS];
    csm_shape shape[MAX_SHARDS];
    double block_max[MAX_SHARDS][ROWS * MAX_BLOCKS], row_max[ROWS];
    int64_t records[MAX_SHARDS][ROWS * CSM_SOFT_WORDS], merged[ROWS * CSM_SOFT_WORDS];
} shards;

/* The part of an array of whole rows that a shard has. */
static csm_view part(const shards *s, size_t i, char *data) {
    csm_view v = {.data = data + s->bounds[i] * s->item, .axis_stride = (ptrdiff_t)s->item};
    v.strides[0] = (ptrdiff_t)(s->n * s->item);
    return v;
}

static void begin_shards(shards *s, int dtype, size_t n, double temperature, size_t words) {
    *s = (shards){.dtype = dtype, .n = n, .item = sizes_of[dtype], .words = words};
    s->count = cut(n, s->bounds);
    for (size_t i = 0; i < s->count; i++) {
        s->options[i] = csm_default_shard_options();
        s->options[i].classes = n;
        s->options[i].offset = s->bounds[i];
        s->options[i].temperature = temperature;
        s->options[i].weight_sum = (double)n;
        s->options[i].words = words;
        s->options[i].threads = 1 + (int)below(3);
        s->shape[i] = (csm_shape){.n = s->bounds[i + 1] - s->bounds[i], .ndim = 1, .shape = {ROWS}};
    }
}

static void merge_in_random_order(shards *s) {
    csm_records_clear(s->merged, ROWS, s->words);
    for (size_t done = 0, first = below(s->count); done < s->count; done++)
        csm_records_merge(s->merged, s->records[(first + done) % s->count], ROWS, s->words);
}
/* Whether rows need a second round, for which the options are then set. */
static int needs_second_round(shards *s, csm_shard_kind kind) {
    const double t = s->options[0].temperature;
    if (!csm_records_second_round(kind, (csm_array_type)s->dtype, s->merged, ROWS, s->words, t, NULL, s->row_max))
        return 0;
    for (size_t i = 0; i < s->count; i++) s->options[i].row_max = s->row_max;
    return 1;
}

static void test_rows(int op, int dtype, int kind, size_t n, double temperature, char *x, char *y, char *want,
                      char *got) {
    shards s;
    const int has_axis = keeps[op], repeats = 2;
    const csm_shard_kind shard_kind = (csm_shard_kind)op;
    const csm_array_type type = (csm_array_type)dtype;
    const csm_shape shape = {.n = n, .ndim = 1, .shape = {ROWS}};
    csm_options options = CSM_OPTIONS_INIT;
    begin_shards(&s, dtype, n, temperature, CSM_RECORD_WORDS);
    csm_view a = csm_contiguous(&shape, n, x, s.item), b = csm_contiguous(&shape, n, y, s.item);
    csm_view to = csm_contiguous(&shape, has_axis ? n : 1, want, s.item);
    options.temperature = temperature;
    use("scalar");
    call(op, dtype, &shape, &a, &b, &to, &options);
    for (int round = 0; round < repeats; round++) {
        for (size_t i = 0; i < s.count; i++) {
            const csm_view input = part(&s, i, x), second = part(&s, i, y);
            use_any();
            check(csm_shard_rows(shard_kind, type, &s.shape[i], &input, has_b[op] ? &second : NULL, NULL, s.records[i],
                                 s.block_max[i], &s.options[i]) == CSM_OK,
                  "%s %s: status of a shard", ops[op], dtypes[dtype]);
        }
        merge_in_random_order(&s);
        if (round || !needs_second_round(&s, shard_kind)) break;
    }
    for (size_t i = 0; i < s.count; i++) {
        const csm_view input = part(&s, i, x), second = part(&s, i, y);
        const csm_view result = has_axis ? part(&s, i, got) : csm_contiguous(&shape, 1, got, s.item);
        use_any();
        csm_finish_rows(shard_kind, type, &s.shape[i], &input, has_b[op] ? &second : NULL, 0, s.merged, s.block_max[i],
                        &result, &s.options[i]);
    }
    check(memcmp(got, want, ROWS * (has_axis ? n : 1) * s.item) == 0, "%s %s kind %d n %zu T %g, %zu shards: bits",
          ops[op], dtypes[dtype], kind, n, temperature, s.count);
}

static void test_losses(int dtype, int kind, size_t n, double temperature, char *x, char *want, char *got) {
    shards s;
    double loss[ROWS], whole[ROWS];
    int64_t labels[ROWS] = {(int64_t)below(n), (int64_t)below(n)};
    const csm_array_type type = (csm_array_type)dtype;
    const csm_shape shape = {.n = n, .ndim = 1, .shape = {ROWS}};
    const csm_view label = csm_contiguous(&shape, 1, labels, sizeof *labels);
    csm_loss_options o = csm_default_loss_options();
    o.labels = &label;
    o.label_smoothing = below(2) ? 0 : 0.1;
    o.temperature = temperature;
    o.reduction = CSM_NONE;
    begin_shards(&s, dtype, n, temperature, o.label_smoothing == 0 ? CSM_LABEL_WORDS : CSM_TERMS_WORDS);
    csm_view a = csm_contiguous(&shape, n, x, s.item), to = csm_contiguous(&shape, n, want, s.item);
    csm_loss_options of_segments = o;
    of_segments.positives = &a;
    check(csm_shard_losses(type, &s.shape[0], &a, NULL, s.records[0], s.block_max[0], &s.options[0], &of_segments) ==
                  CSM_BAD_OPTION &&
              csm_finish_losses(type, &s.shape[0], &a, 0, s.records[0], s.block_max[0], loss, &to, &s.options[0],
                                &of_segments) == CSM_BAD_OPTION,
          "positives of a shard");
    use("scalar");
    csm_run_cross_entropy((csm_dtype)dtype, csm_current_table(), &shape, &a, &to, whole, &o);
    for (int round = 0; round < 2; round++) {
        for (size_t i = 0; i < s.count; i++) {
            const csm_view input = part(&s, i, x);
            use_any();
            check(csm_shard_losses(type, &s.shape[i], &input, NULL, s.records[i], s.block_max[i], &s.options[i], &o) ==
                      CSM_OK,
                  "loss %s: status of a shard", dtypes[dtype]);
        }
        merge_in_random_order(&s);
        if (round || !needs_second_round(&s, CSM_SHARD_LOSS)) break;
    }
    for (size_t r = 0; r < ROWS; r++) check(s.merged[r * s.words + CSM_LABEL_WORDS - 1] == 1, "owners of label %zu", r);
    for (size_t i = 0; i < s.count; i++) {
        const csm_view input = part(&s, i, x), gradient = part(&s, i, got);
        use_any();
        csm_finish_losses(type, &s.shape[i], &input, 0, s.merged, s.block_max[i], loss, &gradient, &s.options[i], &o);
    }
    check(memcmp(got, want, ROWS * n * s.item) == 0, "gradient %s kind %d n %zu T %g, %zu shards: bits", dtypes[dtype],
          kind, n, temperature, s.count);
    for (size_t r = 0; r < ROWS; r++) {
        const double rounded = dtype == CSM_DTYPE_f64 ? loss[r] : (double)(float)loss[r];
        check(memcmp(&rounded, &whole[r], sizeof rounded) == 0, "loss %s kind %d: %a instead of %a", dtypes[dtype],
              kind, rounded, whole[r]);
    }
}

/* 6 kinds of rows, 4 dtypes, 6 functions: 144 calls a round. */
void test_shards(size_t every) {
    static const double temperatures[] = {1, 0.7, 2.5, 1e-3};
    char *x = need(ROWS * LENGTH * 8), *y = need(ROWS * LENGTH * 8), *want = need(ROWS * LENGTH * 8),
         *got = need(ROWS * LENGTH * 8);
    seed(36);
    for (int round = 0; round < 8; round++)
        for (int kind = 0; kind < KINDS; kind++)
            for (int dtype = 0; dtype < CSM_DTYPE_COUNT; dtype++) {
                const size_t n = CSM_BLOCK + 1 + below(LENGTH - CSM_BLOCK - 1);
                const double temperature = temperatures[below(4)];
                if (below(every)) continue;
                fill(dtype, kind, x, n);
                for (size_t j = 0; j < ROWS * n; j++) put(dtype, y, j, next() / 4294967296.0);
                for (int op = 0; op < CSM_SHARD_LOSS; op++) test_rows(op, dtype, kind, n, temperature, x, y, want, got);
                test_losses(dtype, kind, n, temperature, x, want, got);
            }
    free(x);
    free(y);
    free(want);
    free(got);
}
