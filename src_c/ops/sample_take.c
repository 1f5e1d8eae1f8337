/* Drawing: without replacement, and logarithms of probabilities.
 *
 *   log_prob      log_softmax(x / T) of the classes that the filters have left, at the class that is drawn; without
 *                 replacement of those that have not been drawn before it
 *   raw_log_prob  log_softmax(x)
 *
 * Draws without replacement: a class that is drawn is marked, its block is added up again without it, and the next draw
 * is that of the row that is left: its largest logit becomes the reference, so that no mass is too small to be drawn.
 * Each costs a block and the records of the others.
 * Passes of a log-probability: one over the row for its sums, and the logits that have been drawn.  Kernels and sums
 * are those of log_softmax, with its error: raw_log_prob has the bits of log_softmax, and log_prob those of
 * log_softmax(x, temperature=T) where nothing is filtered.
 */
#include "sample.h"

#include "../kernel/softmax/combine.h"

static const csm_kernels *log_kernels(const csm_sample_row *row, csm_dtype dtype) {
    return &row->call->base.table->kernels[CSM_OP_log_softmax][dtype];
}
static csm_status log_body(void *context, size_t begin, size_t end, int thread) {
    const csm_sample_row *row = context;
    for (size_t b = begin; b < end; b++) {
        csm_dtype dtype;
        const char *x = csm_sample_fetch(row, b, thread, &dtype);
        if (!x) return CSM_NO_MEMORY;
        log_kernels(row, dtype)
            ->pass1(x, NULL, NULL, csm_block_length(row->count, b * CSM_BLOCK), csm_sample_temperature(row),
                    &row->logs[b]);
    }
    return CSM_OK;
}
static void combine(const csm_sample_row *row, csm_row *sums) {
    log_kernels(row, row->call->base.wide_dtype)
        ->combine(row->logs, csm_block_count(row->count), csm_sample_temperature(row), sums);
}
static char *get_logs(csm_sample_row *row) {
    const size_t size = csm_block_count(row->count) * sizeof *row->logs;
    row->logs = (csm_block *)(void *)csm_sample_buffer(row->call, row->thread, CSM_SAMPLE_LOGS, size);
    return (char *)row->logs;
}

/* The log-probabilities of k logits in the compute type, which are overwritten. */
static void evaluate(const csm_sample_row *row, const csm_row *sums, char *x, size_t k, char *to) {
    const csm_call *c = &row->call->base;
    if (row->is_transformed) csm_transform(row->scales, csm_is_single(c), x, k, row->max);
    log_kernels(row, c->wide_dtype)->pass2(x, NULL, to, k, csm_sample_temperature(row), sums, row->logs);
}

/* The log-probabilities of the classes that have been drawn, whose numbers are in the result. */
typedef struct logging {
    csm_sample_row *row;
    const csm_view *to;
    csm_row sums;
} logging;
static csm_status draws_body(void *context, size_t begin, size_t end, int thread) {
    const logging *l = context;
    const csm_sample_row *row = l->row;
    csm_sample_call *call = row->call;
    const csm_call *c = &call->base;
    const char *indices = csm_row_data(c, &call->indices, row->index);
    char *to = (char *)l->to->data + csm_offset(&c->shape, l->to->strides, row->index);
    char *stored = csm_sample_buffer(call, thread, CSM_SAMPLE_KEPT, CSM_BLOCK * c->itemsize);
    char *x = csm_sample_buffer(call, thread, CSM_SAMPLE_RAW, CSM_BLOCK * c->wide_size);
    char *y = csm_sample_buffer(call, thread, CSM_SAMPLE_WIDE, CSM_BLOCK * c->wide_size);
    if (!stored || !x || !y) return CSM_NO_MEMORY;
    for (size_t first = begin, k; first < end; first += k) {
        k = csm_block_length(end, first);
        for (size_t i = 0; i < k; i++) {
            int64_t at;
            memcpy(&at, indices + (ptrdiff_t)(first + i) * call->indices.axis_stride, sizeof at);
            csm_sample_copy_number(stored + i * c->itemsize, row->from.data + (ptrdiff_t)at * row->from.axis,
                                   c->itemsize);
        }
        c->table->widen[c->dtype](stored, x, k);
        evaluate(row, &l->sums, x, k, y);
        for (size_t i = 0; i < k; i++)
            csm_sample_copy_number(to + (ptrdiff_t)(first + i) * l->to->axis_stride, y + i * c->wide_size,
                                   c->wide_size);
        if (csm_stops(&call->base.interrupt, thread, k)) return CSM_INTERRUPTED;
    }
    return CSM_OK;
}
static csm_status put_logs(csm_sample_row *row, const csm_view *to) {
    csm_sample_call *call = row->call;
    logging l = {.row = row, .to = to};
    combine(row, &l.sums);
    if (!call->is_split) return draws_body(&l, 0, call->draws, row->thread);
    return csm_parallel(call->draws, CSM_BLOCK, call->base.threads, draws_body, &l, &call->base.interrupt);
}

