/* The driver of row optimisers: distributes the given rows over threads, and finds each row's decay and rate.
 *
 * Rows that are not given are never visited.  Their weight decay is due when they are: (1 - eta lambda)^k after k
 * steps, by repeated squaring in pairs, which leaves the rounding of the pair alone (2^-100 k) whatever k is.
 * Rows are distinct, so threads write to different memory and no result depends on how rows are distributed.
 * A row whose elements are not contiguous or not aligned is computed in scratch.
 */
#include "row_optimizer.h"

#include "../math/pair.h"

enum { ROW_ELEMENTS = 32, ROWS_AHEAD = 8 }; /* work of a row besides its elements; rows of prefetching */

typedef struct optimizer_call {
    csm_dtype dtype;
    const csm_table *table;
    const csm_row_update *update;
    size_t itemsize, wide_size;
    int in_place;
    csm_scratch scratch;
    csm_interrupt interrupt;
} optimizer_call;

/* base^count for a base near 1. */
static csm_pair power(csm_pair base, uint64_t count) {
    csm_pair result = csm_pair_of(1, 0);
    for (; count; count >>= 1) {
        if (count & 1) result = csm_pair_mul(result, base);
        base = csm_pair_mul(base, base);
        if (result.hi < 0x1p-500) return csm_pair_of(0, 0); /* float holds no such weight; pairs end near 2^-900 */
    }
    return result;
}

/* 1 - base^count.  The low part of the power counts: the first visits of a row cancel up to ten bits. */
static double complement(double base, uint64_t count) {
    const csm_pair p = power(csm_pair_of(base, 0), count);
    return (1 - p.hi) - p.lo;
}

/* 1 - eta lambda as a pair. */
static csm_pair decay_of(const csm_row_update *u) {
    const double product = u->learning_rate * u->penalty, low = fma(u->learning_rate, u->penalty, -product);
    const double rest = 1 - product, error = (1 - rest) - product;
    return csm_pair_of(rest, error - low);
}

static char *state_at(const csm_row_stepper *s, void *state, size_t row) {
    return (char *)state + row * s->update->n * s->wide_size;
}

/* Of one element its square, rounded to the compute type: all other lanes of the kernel are 0. */
static double sum_squares(const csm_row_stepper *s, const void *g) {
    const size_t n = s->update->n;
    if (n != 1) return s->kernels->squares(g, n);
    if (s->wide_size == 8) return *(const double *)g * *(const double *)g;
    const float square = *(const float *)g * *(const float *)g;
    return (double)square;
}

/* Adds the mean square of g to the row's number; returns the rate of the step. */
static double adagrad_rate(const csm_row_stepper *s, const void *g, size_t row) {
    const csm_row_update *u = s->update;
    const double square = sum_squares(s, g), mean = s->inverse ? square * s->inverse : square / (double)u->n;
    double sum;
    if (s->wide_size == 4) {
        float *at = (float *)u->state + row;
        sum = (double)*at + mean;
        *at = sum == sum ? (float)sum : (float)CSM_NAN;
    } else {
        double *at = (double *)u->state + row;
        sum = *at + mean;
        *at = sum == sum ? sum : CSM_NAN;
    }
    return u->learning_rate / sqrt(sum + CSM_ADAGRAD_START);
}

/* The corrections of Adam's means, which begin at 0, for the row's number of visits. */
static void correct(const csm_row_update *u, size_t row, csm_row_step *step) {
    if (u->visits[row] < UINT32_MAX) u->visits[row]++;
    const uint64_t visits = u->visits[row];
    step->rate = u->learning_rate / complement(CSM_ADAM_FIRST, visits);
    step->root = 1 / sqrt(complement(CSM_ADAM_SECOND, visits));
}

static void update_row(csm_row_stepper *s, char *w, const void *g, size_t row) {
    const csm_row_update *u = s->update;
    const csm_optimizer_kernels *k = s->kernels;
    csm_row_step *step = &s->step;
    step->rate = u->learning_rate;
    if (!g) {
        k->decay(w, u->n, step);
        return;
    }
    switch (u->kind) {
    case CSM_ROWWISE_ADAGRAD: step->rate = adagrad_rate(s, g, row); /* fall through */
    case CSM_SGD: k->descend(w, g, u->n, step); break;
    case CSM_ADAGRAD: k->adagrad(w, g, state_at(s, u->state, row), u->n, step); break;
    case CSM_ADAM:
        correct(u, row, step);
        k->adam(w, g, state_at(s, u->state, row), state_at(s, u->second, row), u->n, step);
        break;
    }
}

