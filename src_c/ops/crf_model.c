/* The parameters of a linear-chain CRF and the scores of a sequence, as the kernels read them. */
#include "crf.h"

#define LN2_HI 0x1.62e42fefa39efp-1
#define LN2_LO 0x1.abc9e3b39803fp-56

/* Copies L scores, and takes notice of NaN and +inf. */
static void read_scores(csm_crf_model *m, double *to, const double *from, size_t L, size_t pitch) {
    for (size_t i = 0; i < pitch; i++) {
        to[i] = i >= L ? -CSM_INF : from ? from[i] : 0;
        if (to[i] != to[i]) m->is_nan = 1;
        else if (to[i] == CSM_INF) m->is_inf = 1;
    }
}
static double largest_of(const double *x, size_t count) {
    double max = -CSM_INF;
    for (size_t i = 0; i < count; i++) max = x[i] > max ? x[i] : max;
    return max;
}
/* Beyond the range of the exponential the largest score is subtracted, and returned. */
static double shift_scores(double *x, size_t count) {
    const double max = largest_of(x, count);
    if (!(max > CSM_CRF_LARGEST || max < -CSM_CRF_LARGEST) || max == -CSM_INF) return 0;
    for (size_t i = 0; i < count; i++) x[i] -= max;
    return max;
}
/* p 2^(n - *n0), where *n0 is the n of the largest; returns the largest. */
static double scale_weights(const double *x, const double *p, const double *n, double *a, size_t count, double *n0) {
    const double max = largest_of(x, count);
    double top = 0;
    *n0 = max == -CSM_INF ? 0 : fma(max, 0x1.71547652b82fep+0, 0x1.8p52) - 0x1.8p52;
    for (size_t i = 0; i < count; i++) {
        a[i] = p[i] == 0 ? 0 : p[i] * csm_pow2(n[i] - *n0);
        top = a[i] > top ? a[i] : top;
    }
    return top;
}

csm_status csm_crf_make_model(crf_call *call) {
    const csm_crf_options *o = call->o;
    csm_crf_model *m = &call->model;
    const size_t L = o->tags;
    size_t P = (L + 7) / 8 * 8;
    P = P ? P : 8;
    if (P > 64 && P % 64 == 0) P += 8; /* rows of a power of two would share cache sets */
    memset(m, 0, sizeof *m);
    m->tags = L;
    m->pitch = P;
    if (L && P > PTRDIFF_MAX / 64 / L) return CSM_BAD_SHAPE;
    const size_t square = (L ? L : 1) * P;
    double *at = csm_allocate((6 * square + 8 * P) * sizeof *at);
    if (!at) return CSM_NO_MEMORY;
    double **const squares[] = {&m->scores, &m->scores_t, &m->p, &m->n, &m->a, &m->a_t};
    double **const rows[] = {&m->start, &m->end,   &m->start_p, &m->start_n,
                             &m->end_p, &m->end_n, &m->start_a, &m->end_a};
    for (size_t i = 0; i < sizeof squares / sizeof *squares; i++, at += square) *squares[i] = at;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++, at += P) *rows[i] = at;
    for (size_t i = 0; i < L; i++) read_scores(m, m->scores + i * P, o->transitions + i * L, L, P);
    read_scores(m, m->start, o->start, L, P);
    read_scores(m, m->end, o->end, L, P);
    if (m->is_nan || m->is_inf) return CSM_OK; /* nothing is computed */
    const int decodes = call->task == CSM_CRF_DECODE && o->method == CSM_CRF_VITERBI && !o->log_prob;
    if (!decodes && call->task != CSM_CRF_SCORE) {
        m->offset = shift_scores(m->scores, L * P);
        m->start_offset = shift_scores(m->start, P);
        m->end_offset = shift_scores(m->end, P);
        call->kernels->split(m->scores, m->p, m->n, L * P);
        call->kernels->split(m->start, m->start_p, m->start_n, P);
        call->kernels->split(m->end, m->end_p, m->end_n, P);
        m->a_max = scale_weights(m->scores, m->p, m->n, m->a, L * P, &m->a_n);
        m->start_max = scale_weights(m->start, m->start_p, m->start_n, m->start_a, P, &m->start_n0);
        m->end_max = scale_weights(m->end, m->end_p, m->end_n, m->end_a, P, &m->end_n0);
    }
    for (size_t i = 0; i < square; i++) m->scores_t[i] = -CSM_INF, m->a_t[i] = 0;
    for (size_t i = 0; i < L; i++)
        for (size_t j = 0; j < L; j++) {
            m->scores_t[j * P + i] = m->scores[i * P + j];
            m->a_t[j * P + i] = m->a[i * P + j];
        }
    return CSM_OK;
}
void csm_crf_release_model(crf_call *call) { csm_release(call->model.scores); }

