/* Shards of rows: records, their merge, and the entry points.  shard.h describes the records; the rows of a shard are
 * computed by the drivers of softmax and of cross-entropy, which softmax_row.c and cross_entropy_row.c serve.
 *
 *   merge   sums as integers in fixed bins (math/exact.h), the larger maximum, counts, flags
 *   fold    what a merge with a larger maximum does to a record, so that integer sums of records are their merge
 *   raise   brings exact sums to common bins, for the same purpose
 *
 * Passes: none over a row.  NaN: a flag, since sums hold no NaN.  Error: none; the results have the bits of whole rows
 * (tests/ops/test_distributed.py).
 */
#include "cross_entropy.h"

#include "../core/extension.h"
#include "../core/options.h"
#include "../kernel/softmax/combine.h"

#include <string.h>

#define SAME(name, storage, compute) _Static_assert((int)CSM_DTYPE_##name == (int)CSM_ELEMENT_##name, "csm_array_type");
enum { CSM_ELEMENT_f32 = CSM_F32, CSM_ELEMENT_f64 = CSM_F64, CSM_ELEMENT_f16 = CSM_F16, CSM_ELEMENT_bf16 = CSM_BF16 };
CSM_DTYPES(SAME)
#undef SAME

/* Records */

void csm_record_clear(csm_record *a) {
    memset(a, 0, sizeof *a);
    csm_exact_zero(&a->sum);
    a->max = -CSM_INF;
}
void csm_loss_record_clear(csm_loss_record *a) {
    memset(a, 0, sizeof *a);
    csm_record_clear(&a->base);
    csm_exact_zero(&a->far);
    csm_exact_zero(&a->mass);
    csm_exact_zero(&a->row_mass);
}
csm_record csm_record_load(const int64_t *words) {
    csm_record a;
    memcpy(&a, words, sizeof a);
    return a;
}
void csm_record_store(const csm_record *a, int64_t *words) { memcpy(words, a, sizeof *a); }

/* Whether a record of a loss ends with the weight of its label. */
static int has_weight(size_t count) { return count == CSM_LABEL_WORDS + 1 || count == CSM_TERMS_WORDS + 1; }

csm_loss_record csm_loss_record_load(const int64_t *words, size_t count) {
    csm_loss_record a;
    const size_t whole = count - (size_t)has_weight(count);
    csm_loss_record_clear(&a);
    memcpy(&a, words, whole * sizeof *words);
    if (whole < count) memcpy(&a.w_label, words + whole, sizeof a.w_label);
    return a;
}
void csm_loss_record_store(const csm_loss_record *a, int64_t *words, size_t count) {
    const size_t whole = count - (size_t)has_weight(count);
    memcpy(words, a, whole * sizeof *words);
    if (whole < count) memcpy(words + whole, &a->w_label, sizeof a->w_label);
}

csm_record csm_record_of_blocks(const csm_block *blocks, size_t count, int is_log) {
    csm_record a;
    csm_row row = {.max = -CSM_INF};
    csm_record_clear(&a);
    if (count > 0) csm_find_reference(blocks, count, &row);
    a.max = row.max + 0; /* never -0, which would make a merge depend on the order */
    for (size_t b = 0; b < count; b++) {
        const csm_block *block = &blocks[b];
        csm_exact_add_block(&a.sum, block);
        if (!is_log) continue;
        if (block->max == row.max) {
            a.count += (int64_t)block->count;
            a.n = block->n;
            a.top = block->top;
            a.top_low = block->top_low;
        } else {
            csm_exact_add_maxima(&a.sum, block);
        }
    }
    return a;
}

