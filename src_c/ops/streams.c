/* Pieces of rows of the softmax family: what csoftmax.SoftmaxState keeps of a row whose elements come bit by bit.
 *
 * A row is the list of its blocks (math/block.h), and blocks are combined without rounding, so that the blocks of a
 * stream have the bits of the whole row wherever the stream was cut.  The rows of a call are contiguous and of one
 * length; a call either has ordinary rows, or rows that are transformed first (ops/softmax_row.c) with a known maximum.
 *
 * Passes: those of the kernels.  Sums of values: one chain of fma for each element, in the order of the elements, in
 * double.  The caller keeps NaN, infinite maxima and empty rows apart.
 */
#include "../core/call.h"
#include "../core/extension.h"
#include "../kernel/softmax/combine.h"

#include <stdatomic.h>
#include <string.h>

enum { WIDE, RAW, IDS, BUFFERS };
enum { VALUE_ROWS = 64 }; /* rows of values that are widened at a time */

typedef struct stream_job {
    csm_call base;
    const csm_stream_call *call;
    const csm_kernels *kernels; /* of the compute type if rows are transformed */
    csm_temperature temperature;
    size_t each; /* blocks of a row */
    csm_block *blocks;
    const csm_row *rows;
    void *y;
    atomic_int has_others; /* a piece has elements that are not in the sums of its row */
    double *sums;
    csm_scratch scratch;
} stream_job;

static csm_status begin(stream_job *job, csm_op op, const csm_table *table, const csm_stream_call *call,
                        csm_buffer *single, double elements, size_t units) {
    memset(job, 0, sizeof *job);
    job->base.interrupt.caller = csm_fp_enter();
    csm_set_dtype(&job->base, call->dtype, table);
    csm_set_scales(&job->base.scales, call->temperature, csm_is_single(&job->base));
    job->call = call;
    job->kernels = &table->kernels[op][call->max ? job->base.wide_dtype : call->dtype];
    job->temperature = call->max ? job->base.scales.transformed : job->base.scales.ordinary;
    job->each = csm_block_count(call->n);
    job->base.interrupt.check = call->interrupt;
    job->base.threads = csm_threads_for(elements, units, call->threads);
    const csm_status status = csm_scratch_begin(&job->scratch, job->base.threads, BUFFERS, single);
    if (status != CSM_OK) csm_fp_leave(job->base.interrupt.caller);
    return status;
}
static csm_status end(stream_job *job, size_t units, size_t piece, csm_body body) {
    const csm_status status = csm_parallel(units, piece, job->base.threads, body, job, &job->base.interrupt);
    csm_scratch_end(&job->scratch);
    csm_fp_leave(job->base.interrupt.caller); /* the callback may have changed it */
    return status;
}

/* Block i of a row as the kernels read it, or NULL. */
static const void *fetch(stream_job *job, int thread, size_t row, size_t i) {
    const csm_stream_call *c = job->call;
    const size_t first = row * c->n + i * CSM_BLOCK, k = csm_block_length(c->n, i * CSM_BLOCK);
    const char *x = (const char *)c->x + first * job->base.itemsize;
    if (!c->max) return x;
    void *wide = csm_scratch_get(&job->scratch, thread, WIDE, CSM_BLOCK * sizeof(double));
    if (!wide) return NULL;
    job->base.table->widen[job->base.dtype](x, wide, k);
    csm_transform(&job->base.scales, csm_is_single(&job->base), wide, k, c->max[row]);
    return wide;
}

static csm_status blocks_body(void *context, size_t first, size_t last, int thread) {
    stream_job *job = context;
    for (size_t at = first; at < last; at++) {
        const size_t i = at % job->each, k = csm_block_length(job->call->n, i * CSM_BLOCK);
        const void *x = fetch(job, thread, at / job->each, i);
        if (!x) return CSM_NO_MEMORY;
        memset(&job->blocks[at], 0, sizeof job->blocks[at]);
        job->kernels->pass1(x, NULL, NULL, k, &job->temperature, &job->blocks[at]);
    }
    return CSM_OK;
}
csm_status csm_run_stream_blocks(csm_op op, const csm_table *table, const csm_stream_call *call, csm_block *blocks) {
    stream_job job;
    csm_buffer single[BUFFERS];
    const size_t units = call->rows * csm_block_count(call->n);
    const csm_status status = begin(&job, op, table, call, single, (double)call->rows * (double)call->n, units);
    if (status != CSM_OK) return status;
    job.blocks = blocks;
    return end(&job, units, 64, blocks_body);
}

void csm_stream_combine(csm_op op, const csm_table *table, const csm_stream_call *call, size_t count,
                        const csm_block *blocks, csm_row *rows, double *lse) {
    stream_job job;
    const csm_fp_environment caller = csm_fp_enter();
    csm_set_dtype(&job.base, call->dtype, table);
    csm_set_scales(&job.base.scales, call->temperature, csm_is_single(&job.base));
    const csm_scales *scales = &job.base.scales;
    const csm_kernels *kernels = &table->kernels[op][call->max ? job.base.wide_dtype : job.base.dtype];
    for (size_t r = 0; r < call->rows; r++) {
        memset(&rows[r], 0, sizeof rows[r]);
        kernels->combine(blocks + r * count, count, call->max ? &scales->transformed : &scales->ordinary, &rows[r]);
        if (!lse) continue;
        const double max = call->max ? call->max[r] : rows[r].max;
        lse[r] = rows[r].is_nan ? CSM_NAN : csm_reduced(op, scales, max, rows[r].tail, call->max != NULL);
    }
    csm_fp_leave(caller);
}