enum { ZERO_STEP = 1 << 20 }; /* bytes */
/* The arrays of a thread, for the longest sequence; 0 beyond the last tag, -inf for scores. */
csm_status csm_crf_make_chain(crf_call *call, int thread) {
    csm_crf_chain *c = &call->chains[thread];
    const csm_crf_model *m = &call->model;
    const size_t L = m->tags, P = m->pitch, n = (call->longest + 7) / 8 * 8, matrix = n * P;
    if (n && P > PTRDIFF_MAX / 128 / n) return CSM_BAD_SHAPE;
    const size_t square = L * P, bytes = (5 * matrix + 7 * n + 2 * P + 3 * square) * sizeof(double) + n * L + L;
    double *at = (double *)(void *)csm_scratch_get(&call->scratch, thread, CRF_CHAIN, bytes);
    if (!at) return CSM_NO_MEMORY;
    for (size_t i = 0; i < bytes; i += ZERO_STEP) { /* the first touch of new memory takes as long as computing in it */
        memset((char *)at + i, 0, bytes - i < ZERO_STEP ? bytes - i : ZERO_STEP);
        if (csm_stops(&call->interrupt, thread, ZERO_STEP)) return CSM_INTERRUPTED;
    }
    double **const matrices[] = {&c->x, &c->e, &c->alpha, &c->mu, &c->u};
    double **const rows[] = {&c->e_n, &c->alpha_n, &c->alpha_max, &c->gold, &c->gold_n, &c->beside, &c->max};
    double **const squares[] = {&c->g, &c->h, &c->d};
    for (size_t i = 0; i < sizeof matrices / sizeof *matrices; i++, at += matrix) *matrices[i] = at;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++, at += n) *rows[i] = at;
    for (size_t i = 0; i < sizeof squares / sizeof *squares; i++, at += square) *squares[i] = at;
    c->beta = at;
    c->before = (unsigned char *)(at + 2 * P);
    c->touched = c->before + n * L;
    for (size_t t = 0; t < n; t++)
        for (size_t j = L; j < P; j++) c->x[t * P + j] = -CSM_INF;
    if (!csm_scratch_get(&call->scratch, thread, CRF_HALF, (L + 8) * sizeof(float))) return CSM_NO_MEMORY;
    c->model = m;
    c->poll = csm_poll_of(&call->interrupt, thread);
    return CSM_OK;
}

/* Adds a number to a sum that is kept as a pair. */
static void add_offset(double *sum, double *low, double x) { csm_two_sum(sum, low, x); }

static void load_rows(crf_sequence *s) {
    const crf_call *call = s->call;
    const csm_crf_options *o = call->o;
    const size_t L = o->tags, P = call->model.pitch, step = o->rows ? 1 : s->n;
    float *wide = (float *)(void *)call->scratch.buffers[s->thread * CRF_BUFFERS + CRF_HALF].data;
    for (size_t t = 0; t < s->n; t += call->itemsize == 4 ? step : 1) {
        const char *from = call->emissions + crf_row(s, t) * L * call->itemsize;
        double *to = s->chain->x + t * P;
        if (call->itemsize == 8) {
            memcpy(to, from, L * sizeof *to);
        } else if (call->itemsize == 4) {
            call->kernels->load_f32((const float *)(const void *)from, step, L, P, to);
        } else {
            call->table->widen[call->dtype](from, wide, L);
            call->kernels->load_f32(wide, 1, L, P, to);
        }
    }
    for (size_t t = 0; t < s->n && o->allowed; t++) {
        const unsigned char *allowed = o->allowed + crf_row(s, t) * L;
        for (size_t j = 0; j < L; j++)
            if (!allowed[j]) s->chain->x[t * P + j] = -CSM_INF;
    }
}

