/* Targets of XLA for shards of the classes, within jax.shard_map: sums, their merge, results.
 *
 * Records, maxima and offsets travel as arrays of uint32, pairs of which are 64 bits: JAX has no wider types by
 * default.  Every target gets the attributes kind (csm_shard_kind), classes (of the whole row), temperature,
 * label_smoothing, z_loss and softcap.  Arguments, for rows of the shard (merge_shards: for all records, shards first):
 *
 *   shard         x, second, offset, row_max, records, block_max -> records, block_max
 *   merge_shards  the records of all shards, second -> records, row_max
 *   finish_shard  x, second, offset, row_max, records, block_max -> the result; losses: loss and gradient, if asked for
 *
 * One more argument, the last, has a temperature for each row.  second: y of a gradient, int32 labels (-1: ignored) of
 * losses, or empty.  row_max: of the second round, NaN in the first.  The second round always follows the first one,
 * whose records it gets: where no row needs it they are copied.
 */
#include "xla_frame.h"

typedef struct shard_call {
    matrix m;
    csm_array_type type;
    csm_shard_kind kind;
    csm_view second, result;
    const csm_view *y;
    size_t rows, words, blocks;
    row_numbers temperatures;
    csm_shard_options o;
    csm_loss_options loss;
} shard_call;

static int64_t whole_number(const xla_frame *f, const char *name) {
    const int64_t *value = attribute(f, name, XLA_S64);
    return value ? *value : -1;
}

/* The arrays of 64 bits in a buffer of `count` pairs of uint32; NULL if it is not that. */
static void *pairs_of(const xla_buffer *b, size_t count) {
    if (!b || b->dtype != XLA_U32) return NULL;
    size_t elements = 1;
    for (int64_t i = 0; i < b->rank; i++) elements *= (size_t)b->dims[i];
    return elements == 2 * count ? b->data : NULL;
}

static int read_options(const xla_frame *f, shard_call *c) {
    const int64_t kind = whole_number(f, "kind"), classes = whole_number(f, "classes");
    if (kind < 0 || kind > CSM_SHARD_LOSS || classes < 0) return 0;
    c->kind = (csm_shard_kind)kind;
    c->o = csm_default_shard_options();
    c->o.classes = (size_t)classes;
    read_real(f, "temperature", &c->o.temperature);
    c->o.threads = threads(f);
    c->words = CSM_RECORD_WORDS;
    if (c->kind != CSM_SHARD_LOSS) return 1;
    c->loss = csm_default_loss_options();
    read_real(f, "label_smoothing", &c->loss.label_smoothing);
    read_real(f, "z_loss", &c->loss.z_loss);
    read_real(f, "softcap", &c->loss.softcap);
    c->loss.label_type = CSM_INT32;
    c->loss.has_ignore = 1;
    c->loss.ignore = (uint64_t)-1;
    c->loss.labels = &c->second;
    c->words = c->loss.label_smoothing == 0 ? CSM_LABEL_WORDS : CSM_TERMS_WORDS;
    c->o.words = c->words;
    c->o.weight_sum = (double)c->o.classes;
    return 1;
}

/* The temperatures of the rows, if there are so many arguments that the one at `place` has them. */
static int read_temperatures(const xla_frame *f, int64_t place, shard_call *c) {
    if (f->arguments.count <= place) return 1;
    if (!row_numbers_of(&c->m, buffer_of(&f->arguments, place), 1, &c->temperatures)) return 0;
    c->o.temperatures = &c->temperatures.view;
    return 1;
}
static int lacks_memory(const shard_call *c) { return c->o.temperatures && !c->temperatures.view.data; }