/* The maxima of a record that are not the row's become terms of its sum, unless they are in it (a count of 0). */
static void join_maxima(csm_record *a) {
    if (a->max > -CSM_INF) {
        csm_exact_add(&a->sum, a->top, (int64_t)a->n, a->count);
        csm_exact_add(&a->sum, a->top_low, (int64_t)a->n, a->count);
    }
    a->count = 0;
}
void csm_record_merge(csm_record *a, const csm_record *b) {
    csm_record c = *b;
    if (c.max > a->max) {
        const csm_record larger = c;
        c = *a;
        *a = larger;
    }
    if (c.max < a->max) join_maxima(&c);
    csm_exact_merge(&a->sum, &c.sum);
    if (a->count == 0 && c.count > 0) {
        a->n = c.n;
        a->top = c.top;
        a->top_low = c.top_low;
    }
    a->count += c.count;
    a->flags |= c.flags;
}
enum { EXACT_WORDS = sizeof(csm_exact) / sizeof(int64_t), OWNERS = CSM_LABEL_WORDS - 1 };

/* The words of a label, which the other record overwrites if its shard holds the label; the numbers of owners add. */
static void merge_label(int64_t *a, const int64_t *b, size_t words) {
    if (b[OWNERS] <= 0) return;
    const int64_t owners = a[OWNERS] + b[OWNERS];
    memcpy(a + CSM_RECORD_WORDS, b + CSM_RECORD_WORDS, sizeof(csm_label_record));
    a[OWNERS] = owners;
    if (has_weight(words)) a[words - 1] = b[words - 1];
}
static csm_exact load_sum(const int64_t *words) {
    csm_exact a;
    memcpy(&a, words, sizeof a);
    return a;
}

/* For float, n is what shift_to of math/exp.inc.h computes: the product, which is exact in double, to the nearest
 * integer.  Calling the kernel for each block instead takes up to half as long as the sweep over it. */
void csm_restore_block(const csm_call *c, const csm_temperature *t, double max, csm_block *block) {
    const double product = csm_reference(max, t) * (t->tempered ? t->log2e : 0x1.715476p0);
    block->max = max;
    if (c->wide_dtype == CSM_DTYPE_f32 && product > -0x1p21 && product < 0x1p21) {
        block->n = (product + 0x1.8p52) - 0x1.8p52;
        return;
    }
    const csm_wide wide = csm_to_wide(c, max);
    c->table->softmax_sum[c->wide_dtype](&wide, 1, t, block);
}

void csm_records_clear(int64_t *records, size_t rows, size_t words) {
    csm_loss_record a;
    csm_loss_record_clear(&a);
    for (size_t r = 0; r < rows; r++) csm_loss_record_store(&a, records + r * words, words);
}
void csm_records_merge(int64_t *into, const int64_t *other, size_t rows, size_t words) {
    for (size_t r = 0; r < rows; r++, into += words, other += words) {
        csm_record a = csm_record_load(into);
        const csm_record b = csm_record_load(other);
        csm_record_merge(&a, &b);
        csm_record_store(&a, into);
        if (words > CSM_RECORD_WORDS) merge_label(into, other, words);
        for (size_t i = CSM_LABEL_WORDS; i + EXACT_WORDS <= words; i += EXACT_WORDS) { /* far, mass, row_mass */
            csm_exact sum = load_sum(into + i);
            const csm_exact more = load_sum(other + i);
            csm_exact_merge(&sum, &more);
            memcpy(into + i, &sum, sizeof sum);
        }
    }
}

/* Bounds of what sums of shards hold.  Powers of two are those of maxima within the range of exp's reduction, or of
 * transformed rows. */
#define LARGEST_POWER ((int64_t)1 << 52)
#define LARGEST_LIMB ((int64_t)1 << 62)

static int is_sum(const csm_exact *a) {
    int fits = a->top == CSM_EMPTY || (a->top >= -LARGEST_POWER && a->top <= LARGEST_POWER);
    for (int i = 0; i < CSM_LIMBS; i++) fits &= a->limb[i] >= -LARGEST_LIMB && a->limb[i] <= LARGEST_LIMB;
    return fits;
}
static int is_power(double n) { return n >= -(double)LARGEST_POWER && n <= (double)LARGEST_POWER; }

