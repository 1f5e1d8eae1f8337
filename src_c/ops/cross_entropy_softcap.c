/* Cross-entropy of logits with a soft cap, c tanh(x / c).
 *
 * Groups of rows are capped into scratch of the compute type, together with the slopes of the cap.  The files of
 * cross-entropy see only these rows: capped half types are not rounded to their storage type.  They multiply the
 * gradient by the slopes where they write it.  Short rows that lie one behind the other are capped as one block; longer
 * ones of one block leave their maxima to the kernels, and room for e'.
 *
 * A clip applies to the gradient of the caller's logits, after the multiplication; the rows are computed without it.
 * Let k be upstream over the divisor: ||g|| <= clip_norm |k| and |g_j| <= clip_value |k|, with k in the gradient.
 *
 * Slopes that underflow belong to gradients that underflow, unless a row's factors are above 1; such rows are computed
 * by underflow.h, with the slope as a factor.
 */
#include "cross_entropy.h"

#include <float.h>

void csm_loss_set_softcap(csm_loss_run *call, double c) {
    csm_call *base = &call->base;
    if (!(c >= CSM_SOFTCAP_LEAST && c <= CSM_SOFTCAP_LARGEST)) call->cap_exponent = csm_take_exponent(&c);
    const double half = c / 2;
    call->capped = &base->table->softcap[base->dtype];
    csm_softcap_set(&call->softcap, c, csm_is_single(base));
    csm_set_ordinary(&call->softcap.half, &half, 1, csm_is_single(base));
    call->stored = base->dtype;
    csm_set_dtype(base, base->wide_dtype, base->table);
    call->kernels = call->wide_kernels;
}

/* Few enough for the first level of cache, with their slopes and e'. */
size_t csm_loss_capped_group(const csm_loss_run *call) {
    enum { GROUP_BYTES = 16384 };
    const size_t rows = GROUP_BYTES / (call->pitch + 1) + 1;
    return rows > call->rows && call->rows > 0 ? call->rows : rows;
}
static size_t slopes_size(const csm_loss_run *call) { return call->loss_call.gradient ? call->group * call->pitch : 0; }
size_t csm_loss_softcap_size(const csm_loss_run *call) {
    const size_t soft = call->is_soft ? call->group * call->soft_pitch : 0, numbers = call->group * sizeof(double);
    return call->group * call->pitch + soft + slopes_size(call) + 2 * csm_rounded(numbers) +
           csm_pack_pitch(call->base.shape.n, call->itemsize);
}

/* The kernel's cap, beyond its range, of logits multiplied by a power of two. */
static csm_capped cap_scaled(const csm_loss_run *call, const char *x, char *y, char *slope, size_t k) {
    enum { PART = 64 };
    const csm_call *c = &call->base;
    const double exponent = call->cap_exponent, largest = csm_is_single(c) ? FLT_MAX : DBL_MAX;
    csm_wide plain[PART], scaled[PART];
    char *const from = (char *)plain, *const to = (char *)scaled;
    csm_capped all = {.far = 0, .max = -CSM_INF};
    for (size_t b = 0; b < k; b += PART) {
        const size_t count = k - b < PART ? k - b : PART;
        char *const out = y + b * c->wide_size;
        c->table->widen[call->stored](x + b * call->itemsize, from, count);
        for (size_t j = 0; j < count; j++) {
            const double v = csm_wide_at(c, from, j), z = csm_times_pow2(v, -exponent);
            csm_put(c, to + j * c->wide_size, v - v != 0 ? v : z > largest ? largest : z < -largest ? -largest : z);
        }
        const double far = c->table->softcap[c->dtype]
                               .cap(to, out, slope ? slope + b * c->wide_size : NULL, count, &call->softcap)
                               .far;
        if (far > 0 && csm_times_pow2(far, exponent) > all.far) all.far = csm_times_pow2(far, exponent);
        for (size_t j = 0; j < count; j++) {
            const double v = csm_wide_at(c, from, j), z = csm_wide_at(c, to, j);
            /* c tanh(x / c) rounds to a small x, which the power of two may have rounded */
            const double capped = fabs(z) < 0x1p-28 ? v : csm_times_pow2(csm_wide_at(c, out, j), exponent);
            csm_put(c, out + j * c->wide_size, capped);
            if (capped > all.max) all.max = csm_wide_at(c, out, j);
        }
    }
    return all;
}