static int read_call(const xla_frame *f, shard_call *c) {
    static const csm_array_type types[] = {
        [CSM_DTYPE_f32] = CSM_F32, [CSM_DTYPE_f64] = CSM_F64, [CSM_DTYPE_f16] = CSM_F16, [CSM_DTYPE_bf16] = CSM_BF16};
    if (!matrix_of(f, &c->m) || !read_options(f, c)) return 0;
    c->type = types[c->m.dtype];
    c->rows = c->m.shape.shape[0];
    c->blocks = (c->m.shape.n + CSM_BLOCK - 1) / CSM_BLOCK;
    const xla_buffer *second = buffer_of(&f->arguments, 1), *offset = buffer_of(&f->arguments, 2);
    const int is_gradient = c->kind == CSM_SHARD_SOFTMAX_VJP || c->kind == CSM_SHARD_LOG_SOFTMAX_VJP;
    if (is_gradient && !view_of(&c->m, second, c->m.kind, c->m.shape.n, &c->second)) return 0;
    if (c->kind == CSM_SHARD_LOSS && !view_of(&c->m, second, XLA_S32, 1, &c->second)) return 0;
    c->y = is_gradient ? &c->second : NULL;
    const int64_t *first = pairs_of(offset, 1);
    c->o.row_max = pairs_of(buffer_of(&f->arguments, 3), c->rows);
    if (!first || *first < 0 || !c->o.row_max) return 0;
    c->o.offset = (size_t)*first;
    return read_temperatures(f, 6, c);
}

static int is_second_round(const shard_call *c) {
    for (size_t r = 0; r < c->rows; r++)
        if (c->o.row_max[r] == c->o.row_max[r]) return 1;
    return 0;
}

static void *sum_up(xla_frame *f, shard_call *c) {
    const size_t words = c->rows * c->words, blocks = c->rows * c->blocks;
    int64_t *records = pairs_of(buffer_of(&f->results, 0), words);
    double *block_max = pairs_of(buffer_of(&f->results, 1), blocks);
    if (!records || !block_max) return wrong(f);
    const int64_t *earlier = pairs_of(buffer_of(&f->arguments, 4), words);
    const double *maxima = pairs_of(buffer_of(&f->arguments, 5), blocks);
    if (earlier && maxima && !is_second_round(c)) {
        memcpy(records, earlier, words * sizeof *records);
        memcpy(block_max, maxima, blocks * sizeof *block_max);
        return NULL;
    }
    memset(block_max, 0, blocks * sizeof *block_max);
    if (c->kind == CSM_SHARD_LOSS)
        return failed_with(f,
                           csm_shard_losses(c->type, &c->m.shape, &c->m.x, NULL, records, block_max, &c->o, &c->loss));
    return failed_with(f,
                       csm_shard_rows(c->kind, c->type, &c->m.shape, &c->m.x, c->y, NULL, records, block_max, &c->o));
}

/* Reads the call and runs a target, unless XLA only asks something. */
static void *run(xla_frame *f, int (*read)(const xla_frame *, shard_call *),
                 void *(*target)(xla_frame *, shard_call *)) {
    void *answer;
    shard_call c;
    if (!is_execution(f, &answer)) return answer;
    memset(&c, 0, sizeof c);
    answer = !read(f, &c) ? wrong(f) : lacks_memory(&c) ? failed_with(f, CSM_NO_MEMORY) : target(f, &c);
    free(c.temperatures.memory);
    return answer;
}
void *csm_xla_shard(xla_frame *f) { return run(f, read_call, sum_up); }

