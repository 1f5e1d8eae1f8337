/* The drivers of projected gradient ascent: all steps of the rows of a linear layer, and one step for gradients that
 * come from elsewhere.
 *
 * Blocks of rows are units: a thread takes a block through all steps in its scratch, which stays in cache, as w does.
 * A row is computed by one thread, and alone, so that no bit depends on the threads, the instruction set, or the other
 * rows.
 */
#include "../core/extension.h"
#include "../core/parallel.h"
#include "../core/scratch.h"

enum { CLIMB_ELEMENTS = 4096 }; /* of a unit of work of single steps */

typedef struct climb_job {
    const csm_climb_kernels *kernels;
    const csm_climb_call *call;
    size_t block_rows;
    csm_scratch scratch;
    csm_interrupt interrupt;
} climb_job;

static void *take(char **at, size_t count) {
    void *taken = *at;
    *at += count * CSM_CLIMB_BYTES;
    return taken;
}

static csm_status climb_body(void *context, size_t begin, size_t end, int thread) {
    climb_job *job = context;
    const csm_climb_call *c = job->call;
    csm_climb_block b = c->layer;
    const int has_gradient = b.norm != CSM_NORM_INF, has_walls = c->rows.low || !has_gradient;
    const size_t lines = (2 + 2 * (size_t)has_walls + (size_t)has_gradient) * b.d + 2 * b.classes + 1;
    char *at = csm_scratch_get(&job->scratch, thread, 0, lines * CSM_CLIMB_BYTES);
    if (!at) return CSM_NO_MEMORY;
    b.delta = take(&at, b.d);
    b.low = has_walls ? take(&at, b.d) : NULL;
    b.high = has_walls ? take(&at, b.d) : NULL;
    b.g = has_gradient ? take(&at, b.d) : NULL;
    b.label_weights = take(&at, b.d);
    b.fixed = take(&at, b.classes);
    b.logits = take(&at, b.classes);
    b.label = take(&at, 1);
    for (size_t unit = begin; unit < end; unit++) {
        const size_t first = unit * job->block_rows, left = c->n - first;
        const size_t count = left < job->block_rows ? left : job->block_rows;
        job->kernels->begin(&b, &c->rows, first, count);
        for (size_t step = 0; step < c->steps; step++) {
            job->kernels->step(&b);
            if (csm_stops(&job->interrupt, thread, b.classes * b.d + 1)) return CSM_INTERRUPTED;
        }
        job->kernels->end(&b, &c->rows, first, count);
    }
    return CSM_OK;
}

csm_status csm_run_climb(csm_dtype dtype, const csm_table *table, const csm_climb_call *call) {
    climb_job job = {.kernels = &table->climb[dtype], .call = call};
    csm_buffer single[1];
    const csm_fp_environment saved = csm_fp_enter();
    job.interrupt = (csm_interrupt){.check = call->interrupt, .caller = saved};
    job.block_rows = CSM_CLIMB_BYTES / (dtype == CSM_DTYPE_f64 ? sizeof(double) : sizeof(float));
    const size_t units = call->layer.d ? (call->n + job.block_rows - 1) / job.block_rows : 0;
    const double elements =
        (double)units * (double)call->steps * ((double)call->layer.classes * (double)call->layer.d + 1);
    const int threads = csm_threads_for(elements, units, call->threads < 1 ? 1 : call->threads);
    csm_status status = csm_scratch_begin(&job.scratch, threads, 1, single);
    if (status == CSM_OK) {
        if (units) status = csm_parallel(units, 1, threads, climb_body, &job, &job.interrupt);
        csm_scratch_end(&job.scratch);
    }
    csm_fp_leave(job.interrupt.caller); /* the callback may have changed it */
    return status;
}

typedef struct step_job {
    const csm_climb_kernels *kernels;
    size_t n, size;
    char *delta;
    const char *g, *low, *high;
    double step;
    csm_interrupt interrupt;
} step_job;

static csm_status step_body(void *context, size_t begin, size_t end, int thread) {
    const step_job *j = context;
    const size_t from = begin * CLIMB_ELEMENTS, to = end * CLIMB_ELEMENTS < j->n ? end * CLIMB_ELEMENTS : j->n;
    const size_t at = from * j->size;
    (void)thread;
    j->kernels->numbers(j->delta + at, j->g + at, j->low + at, j->high + at, j->step, to - from);
    return CSM_OK;
}

csm_status csm_run_climb_step(csm_dtype dtype, const csm_table *table, size_t n, void *delta, const void *g,
                              const void *low, const void *high, double step, int threads, int (*interrupt)(void *)) {
    const size_t size = dtype == CSM_DTYPE_f64 ? sizeof(double) : sizeof(float);
    step_job job = {&table->climb[dtype], n, size, delta, g, low, high, step, {0}};
    const csm_fp_environment saved = csm_fp_enter();
    const size_t units = (n + CLIMB_ELEMENTS - 1) / CLIMB_ELEMENTS;
    job.interrupt = (csm_interrupt){.check = interrupt, .caller = saved};
    threads = csm_threads_for((double)n, units, threads < 1 ? 1 : threads);
    const csm_status status = units ? csm_parallel(units, 16, threads, step_body, &job, &job.interrupt) : CSM_OK;
    csm_fp_leave(job.interrupt.caller); /* the callback may have changed it */
    return status;
}