size_t csm_records_check(const int64_t *records, size_t rows, size_t words) {
    for (size_t r = 0; r < rows; r++) {
        const int64_t *record = records + r * words;
        const csm_record a = csm_record_load(record);
        const int joins = a.count != 0 && a.max - a.max == 0; /* if a merge brings a larger maximum */
        int fits = is_sum(&a.sum) && a.max == a.max && a.count >= 0 && a.count <= LARGEST_LIMB;
        fits &= !joins || (is_power(a.n) && a.top - a.top == 0 && a.top_low - a.top_low == 0);
        if (words > CSM_RECORD_WORDS) fits &= record[OWNERS] >= 0 && record[OWNERS] <= LARGEST_LIMB;
        for (size_t i = CSM_LABEL_WORDS; i + EXACT_WORDS <= words; i += EXACT_WORDS) { /* far, mass, row_mass */
            const csm_exact sum = load_sum(record + i);
            fits &= is_sum(&sum);
        }
        if (!fits) return r;
    }
    return rows;
}

void csm_records_fold(int64_t *records, const double *row_max, size_t rows, size_t words) {
    for (size_t r = 0; r < rows; r++) {
        csm_record a = csm_record_load(records + r * words);
        if (!(a.max < row_max[r])) continue;
        join_maxima(&a);
        a.max = row_max[r];
        csm_record_store(&a, records + r * words);
    }
}

size_t csm_records_sums(size_t words) { return words < CSM_TERMS_WORDS ? 1 : words < CSM_SOFT_WORDS ? 3 : 4; }
void csm_records_raise(int64_t *records, const int64_t *highest, size_t rows, size_t words) {
    const size_t sums = csm_records_sums(words);
    for (size_t r = 0; r < rows; r++) {
        csm_loss_record a = csm_loss_record_load(records + r * words, words);
        csm_exact *const each[4] = {&a.base.sum, &a.far, &a.mass, &a.row_mass};
        for (size_t s = 0; s < sums; s++) csm_exact_raise(each[s], highest[r * sums + s]);
        csm_loss_record_store(&a, records + r * words, words);
    }
}

/* Sums of squares and of weights */

csm_pair_sum csm_sum_load(const int64_t *words) {
    csm_pair_sum sum;
    memcpy(&sum, words, sizeof sum);
    return sum;
}
void csm_sum_store(const csm_pair_sum *sum, int64_t *words) { memcpy(words, sum, sizeof *sum); }
_Static_assert(sizeof(csm_pair_sum) == CSM_SUM_WORDS * sizeof(int64_t), "words of a sum");

void csm_sums_merge(int64_t *into, const int64_t *other, size_t count) {
    for (size_t i = 0; i < count; i++) {
        csm_pair_sum a = csm_sum_load(into + i * CSM_SUM_WORDS);
        const csm_pair_sum b = csm_sum_load(other + i * CSM_SUM_WORDS);
        csm_exact_merge(&a.finite, &b.finite);
        a.other += b.other;
        if (a.other != a.other) a.other = CSM_NAN;
        csm_sum_store(&a, into + i * CSM_SUM_WORDS);
    }
}
double csm_sum_total(const int64_t *words) {
    const csm_pair_sum sum = csm_sum_load(words);
    return csm_pair_sum_rounded(&sum);
}

/* The second round */

/* Whether a row with this merged record needs it. */
static int needs_second_round(csm_shard_kind kind, int single, const csm_record *record, const csm_scales *s) {
    const double max = record->max;
    if (kind == CSM_SHARD_LOG_SOFTMAX_VJP) return 0;
    if (kind != CSM_SHARD_SOFTMAX_VJP) return !csm_fits_range(s, max) && max - max == 0;
    if (single) return 0;
    double hi, lo;
    csm_exact_pair(&record->sum, 0, &hi, &lo);
    const int is_number = !(record->flags & (CSM_RECORD_NAN | CSM_RECORD_POSITIVE | CSM_RECORD_NEGATIVE));
    return is_number && !csm_vjp_is_ordinary(&s->ordinary, hi + lo, 0, 0) &&
           csm_vjp_lift(&s->ordinary, max * s->lift) != 1;
}
size_t csm_records_second_round(csm_shard_kind kind, csm_array_type type, const int64_t *records, size_t rows,
                                size_t words, double temperature, const double *temperatures, double *row_max) {
    const int single = type != CSM_F64;
    csm_scales scales;
    size_t count = 0;
    csm_fp_environment saved = csm_fp_enter();
    csm_set_scales(&scales, temperatures ? 1 : temperature, single);
    for (size_t r = 0; r < rows; r++) {
        const csm_record record = csm_record_load(records + r * words);
        if (temperatures && temperatures[r] != scales.temperature) csm_set_scales(&scales, temperatures[r], single);
        const int needs = needs_second_round(kind, single, &record, &scales);
        row_max[r] = needs ? record.max : CSM_NAN;
        count += (size_t)needs;
    }
    csm_fp_leave(saved);
    return count;
}