/* The records of the first shard are those of rows, one after the other. */
static int read_records(const xla_frame *f, shard_call *c) {
    const xla_buffer *all = buffer_of(&f->arguments, 0);
    const int64_t type = whole_number(f, "type");
    if (!read_options(f, c) || !all || all->rank < 2 || all->dims[0] < 1 || type < 0 || type > CSM_BF16) return 0;
    c->type = (csm_array_type)type;
    c->rows = 1;
    for (int64_t i = 1; i < all->rank - 1; i++) c->rows *= (size_t)all->dims[i];
    c->m.shape.ndim = 1;
    c->m.shape.shape[0] = c->rows;
    return read_temperatures(f, 2, c);
}
static void *merge_all(xla_frame *f, shard_call *c) {
    const xla_buffer *all = buffer_of(&f->arguments, 0), *labels = buffer_of(&f->arguments, 1);
    const size_t words = c->rows * c->words, shards = (size_t)all->dims[0];
    const int64_t *records = pairs_of(all, shards * words);
    int64_t *merged = pairs_of(buffer_of(&f->results, 0), words);
    double *row_max = pairs_of(buffer_of(&f->results, 1), c->rows);
    if (!labels || !records || !merged || !row_max) return wrong(f);
    memcpy(merged, records, words * sizeof *merged);
    for (size_t s = 1; s < shards; s++) csm_records_merge(merged, records + s * words, c->rows, c->words);
    const double *temperatures = c->o.temperatures ? c->temperatures.view.data : NULL;
    csm_records_second_round(c->kind, c->type, merged, c->rows, c->words, c->o.temperature, temperatures, row_max);
    for (size_t r = 0; c->kind == CSM_SHARD_LOSS && r < c->rows; r++)
        if (((const int32_t *)labels->data)[r] != -1 && merged[r * c->words + CSM_LABEL_WORDS - 1] != 1)
            return failed_with(f, CSM_BAD_LABEL);
    return NULL;
}
void *csm_xla_merge_shards(xla_frame *f) { return run(f, read_records, merge_all); }

/* A loss and, if there is a second result, its gradient. */
static void *finish_loss(const xla_frame *f, shard_call *c, const int64_t *records, const double *block_max) {
    const int wide = c->m.kind == XLA_F64, has_gradient = f->results.count > 1;
    csm_view loss, gradient;
    if (!view_of(&c->m, buffer_of(&f->results, 0), wide ? XLA_F64 : XLA_F32, 1, &loss) ||
        (has_gradient && !view_of(&c->m, buffer_of(&f->results, 1), c->m.kind, c->m.shape.n, &gradient)))
        return wrong(f);
    double *each = begin_losses(&loss, wide, c->rows);
    int64_t *lost = has_gradient ? calloc(c->rows | 1, sizeof *lost) : NULL;
    csm_status status = each && (lost || !has_gradient) ? CSM_OK : CSM_NO_MEMORY;
    if (status == CSM_OK && has_gradient)
        status = csm_shard_lost(c->type, &c->m.shape, &c->m.x, records, lost, &c->o, &c->loss);
    int is_lost = 0;
    for (size_t r = 0; status == CSM_OK && has_gradient && r < c->rows; r++) is_lost |= lost[r] == 1;
    free(lost);
    if (status == CSM_OK)
        status = csm_finish_losses(c->type, &c->m.shape, &c->m.x, 0, records, block_max, each,
                                   has_gradient ? &gradient : NULL, &c->o, &c->loss);
    if (each) end_losses(&loss, wide, each, c->rows, status);
    if (status == CSM_OK && is_lost)
        return failure(f, XLA_INVALID_ARGUMENT,
                       "csoftmax: gradients underflow before they are divided by the temperature, which shards of "
                       "the classes cannot compute; divide the logits instead");
    return failed_with(f, status);
}

static void *finish(xla_frame *f, shard_call *c) {
    const int64_t *records = pairs_of(buffer_of(&f->arguments, 4), c->rows * c->words);
    const double *block_max = pairs_of(buffer_of(&f->arguments, 5), c->rows * c->blocks);
    if (!records || !block_max) return wrong(f);
    if (c->kind == CSM_SHARD_LOSS) return finish_loss(f, c, records, block_max);
    const size_t n = c->kind == CSM_SHARD_LOGSUMEXP ? 1 : c->m.shape.n;
    if (!view_of(&c->m, buffer_of(&f->results, 0), c->m.kind, n, &c->result)) return wrong(f);
    return failed_with(
        f, csm_finish_rows(c->kind, c->type, &c->m.shape, &c->m.x, c->y, 0, records, block_max, &c->result, &c->o));
}
void *csm_xla_finish_shard(xla_frame *f) { return run(f, read_call, finish); }