void csm_row_stepper_begin(csm_row_stepper *s, csm_dtype dtype, const csm_table *table, const csm_row_update *u) {
    csm_call sizes;
    csm_set_dtype(&sizes, dtype, table);
    const double inverse = u->n && !(u->n & (u->n - 1)) ? 1 / (double)u->n : 0; /* exact: the product is the quotient */
    *s = (csm_row_stepper){&table->optimizer[dtype], u, sizes.wide_size, inverse, {.decay = 1}, 0};
}

void csm_row_stepper_take(csm_row_stepper *s, size_t row, const void *g, void *w) {
    const csm_row_update *u = s->update;
    if (u->last) {
        const int64_t steps = u->step - u->last[row];
        if (steps != s->known) s->step.decay = power(decay_of(u), (uint64_t)steps).hi;
        s->known = steps;
        u->last[row] = u->step;
        if (!g && steps == 0) return;
    }
    update_row(s, w, g, row);
}

static void prefetch_row(const optimizer_call *call, size_t row) {
    const csm_row_update *u = call->update;
    const char *w = (const char *)u->w + (ptrdiff_t)row * u->w_row;
    const size_t bytes = u->n * call->itemsize < 512 ? u->n * call->itemsize : 512;
    for (size_t at = 0; call->in_place && at < bytes; at += 64) PREFETCH(w + at);
    if (u->kind == CSM_ROWWISE_ADAGRAD) PREFETCH((const char *)u->state + row * call->wide_size);
}

static csm_status rows_body(void *context, size_t begin, size_t end, int thread) {
    optimizer_call *call = context;
    const csm_row_update *u = call->update;
    csm_row_stepper stepper;
    char *copy = call->in_place ? NULL : csm_scratch_get(&call->scratch, thread, 0, u->n * call->itemsize);
    if (!call->in_place && !copy) return CSM_NO_MEMORY;
    csm_row_stepper_begin(&stepper, call->dtype, call->table, u);
    for (size_t i = begin; i < end; i++) {
        const size_t row = u->rows ? (size_t)u->rows[i] : i;
        if (u->rows && i + ROWS_AHEAD < end) prefetch_row(call, (size_t)u->rows[i + ROWS_AHEAD]);
        const char *g = u->g ? (const char *)u->g + i * u->n * call->wide_size : NULL;
        char *w = (char *)u->w + (ptrdiff_t)row * u->w_row;
        if (call->in_place) {
            csm_row_stepper_take(&stepper, row, g, w);
        } else {
            csm_gather(copy, 0, (csm_strided){w, 0, u->w_axis}, 1, u->n, call->itemsize, NULL, NULL);
            csm_row_stepper_take(&stepper, row, g, copy);
            csm_scatter(w, 0, u->w_axis, copy, 0, 1, u->n, call->itemsize);
        }
    }
    return CSM_OK;
}

csm_status csm_run_row_update(csm_dtype dtype, const csm_table *table, const csm_row_update *u) {
    csm_fp_environment saved = csm_fp_enter();
    optimizer_call call = {.dtype = dtype, .table = table, .update = u};
    csm_call sizes;
    csm_buffer single[1];
    csm_set_dtype(&sizes, dtype, table);
    call.itemsize = sizes.itemsize;
    call.wide_size = sizes.wide_size;
    call.in_place = (u->w_axis == (ptrdiff_t)call.itemsize || u->n == 1) && (uintptr_t)u->w % call.itemsize == 0 &&
                    u->w_row % (ptrdiff_t)call.itemsize == 0;
    call.interrupt = (csm_interrupt){.check = u->interrupt, .context = u->interrupt_context, .caller = saved};
    const size_t cost = u->n + ROW_ELEMENTS;
    const int threads = csm_threads_for((double)u->count * (double)cost, u->count, u->threads < 1 ? 1 : u->threads);
    csm_status status = csm_scratch_begin(&call.scratch, threads, 1, single);
    if (status == CSM_OK) {
        if (u->count > 0 && u->n > 0)
            status =
                csm_parallel(u->count, CSM_PIECE_ELEMENTS / 4 / cost + 1, threads, rows_body, &call, &call.interrupt);
        saved = call.interrupt.caller; /* the callback may have changed it */
        csm_scratch_end(&call.scratch);
    }
    csm_fp_leave(saved);
    return status;
}