/* The functions of csoftmax_shards.h */

static const csm_op ops[] = {CSM_OP_softmax, CSM_OP_log_softmax, CSM_OP_logsumexp, CSM_OP_softmax_vjp,
                             CSM_OP_log_softmax_vjp};

static int is_part(const csm_shape *shape, const csm_shard_options *o) {
    return o->offset <= o->classes && shape->n <= o->classes - o->offset;
}
static int is_shard(const csm_shape *shape, const csm_shard_options *o) {
    return is_part(shape, o) && (o->offset % CSM_BLOCK == 0 || shape->n == 0) &&
           (shape->n % CSM_BLOCK == 0 || o->offset + shape->n == o->classes);
}
static size_t rows_of(const csm_shape *shape) {
    size_t rows = 1;
    for (size_t i = 0; i < shape->ndim && i < CSM_MAX_NDIM; i++) rows *= shape->shape[i];
    return rows;
}
static csm_options options_of(const csm_shard_options *o) {
    csm_options options = CSM_OPTIONS_INIT;
    options.temperature = o->temperature;
    options.where = o->where;
    options.temperatures = o->temperatures;
    options.threads = o->threads;
    options.interrupt = o->interrupt;
    options.interrupt_context = o->interrupt_context;
    return options;
}

csm_status csm_shard_rows(csm_shard_kind kind, csm_array_type type, const csm_shape *shape, const csm_view *input,
                          const csm_view *y, const csm_view *e, int64_t *records, double *block_max,
                          const csm_shard_options *o) {
    const csm_shard shard = {
        .stage = CSM_STAGE_SHARD, .options = o, .records = records, .block_max = block_max, .words = CSM_RECORD_WORDS};
    const csm_options options = options_of(o);
    if ((unsigned)kind > CSM_SHARD_LOG_SOFTMAX_VJP || (unsigned)type > CSM_BF16 || !is_shard(shape, o) ||
        o->classes <= CSM_BLOCK)
        return CSM_BAD_OPTION;
    const csm_op op = kind == CSM_SHARD_LOGSUMEXP ? CSM_OP_log_softmax : ops[kind]; /* the same records */
    csm_records_clear(records, rows_of(shape), CSM_RECORD_WORDS); /* for a shard without classes */
    return csm_run_softmax_shard(op, (csm_dtype)type, csm_current_table(), shape, input, y,
                                 kind == CSM_SHARD_SOFTMAX ? e : NULL, &options, &shard);
}

csm_status csm_finish_rows(csm_shard_kind kind, csm_array_type type, const csm_shape *shape, const csm_view *input,
                           const csm_view *y, int from_e, const int64_t *records, const double *block_max,
                           const csm_view *result, const csm_shard_options *o) {
    const csm_shard shard = {.stage = CSM_STAGE_FINISH,
                             .options = o,
                             .merged = records,
                             .merged_block_max = block_max,
                             .words = CSM_RECORD_WORDS,
                             .from_e = from_e && kind == CSM_SHARD_SOFTMAX};
    const csm_options options = options_of(o);
    if ((unsigned)kind > CSM_SHARD_LOG_SOFTMAX_VJP || (unsigned)type > CSM_BF16 || !is_part(shape, o) ||
        o->classes <= CSM_BLOCK)
        return CSM_BAD_OPTION;
    return csm_run_softmax_shard(ops[kind], (csm_dtype)type, csm_current_table(), shape, input, y, result, &options,
                                 &shard);
}