static csm_status results_body(void *context, size_t first, size_t last, int thread) {
    stream_job *job = context;
    const csm_call *c = &job->base;
    for (size_t at = first; at < last; at++) {
        const size_t row = at / job->each, i = at % job->each, k = csm_block_length(job->call->n, i * CSM_BLOCK);
        char *y = (char *)job->y + (row * job->call->n + i * CSM_BLOCK) * c->itemsize;
        const void *x = fetch(job, thread, row, i);
        csm_block block;
        void *to = y;
        if (job->call->max) to = csm_scratch_get(&job->scratch, thread, RAW, CSM_BLOCK * sizeof(double));
        if (!x || !to) return CSM_NO_MEMORY;
        job->kernels->pass1(x, NULL, NULL, k, &job->temperature, &block);
        if (!(block.max <= job->rows[row].max && block.hi == block.hi)) atomic_store(&job->has_others, 1);
        job->kernels->pass2(x, NULL, to, k, &job->temperature, &job->rows[row], &block);
        if (job->call->max) c->table->narrow[c->dtype](to, y, k);
    }
    return CSM_OK;
}
csm_status csm_run_stream_results(const csm_table *table, const csm_stream_call *call, const csm_row *rows, void *y,
                                  int *has_others) {
    stream_job job;
    csm_buffer single[BUFFERS];
    const size_t units = call->rows * csm_block_count(call->n);
    const csm_status status =
        begin(&job, CSM_OP_softmax, table, call, single, (double)call->rows * (double)call->n, units);
    if (status != CSM_OK) return status;
    job.rows = rows;
    job.y = y;
    const csm_status result = end(&job, units, 64, results_body);
    *has_others = atomic_load(&job.has_others);
    return result;
}

/* Rows of values as doubles. */
static void widen_values(const stream_job *job, const char *from, size_t count, void *beside, double *to) {
    const csm_call *c = &job->base;
    const float *narrow = beside;
    c->table->widen[c->dtype](from, csm_is_single(c) ? beside : (void *)to, count);
    for (size_t i = 0; i < count && csm_is_single(c); i++) to[i] = (double)narrow[i];
}
static csm_status values_body(void *context, size_t first, size_t last, int thread) {
    stream_job *job = context;
    const csm_stream_call *call = job->call;
    const size_t width = call->width, n = call->n;
    const int single = csm_is_single(&job->base);
    for (size_t row = first; row < last; row++) {
        const void *x = fetch(job, thread, row, 0);
        char *raw = csm_scratch_get(&job->scratch, thread, RAW, (2 * CSM_BLOCK + 2 * VALUE_ROWS * width) * 8);
        int64_t *ids = (int64_t *)(void *)csm_scratch_get(&job->scratch, thread, IDS, VALUE_ROWS * sizeof *ids);
        if (!x || !raw || !ids) return CSM_NO_MEMORY;
        double *e = (double *)(void *)raw, *wide = e + 2 * CSM_BLOCK, *sums = job->sums + row * width;
        float *e_single = (float *)(void *)(e + CSM_BLOCK);
        memset(&job->blocks[row], 0, sizeof job->blocks[row]);
        job->kernels->pass1(x, NULL, single ? (void *)e_single : (void *)e, n, &job->temperature, &job->blocks[row]);
        for (size_t j = 0; j < n && single; j++) e[j] = (double)e_single[j];
        for (size_t j = 0; j < VALUE_ROWS; j++) ids[j] = (int64_t)j;
        for (size_t j = 0; j < n; j += VALUE_ROWS) {
            const size_t m = n - j < VALUE_ROWS ? n - j : VALUE_ROWS;
            const char *values = (const char *)call->values + (row * n + j) * width * job->base.itemsize;
            widen_values(job, values, m * width, wide + VALUE_ROWS * width, wide);
            job->base.table->rows[CSM_DTYPE_f64].sums(e + j, (const char *)wide, (ptrdiff_t)(width * 8), ids, m, width,
                                                      j ? sums : NULL, sums);
            if (csm_stops(&job->base.interrupt, thread, m * width)) return CSM_INTERRUPTED;
        }
    }
    return CSM_OK;
}
csm_status csm_run_stream_values(const csm_table *table, const csm_stream_call *call, csm_block *blocks, double *sums) {
    stream_job job;
    csm_buffer single[BUFFERS];
    const double elements = (double)call->rows * (double)call->n * (double)(call->width + 1);
    const csm_status status = begin(&job, CSM_OP_softmax, table, call, single, elements, call->rows);
    if (status != CSM_OK) return status;
    job.blocks = blocks;
    job.sums = sums;
    return end(&job, call->rows, 1, values_body);
}