/* Caps a row of any length.  Returns 0 if the call has been interrupted. */
static int cap_row(csm_loss_run *call, int thread, const char *x, char *y, char *slope, csm_capped *of_row) {
    const csm_call *c = &call->base;
    const csm_poll poll = csm_poll_of(&call->base.interrupt, thread);
    *of_row = (csm_capped){.far = 0, .max = -CSM_INF};
    for (size_t b = 0; b < c->shape.n; b += CSM_BLOCK) {
        const size_t k = csm_block_length(c->shape.n, b);
        char *const to = y + b * c->wide_size, *const steep = slope ? slope + b * c->wide_size : NULL;
        const csm_capped block = call->cap_exponent != 0
                                     ? cap_scaled(call, x + b * call->itemsize, to, steep, k)
                                     : call->capped->cap(x + b * call->itemsize, to, steep, k, &call->softcap);
        if (block.far > of_row->far) of_row->far = block.far;
        of_row->max = block.max; /* of a row of one block */
        if (b > 0 && csm_poll_stops(&poll, CSM_BLOCK)) return 0;
    }
    return 1;
}

/* Clips the gradient of a row, which contains the factor |k|. */
static void clip_row(const csm_loss_run *call, char *gradient, double k) {
    const csm_call *c = &call->base;
    const csm_loss_options *o = call->options;
    double largest = 0, square = 0, low = 0, shrink = 1;
    for (size_t j = 0; j < c->shape.n; j++) {
        const double g = fabs(csm_wide_at(c, gradient, j));
        if (g > largest) largest = g;
    }
    if (largest == 0 || !(largest < CSM_INF)) return; /* zeros, or NaN, which is in every element */
    const double exponent = csm_take_exponent(&largest);
    for (size_t j = 0; j < c->shape.n && o->clip_norm > 0; j++) {
        const double g = csm_times_pow2(csm_wide_at(c, gradient, j), -exponent);
        csm_two_sum(&square, &low, g * g);
    }
    const double norm = csm_times_pow2(sqrt(square + low), exponent);
    if (o->clip_norm > 0 && norm > o->clip_norm * k) shrink = o->clip_norm * k / norm;
    const double clip = o->clip_value > 0 ? o->clip_value * k : CSM_INF;
    for (size_t j = 0; j < c->shape.n; j++) {
        double g = csm_wide_at(c, gradient, j) * shrink;
        g = g > clip ? clip : g < -clip ? -clip : g;
        csm_put(c, gradient + j * c->wide_size, g);
    }
}

/* Clips the gradient of a row and writes it, to `row` on the way if it is not contiguous.  Returns 0 if the call has
 * been interrupted. */
static int finish_row(csm_loss_run *call, int thread, const csm_loss_job *job, char *g, size_t at, char *row) {
    const csm_call *c = &call->base;
    const size_t n = c->shape.n;
    const int is_contiguous = call->gradient.axis_stride == (ptrdiff_t)call->itemsize || n == 1;
    char *const to = job->gradient + (ptrdiff_t)at * job->gradient_step, *const out = is_contiguous ? to : row;
    const csm_poll poll = csm_poll_of(&call->base.interrupt, thread);
    csm_loss_input in;
    if ((call->options->clip_norm > 0 || call->options->clip_value > 0) &&
        csm_loss_read_input(call, job, (ptrdiff_t)at, &in)) {
        const csm_loss_call *l = &call->loss_call;
        clip_row(call, g, csm_times_pow2(fabs(in.upstream) * l->per_divisor, l->divisor_exponent));
    }
    for (size_t b = 0; b < n; b += CSM_BLOCK) {
        c->table->narrow[call->stored](g + b * c->wide_size, out + b * call->itemsize, csm_block_length(n, b));
        if (b > 0 && csm_poll_stops(&poll, CSM_BLOCK)) return 0;
    }
    return is_contiguous ||
           csm_scatter_row(&call->base, thread, to, call->gradient.axis_stride, row, n, call->itemsize);
}

/* Whether the rows of an array lie one behind the other. */
static int is_dense(const csm_loss_run *call, ptrdiff_t step, ptrdiff_t axis) {
    const size_t n = call->base.shape.n;
    return axis == (ptrdiff_t)call->itemsize && step == (ptrdiff_t)(n * call->itemsize) && n <= CSM_BLOCK;
}

static int all_take_part(const csm_loss_job *job) {
    csm_loss_input in;
    size_t i = 0;
    while (i < job->rows && csm_read_label_and_weight(job, (ptrdiff_t)i, &in)) i++;
    return i == job->rows;
}