void csm_crf_load(crf_sequence *s, int shifts) {
    csm_crf_chain *c = s->chain;
    const csm_crf_model *m = &s->call->model;
    const size_t P = m->pitch;
    c->n = s->n;
    c->before_end = 0;
    c->labels = NULL;
    s->outcome = CSM_CRF_DONE;
    load_rows(s);
    const int found = s->call->kernels->maxima(c->x, s->n, P, c->max);
    s->is_nan = m->is_nan || found == 1;
    s->is_inf = m->is_inf || found == 2;
    if (s->is_nan || s->is_inf || !shifts) return;
    double offset = 0, low = 0;
    for (size_t t = 0; t < s->n; t++) {
        const double max = c->max[t];
        if (max == -CSM_INF) s->outcome = CSM_CRF_NO_PATH;
        if (max <= CSM_CRF_LARGEST && max >= -CSM_CRF_LARGEST) continue;
        for (size_t j = 0; j < P && max > -CSM_INF; j++) c->x[t * P + j] -= max;
        add_offset(&offset, &low, max > -CSM_INF ? max : 0);
        c->max[t] = 0;
    }
    add_offset(&offset, &low, m->start_offset);
    add_offset(&offset, &low, m->end_offset);
    if (m->offset != 0) add_offset(&offset, &low, m->offset * (double)(s->n - 1));
    s->offset = low == low ? offset + low : offset; /* where the sum overflows, its low part is NaN */
    if (s->outcome == CSM_CRF_DONE) s->call->kernels->exponentials(c->x, c->max, c->e, c->e_n, s->n, P);
}

void csm_crf_store(const crf_sequence *s, const double *row, double by, size_t at, void *to) {
    const crf_call *call = s->call;
    const size_t L = call->o->tags, P = call->model.pitch;
    char *target = (char *)to + at * call->itemsize;
    if (call->itemsize == 8) {
        call->kernels->store_f64(row, 1, L, P, by, (double *)(void *)target);
    } else if (call->itemsize == 4) {
        call->kernels->store_f32(row, 1, L, P, by, (float *)(void *)target);
    } else {
        float *wide =
            (float *)(void *)call->scratch.buffers[s->thread * CRF_BUFFERS + CRF_HALF].data; /* of load_rows */
        call->kernels->store_f32(row, 1, L, P, by, wide);
        call->table->narrow[call->dtype](wide, target, L);
    }
}

/* log(z 2^z_n) and the offset: n ln 2 as a pair, whose product is exact up to the last digits of its low part. */
double csm_crf_log_of(const crf_sequence *s, double z, double z_n) {
    double low, log = csm_log(z, 0, &low);
    const double product = z_n * LN2_HI;
    double sum = product, rest = fma(z_n, LN2_HI, -product) + z_n * LN2_LO + low;
    csm_two_sum(&sum, &rest, log);
    csm_two_sum(&sum, &rest, s->offset);
    return rest == rest ? sum + rest : sum; /* an infinite sum has no rest */
}

/* log(1 + r 2^r_n), r >= 0. */
double csm_crf_loss_of(double r, double r_n) {
    if (r == 0) return 0;
    if (r_n + 60 < 0 || (r_n < 60 && csm_times_pow2(r, r_n) < 0x1p60)) return csm_log1p(csm_times_pow2(r, r_n), 0);
    double low, log = csm_log(r, 0, &low); /* 1 is below the last digit */
    csm_two_sum(&log, &low, r_n * LN2_HI);
    return log + (low + r_n * LN2_LO + fma(r_n, LN2_HI, -(r_n * LN2_HI)));
}