static csm_status run_loss(csm_array_type type, const csm_shape *shape, const csm_view *x, const csm_view *gradient,
                           double *loss, csm_loss_options *loss_options, const csm_shard *shard) {
    const csm_shard_options *o = shard->options;
    csm_loss_options options = csm_default_loss_options();
    options = *(const csm_loss_options *)csm_known_options(&options, sizeof options, loss_options);
    const int is_finish = shard->stage == CSM_STAGE_FINISH || shard->stage == CSM_STAGE_LOST;
    const int is_whole = shard->stage == CSM_STAGE_WHOLE;
    const int fits = is_whole ? shape->n == o->classes : (is_finish ? is_part : is_shard)(shape, o);
    const int has_norm = !(is_finish && gradient && options.softcap != 0 && options.clip_norm > 0); /* of whole rows */
    if ((unsigned)type > CSM_BF16 || !fits || !has_norm) return CSM_BAD_OPTION;
    options.temperature = o->temperature;
    options.temperatures = o->temperatures;
    options.threads = o->threads;
    options.interrupt = o->interrupt;
    options.interrupt_context = o->interrupt_context;
    options.reduction = CSM_NONE;
    return csm_run_loss_shard((csm_dtype)type, csm_current_table(), shape, x, gradient, loss, &options, shard);
}
csm_status csm_shard_losses(csm_array_type type, const csm_shape *shape, const csm_view *x, const csm_view *e,
                            int64_t *records, double *block_max, const csm_shard_options *o,
                            csm_loss_options *loss_options) {
    const csm_shard shard = {
        .stage = CSM_STAGE_SHARD, .options = o, .records = records, .block_max = block_max, .words = o->words};
    csm_records_clear(records, rows_of(shape), o->words);
    return run_loss(type, shape, x, e, NULL, loss_options, &shard);
}
csm_status csm_shard_squares(csm_array_type type, const csm_shape *shape, const csm_view *x, const int64_t *records,
                             const double *block_max, int64_t *squares, const csm_shard_options *o,
                             csm_loss_options *loss_options) {
    const csm_shard shard = {.stage = CSM_STAGE_SQUARES,
                             .options = o,
                             .merged = records,
                             .merged_block_max = block_max,
                             .records = squares,
                             .words = o->words};
    csm_pair_sum nothing;
    csm_pair_sum_zero(&nothing);
    for (size_t r = 0; r < rows_of(shape); r++) csm_sum_store(&nothing, squares + r * CSM_SUM_WORDS);
    return run_loss(type, shape, x, NULL, NULL, loss_options, &shard);
}
csm_status csm_shard_lost(csm_array_type type, const csm_shape *shape, const csm_view *x, const int64_t *records,
                          int64_t *lost, const csm_shard_options *o, csm_loss_options *loss_options) {
    const csm_shard shard = {
        .stage = CSM_STAGE_LOST, .options = o, .merged = records, .records = lost, .words = o->words};
    memset(lost, 0, rows_of(shape) * sizeof *lost);
    return run_loss(type, shape, x, NULL, NULL, loss_options, &shard);
}
csm_status csm_finish_losses(csm_array_type type, const csm_shape *shape, const csm_view *x, int from_e,
                             const int64_t *records, const double *block_max, double *loss, const csm_view *gradient,
                             const csm_shard_options *o, csm_loss_options *loss_options) {
    const csm_shard shard = {.stage = records ? CSM_STAGE_FINISH : CSM_STAGE_WHOLE,
                             .options = o,
                             .merged = records,
                             .merged_block_max = block_max,
                             .words = o->words,
                             .from_e = from_e};
    return run_loss(type, shape, x, gradient, loss, loss_options, &shard);
}

void csm_shard_weights(csm_array_type type, const void *weight, size_t n, int64_t *words) {
    csm_pair_sum sum;
    csm_fp_environment saved = csm_fp_enter();
    csm_pair_sum_zero(&sum);
    for (size_t begin = 0; begin < n; begin += CSM_BLOCK) {
        double hi, lo;
        csm_sum_weights(weight, type == CSM_F64, begin, csm_block_length(n, begin), &hi, &lo);
        csm_pair_sum_add(&sum, hi, lo);
    }
    csm_fp_leave(saved);
    csm_sum_store(&sum, words);
}