/* Adds up the logits of a row as they are, at T = 1. */
static csm_status put_raw_logs(const csm_sample_row *drawn) {
    csm_sample_call *call = drawn->call;
    csm_sample_row row = {.call = call,
                          .index = drawn->index,
                          .thread = drawn->thread,
                          .count = call->base.shape.n,
                          .from = drawn->from,
                          .mask = drawn->mask,
                          .scales = &call->unit};
    if (call->is_direct) row.whole = row.from.data;
    if (!get_logs(&row)) return CSM_NO_MEMORY;
    csm_status status = csm_sample_blocks(&row, log_body);
    row.max = -CSM_INF;
    for (size_t b = 0; b < csm_block_count(row.count) && status == CSM_OK; b++)
        row.max = row.logs[b].max > row.max ? row.logs[b].max : row.max;
    row.is_transformed = !csm_fits_range(row.scales, row.max);
    if (status == CSM_OK && row.is_transformed) status = csm_sample_blocks(&row, log_body);
    return status == CSM_OK ? put_logs(&row, &call->raw_log_prob) : status;
}
csm_status csm_sample_log_probs(csm_sample_row *row) {
    const csm_sample_options *o = &row->call->options;
    csm_status status = CSM_OK;
    if (o->log_prob && !o->without_replacement) {
        row->removed = NULL;
        if (row->min_p > 0) status = csm_sample_apply_min_p(row);
        if (status == CSM_OK && !get_logs(row)) status = CSM_NO_MEMORY;
        if (status == CSM_OK) status = csm_sample_blocks(row, log_body);
        if (status == CSM_OK) status = put_logs(row, &row->call->log_prob);
    }
    return status == CSM_OK && o->raw_log_prob ? put_raw_logs(row) : status;
}

/* Without replacement */

/* Brings the sums of a row up to date after its block b has lost a class.  records: the sums of its blocks, times 2^n
 * of the block.  CSM_TOO_FEW: nothing is left. */
static csm_status update(csm_sample_row *row, csm_block *records, size_t b) {
    const size_t blocks = csm_block_count(row->count);
    const int was_transformed = row->is_transformed;
    csm_status status = CSM_OK;
    double max = -CSM_INF;
    if (was_transformed) { /* its logits are relative to the maximum */
        row->blocks = records;
        status = csm_sample_sum(row);
    } else {
        row->blocks = records;
        status = csm_sample_sum_body(row, b, b + 1, row->thread);
        for (size_t i = 0; i < blocks; i++) max = records[i].max > max ? records[i].max : max;
        if (status == CSM_OK) status = csm_sample_set_max(row, max);
        if (status == CSM_OK && row->is_transformed) status = csm_sample_sum(row);
    }
    if (status == CSM_NO_MASS) return CSM_TOO_FEW;
    if (status != CSM_OK || !row->logs) return status;
    const int all = was_transformed || row->is_transformed;
    return all ? csm_sample_blocks(row, log_body) : log_body(row, b, b + 1, row->thread);
}
csm_status csm_sample_take(csm_sample_row *row) {
    csm_sample_call *call = row->call;
    const csm_call *c = &call->base;
    const size_t blocks = csm_block_count(row->count), words = (row->count + 63) / 64;
    csm_status status = CSM_OK;
    csm_block *scaled = row->blocks;
    if (row->min_p > 0) status = csm_sample_apply_min_p(row);
    row->mass = NULL;
    uint64_t *removed = (uint64_t *)(void *)csm_sample_buffer(call, row->thread, CSM_SAMPLE_KEPT, words * 8);
    csm_block *records =
        (csm_block *)(void *)csm_sample_buffer(call, row->thread, CSM_SAMPLE_RECORDS, blocks * sizeof *records);
    if (!removed || !records || (call->options.log_prob && !get_logs(row))) return CSM_NO_MEMORY;
    memset(removed, 0, words * 8);
    row->removed = removed;
    row->blocks = records;
    if (status == CSM_OK) status = csm_sample_sum(row);
    if (status == CSM_OK && row->logs) status = csm_sample_blocks(row, log_body);
    const char *uniform = csm_row_data(c, &call->uniforms, row->index);
    char *to = (char *)call->indices.data + csm_offset(&c->shape, call->indices.strides, row->index);
    for (size_t draw = 0; draw < call->draws && status == CSM_OK; draw++) {
        double u, unused;
        memcpy(scaled, records, blocks * sizeof *scaled);
        row->blocks = scaled;
        csm_sample_scale_body(row, 0, blocks, row->thread);
        csm_sample_add_blocks(row);
        memcpy(&u, uniform + (ptrdiff_t)draw * call->uniforms.axis_stride, sizeof u);
        const double target = u * row->total;
        const size_t b = csm_sample_find_block(scaled, blocks, target), k = csm_block_length(row->count, b * CSM_BLOCK);
        const double before = !(row->total > target) ? row->total - scaled[b].hi : b > 0 ? scaled[b - 1].lo : 0;
        const char *mass = csm_sample_masses(row, b, row->thread, &unused);
        if (!mass) return CSM_NO_MEMORY;
        const size_t at = b * CSM_BLOCK + csm_sample_find(row, mass, k, target - before);
        const int64_t class = row->classes ? row->classes[at] : (int64_t)at;
        memcpy(to + (ptrdiff_t)draw * call->indices.axis_stride, &class, sizeof class);
        if (row->logs) {
            csm_row sums;
            char *x = csm_sample_wide(row, b, row->thread),
                 *y = csm_sample_buffer(call, row->thread, CSM_SAMPLE_WIDE, 64);
            if (!x || !y) return CSM_NO_MEMORY;
            combine(row, &sums);
            evaluate(row, &sums, x + at % CSM_BLOCK * c->wide_size, 1, y);
            csm_sample_copy_number((char *)call->log_prob.data +
                                       csm_offset(&c->shape, call->log_prob.strides, row->index) +
                                       (ptrdiff_t)draw * call->log_prob.axis_stride,
                                   y, c->wide_size);
        }
        removed[at / 64] |= (uint64_t)1 << at % 64;
        if (draw + 1 < call->draws) status = update(row, records, b);
        if (csm_stops(&call->base.interrupt, row->thread, 2 * CSM_BLOCK)) return CSM_INTERRUPTED;
    }
    return status;
}
