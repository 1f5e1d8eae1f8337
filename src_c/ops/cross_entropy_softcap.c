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

/* (tanh(u) / u - 1) / u^2 is a polynomial in u^2 up to |u| = 0.95, minimax for the relative error of tanh: 2^-25.0 in
 * float, 2^-54.5 in double.  Powers of 1 / c^2 are in its coefficients, which spares a multiplication of each x. */
csm_softcap csm_softcap_of(double cap, int is_single) {
    static const double f32[CSM_SOFTCAP_TERMS_F32] = {-0x1.5554c94a7ddbfp-2, 0x1.10f8e83810453p-3,
                                                      -0x1.b748c13ba33dfp-5, 0x1.5256dfb94bffbp-6,
                                                      -0x1.ae35509b0acd1p-8, 0x1.346ea03226c74p-10};
    static const double f64[CSM_SOFTCAP_TERMS_F64] = {
        -0x1.555555555547bp-2,  0x1.1111111106429p-3,  -0x1.ba1ba1b4185c9p-5,  0x1.664f47a98e69fp-6,
        -0x1.226e231f13ebap-7,  0x1.d6d1d22de00d8p-9,  -0x1.7d90375dbe7f1p-10, 0x1.34d5211b107adp-11,
        -0x1.f069df925ab50p-13, 0x1.84004f67ebd72p-14, -0x1.17cbe996f7ba4p-15, 0x1.51047fa91ba1cp-17,
        -0x1.1f90627f8f441p-19, 0x1.f3886891f4f42p-23};
    const int count = is_single ? CSM_SOFTCAP_TERMS_F32 : CSM_SOFTCAP_TERMS_F64;
    const double exponent = cap >= 0x1p-10 && cap <= 0x1p10 ? 0 : csm_take_exponent(&cap), half = cap / 2;
    csm_softcap s = {.cap = cap, .exponent = exponent, .per_square = 1 / (cap * cap)};
    double power = 1;
    s.largest_square = 0x1.ce147ap-1 * (cap * cap);
    for (int i = 0; i < count; i++) {
        power *= s.per_square;
        s.terms[count - 1 - i] = (is_single ? f32[i] : f64[i]) * power;
    }
    csm_set_ordinary(&s.half, &half, 1, is_single);
    return s;
}

void csm_loss_set_softcap(csm_loss_run *call, double c) {
    csm_call *base = &call->base;
    call->capped = &base->table->softcap[base->dtype];
    call->softcap = csm_softcap_of(c, csm_is_single(base));
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
    const csm_softcap *cap = &call->softcap;
    const double largest = csm_is_single(c) ? FLT_MAX : DBL_MAX;
    csm_wide plain[PART], scaled[PART];
    char *const from = (char *)plain, *const to = (char *)scaled;
    csm_capped all = {.far = 0, .max = -CSM_INF};
    for (size_t b = 0; b < k; b += PART) {
        const size_t count = k - b < PART ? k - b : PART;
        char *const out = y + b * c->wide_size;
        c->table->widen[call->stored](x + b * call->itemsize, from, count);
        for (size_t j = 0; j < count; j++)
            csm_put(c, to + j * c->wide_size, csm_softcap_scaled(cap, csm_wide_at(c, from, j), largest));
        const double far =
            c->table->softcap[c->dtype].cap(to, out, slope ? slope + b * c->wide_size : NULL, count, cap).far;
        if (far > 0 && csm_times_pow2(far, cap->exponent) > all.far) all.far = csm_times_pow2(far, cap->exponent);
        for (size_t j = 0; j < count; j++) {
            const double capped =
                csm_softcap_unscaled(cap, csm_wide_at(c, from, j), csm_wide_at(c, to, j), csm_wide_at(c, out, j));
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
        const csm_capped block = call->softcap.exponent != 0
                                     ? cap_scaled(call, x + b * call->itemsize, to, steep, k)
                                     : call->capped->cap(x + b * call->itemsize, to, steep, k, &call->softcap);
        if (block.far > of_row->far) of_row->far = block.far;
        of_row->max = block.max; /* of a row of one block */
        if (b > 0 && csm_poll_stops(&poll, CSM_BLOCK)) return 0;
    }
    return 1;
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
        csm_clip_capped(g, csm_is_single(c), n, call->options->clip_norm, call->options->clip_value,
                        csm_times_pow2(fabs(in.upstream) * l->per_divisor, l->divisor_exponent));
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
    const int together = n <= CSM_LOSS_GROUP_LENGTH && !call->has_lost && call->softcap.exponent == 0 &&
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