csm_status csm_loss_capped_rows(csm_loss_run *call, const csm_loss_job *job, int thread, char *memory) {
    const csm_call *c = &call->base;
    const size_t n = c->shape.n, numbers = csm_rounded(call->group * sizeof(double));
    const int is_contiguous = call->x.axis_stride == (ptrdiff_t)call->itemsize || n == 1;
    const int clips = call->options->clip_norm > 0 || call->options->clip_value > 0;
    const int together = n <= CSM_LOSS_GROUP_LENGTH && !call->has_lost && call->cap_exponent == 0 &&
                         is_dense(call, job->x_step, call->x.axis_stride) && all_take_part(job);
    const size_t pitch = together ? n * c->wide_size : call->pitch;
    char *y = memory + call->e_size + call->block_size + call->wide_size, *q = y + call->group * call->pitch;
    char *slope = q + (call->is_soft ? call->group * call->soft_pitch : 0);
    double *far = (double *)(void *)(slope + slopes_size(call)), *max = far + numbers / sizeof(double);
    char *row = (char *)max + numbers;
    if (!job->gradient) slope = NULL;
    if (together) call->capped->cap(job->x, y, slope, job->rows * n, &call->softcap);
    for (size_t i = 0; i < job->rows && !together; i++) {
        const char *x = job->x + (ptrdiff_t)i * job->x_step;
        csm_loss_input in;
        csm_capped of_row;
        if (!csm_read_label_and_weight(job, (ptrdiff_t)i, &in)) continue; /* its logits are not read */
        if (!is_contiguous) {
            const csm_strided from = {x, 0, call->x.axis_stride};
            if (!csm_gather_row(&call->base, thread, row, from, n, call->itemsize, NULL, NULL)) return CSM_INTERRUPTED;
            x = row;
        }
        if (!cap_row(call, thread, x, y + i * pitch, slope ? slope + i * pitch : NULL, &of_row)) return CSM_INTERRUPTED;
        far[i] = of_row.far;
        max[i] = of_row.max;
    }
    csm_loss_job packed = *job;
    if (call->is_soft && call->soft_labels.axis_stride != (ptrdiff_t)c->wide_size && n > 1) {
        const csm_strided from = {job->q, job->q_step, call->soft_labels.axis_stride};
        if (!csm_loss_gather_kept(call, thread, job, q, call->soft_pitch, from, c->wide_size)) return CSM_INTERRUPTED;
        packed.q = q;
        packed.q_step = (ptrdiff_t)call->soft_pitch;
    }
    const int is_written =
        !clips && call->itemsize == c->wide_size && (call->gradient.axis_stride == (ptrdiff_t)call->itemsize || n == 1);
    packed.x = y;
    packed.x_step = packed.slope_step = (ptrdiff_t)pitch;
    if (slope && !is_written) {
        packed.gradient = y;
        packed.gradient_step = (ptrdiff_t)pitch;
    }
    packed.uncapped = job->x;
    packed.uncapped_step = job->x_step;
    packed.slope = slope;
    packed.far = far;
    if (n > CSM_LOSS_GROUP_LENGTH && n <= CSM_BLOCK) {
        packed.max = max;
        packed.rows_in_scratch = y;
    }
    csm_run_loss_rows(call, &packed, thread, memory);
    for (size_t i = 0; slope && !is_written && i < job->rows; i++)
        if (!finish_row(call, thread, job, y + i * pitch, i, row)) return CSM_INTERRUPTED;
    return CSM_OK;
}

csm_factor csm_loss_slope_at(const csm_loss_run *call, const char *uncapped, size_t j) {
    const csm_call *c = &call->base;
    const csm_factor one = csm_factor_of_number(1), cap = csm_factor_of_number(call->options->softcap);
    csm_wide w;
    c->table->widen[call->stored](uncapped + (ptrdiff_t)j * call->x.axis_stride, &w, 1);
    const double x = csm_from_wide(c, w);
    if (!(x - x == 0)) return one;
    const csm_factor t = csm_factor_exp(-2 * fabs(x), 0, cap), of_t = csm_factor_add(one, t);
    return csm_factor_div(csm_factor_mul(csm_factor_of_number(4), t), csm_factor_mul(of_t, of_t));
}

int csm_loss_loses_slope(const csm_loss_run *call, double factor, double far) {
    const csm_loss_call *c = &call->loss_call;
    const double one = csm_times_pow2(1, -c->t_exponent - c->divisor_exponent);
    const int clips = call->options->clip_norm > 0 || call->options->clip_value > 0;
    const double least = csm_is_single(&call->base) ? 43 : 350; /* exp(-2 least) is normal */
    return (factor > one && far > least * call->options->softcap) || (clips && factor > call->lost_limit);
}
