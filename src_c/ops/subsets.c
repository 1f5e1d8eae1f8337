/* Elementary symmetric polynomials: log sum over |A| = k of exp(sum of x over A), and its gradient, the probability
 * that a random subset of k elements has each of them.
 *
 * The polynomials of e^x leave the range of double, so that they are tilted: with lambda such that the sum of
 * p_i = 1 / (1 + e^-(x_i + lambda)) is about k, F(i, j), the probability that j of the first i elements are taken, is
 *
 *   F(i + 1, j) = F(i, j) (1 - p_i) + F(i, j - 1) p_i,   B(i, j) the same from the other end,
 *   log e_k = log F(n, k) + sum log(1 + e^(x_i + lambda)) - lambda k,
 *   taken_i = p_i sum_j F(i, j) B(i + 1, k - 1 - j) / F(n, k),   left_i the same with 1 - p_i and k - j.
 *
 * F(n, k) is near the mode of its distribution, and all terms are positive.  lambda needs no accuracy: it starts
 * halfway between the k-th and the (k + 1)-th largest x, and takes at most 12 Newton steps on the logit of the mean,
 * safeguarded by a bracket, until the sum is within 1/4 of k.
 * Passes: O(n k) steps; probabilities keep all of F, (n + 1) (k + 2) doubles.  A row is computed by one thread.
 * NaN, infinities, k = 0 and k >= n are the driver's.
 * Error (tests/ops/test_subsets.py, mpmath): log e_k 1 ULP of its largest term; probabilities 7e-15 at n = 100.
 */
#include "subsets.h"

#include "../math/scalars.h"

#include <string.h>

enum { ROOM = 4, STEPS = 12, BUFFERS = 1 };
/* FAR: sums of such numbers do not overflow; LESS: nor do those of any numbers times this. */
static const double FAR = 0x1p960, LESS = 0x1p-64;

size_t csm_subset_scratch(size_t n, size_t k, int marginals) {
    const size_t pitch = k + ROOM, rows = marginals ? n + 3 : 2;
    if (n > SIZE_MAX / 64 || rows > SIZE_MAX / 16 / pitch) return 0;
    return 3 * n + 1 + rows * pitch;
}

static void swap(double *a, double *b) {
    const double kept = *a;
    *a = *b;
    *b = kept;
}
/* Moves the k-th largest of n numbers to place k - 1, larger ones before it (Hoare 1961). */
static void select_largest(double *x, size_t n, size_t k) {
    size_t low = 0, high = n - 1;
    while (low < high) {
        const double pivot = x[low + (high - low) / 2];
        size_t i = low, j = high;
        for (;;) {
            while (x[i] > pivot) i++;
            while (x[j] < pivot) j--;
            if (i >= j) break;
            swap(&x[i++], &x[j--]);
        }
        /* x[low .. j] >= pivot >= x[j + 1 .. high], or j is the pivot itself */
        const size_t last = x[j] < pivot ? j - 1 : j;
        if (k - 1 <= last) {
            if (last == high) return; /* all are equal */
            high = last;
        } else {
            low = last + 1;
        }
    }
}
/* Halfway between the k-th and the (k + 1)-th largest. */
static double middle_of(const csm_subset_row *r, double *beside) {
    double next = -CSM_INF;
    memcpy(beside, r->x, r->n * sizeof *beside);
    select_largest(beside, r->n, r->k);
    for (size_t i = r->k; i < r->n; i++)
        if (beside[i] > next) next = beside[i];
    return 0.5 * beside[r->k - 1] + 0.5 * next;
}

static double log_of(double u) {
    double low;
    return csm_log(u, 0, &low);
}
/* Sets shift, p and q. */
static void tilt(csm_subset_row *r, double *p, double *q) {
    const double n = (double)r->n, k = (double)r->k;
    double low = -CSM_INF, high = CSM_INF, spread;
    r->shift = -middle_of(r, p);
    for (int step = 0;; step++) {
        const double sum = r->table->subsets.sigmoids(r->x, r->shift, r->n, p, q, &spread), more = sum - k;
        if ((more <= 0.25 && more >= -0.25) || step == STEPS) return;
        if (more > 0) high = r->shift;
        else low = r->shift;
        double next = CSM_NAN;
        if (sum > 0 && sum < n && spread > 0)
            next = r->shift - (log_of(sum / (n - sum)) - log_of(k / (n - k))) * (sum * ((n - sum) / n) / spread);
        if (!(next > low && next < high))
            next = low > -CSM_INF && high < CSM_INF ? 0.5 * low + 0.5 * high : r->shift + (more > 0 ? -1 : 1);
        r->shift = next;
    }
}

/* F(i + 1, .) from F(i, .): the numbers of elements from which k can still be reached. */
static void forward(const csm_subset_row *r, size_t i, const double *from, double *to, double p, double q) {
    const size_t behind = r->n - 1 - i, low = r->k > behind ? r->k - behind : 0;
    const size_t high = i + 1 < r->k ? i + 1 : r->k;
    r->table->subsets.step(from + low, to + low, high - low + 1, p, q);
}

/* Probabilities from the table of F; `of` holds B(i + 1, k - j) at j, and `to` receives B(i, k - j). */
static int probabilities(csm_subset_row *r, const double *f, size_t pitch, const double *p, const double *q, double *of,
                         double *to) {
    const size_t n = r->n, k = r->k;
    const double total = f[n * pitch + k];
    of[k] = 1;
    for (size_t i = n; i-- > 0;) {
        const size_t behind = n - 1 - i, high = i < k ? i : k;
        const size_t low = k > behind + 1 ? k - behind - 1 : 0, least = k > behind ? k - behind : 0;
        const size_t last = i < k - 1 ? i : k - 1;
        const double *row = f + i * pitch;
        const size_t with = last + 1 > low ? last + 1 - low : 0, without = high + 1 > least ? high + 1 - least : 0;
        r->taken[i] = r->table->geometric.dot(row + low, of + low + 1, with) * p[i] / total;
        r->left[i] = r->table->geometric.dot(row + least, of + least, without) * q[i] / total;
        r->table->subsets.step(of + low + 1, to + low, high - low + 1, q[i], p[i]);
        double *swapped = of;
        of = to;
        to = swapped;
        if (csm_poll_stops(&r->poll, k + 8)) return 0;
    }
    return 1;
}

int csm_subset_run(csm_subset_row *r) {
    const size_t n = r->n, k = r->k, pitch = k + ROOM, rows = r->taken ? n + 3 : 2;
    double *p = r->scratch, *q = p + n, *beside = q + n, *f = beside + n + 1; /* one number before a row is read */
    const size_t held = r->taken ? 1 : rows; /* the other rows of the table are cleared when their turn comes */
    memset(beside + n, 0, (1 + held * pitch) * sizeof *f);
    if (r->taken) memset(f + (n + 1) * pitch, 0, 2 * pitch * sizeof *f);
    tilt(r, p, q);
    const double tail = r->table->subsets.logs(r->x, r->shift, n);
    f[0] = 1;
    for (size_t i = 0; i < n; i++) {
        const double *from = f + (r->taken ? i : i % 2) * pitch;
        double *to = f + (r->taken ? i + 1 : (i + 1) % 2) * pitch;
        if (r->taken) memset(to, 0, pitch * sizeof *to);
        forward(r, i, from, to, p[i], q[i]);
        if (csm_poll_stops(&r->poll, k + 8)) return 0;
    }
    r->log_f = log_of(f[(r->taken ? n : n % 2) * pitch + k]);
    double sum = r->log_f, low = 0;
    size_t above = 0;
    csm_two_sum(&sum, &low, tail);
    for (size_t i = 0; i < n; i++)
        if (r->x[i] + r->shift >= 0) {
            csm_two_sum(&sum, &low, r->x[i]);
            above++;
        }
    const double by = (double)above - (double)k, product = r->shift * by;
    csm_two_sum(&sum, &low, product);
    r->log_sum = sum + low;
    if (!r->taken) return 1;
    return probabilities(r, f, pitch, p, q, f + (n + 1) * pitch, f + (n + 2) * pitch);
}

typedef struct subset_job {
    const csm_table *table;
    const csm_subset_call *call;
    csm_scratch scratch;
    csm_interrupt interrupt;
} subset_job;

static void fill(double *to, size_t n, double value) {
    for (size_t i = 0; i < n && to; i++) to[i] = value;
}
/* The sum of numbers above -inf, which may be finite although parts of it are not. */
static double sum_of(const double *x, size_t n, double scale) {
    double sum = 0, low = 0;
    for (size_t i = 0; i < n; i++)
        if (x[i] > -CSM_INF) csm_two_sum(&sum, &low, x[i] * scale);
    if (sum - sum == 0 || scale != 1) return (sum + low) / scale;
    return sum_of(x, n, LESS);
}
/* Elements that are so large that their distances overflow: replaced by others with the same probabilities.  If the
 * k-th and the next one lie near 0, the far ones are certain, and come nearer; otherwise all that is near 0 is certain,
 * and all x are scaled.  Returns the scale; `rest` is to be added to the log-sum. */
static double tame(csm_subset_row *r, double *x, double *beside, double *rest) {
    double largest = 0, low = 0;
    *rest = 0;
    for (size_t i = 0; i < r->n; i++) {
        const double size = x[i] < 0 ? -x[i] : x[i];
        if (size > largest) largest = size;
    }
    if (largest < FAR) return 1;
    const double middle = middle_of(r, beside);
    const int is_far = middle >= FAR / 1024 || middle <= -FAR / 1024;
    for (size_t i = 0; i < r->n; i++) {
        const double bounded = x[i] > FAR ? FAR : x[i] < -FAR ? -FAR : x[i];
        if (!is_far && x[i] > FAR) csm_two_sum(rest, &low, (x[i] - bounded) * LESS);
        x[i] = is_far ? x[i] * LESS : bounded;
    }
    *rest = (*rest + low) / LESS;
    return is_far ? LESS : 1;
}
/* The results that need no recurrence.  Returns whether the row has one of them. */
static int is_simple(const double *x, size_t n, size_t k, double *log_sum, double *taken) {
    size_t possible = 0;
    int is_nan = 0, is_inf = 0;
    for (size_t i = 0; i < n; i++) {
        is_nan |= x[i] != x[i];
        is_inf |= x[i] == CSM_INF;
        possible += x[i] > -CSM_INF;
    }
    *log_sum = is_nan ? CSM_NAN : k == 0 ? 0 : k > possible ? -CSM_INF : CSM_INF;
    if (!is_nan && !is_inf && k > 0 && k == possible) *log_sum = sum_of(x, n, 1);
    if (k == 0 && !is_nan) fill(taken, n, 0);
    else if (is_nan || is_inf || k > possible) fill(taken, n, CSM_NAN);
    else if (k < possible) return 0;
    else
        for (size_t i = 0; i < n && taken; i++) taken[i] = x[i] > -CSM_INF;
    return 1;
}

static csm_status run_row(subset_job *job, size_t row, int thread) {
    const csm_subset_call *c = job->call;
    const size_t begin = (size_t)c->offsets[row], n = (size_t)c->offsets[row + 1] - begin, k = (size_t)c->k[row];
    double *taken = c->marginals ? c->marginals + begin : NULL, log_sum;
    double *to = c->log_sums ? &c->log_sums[row] : &log_sum;
    if (is_simple(c->x + begin, n, k, to, taken)) return CSM_OK;
    const size_t numbers = csm_subset_scratch(n, k, taken != NULL);
    double *beside = NULL;
    if (numbers)
        beside = (double *)(void *)csm_scratch_get(&job->scratch, thread, 0, (numbers + 3 * n) * sizeof *beside);
    if (!beside) return CSM_NO_MEMORY;
    csm_subset_row r = {.table = job->table, .poll = csm_poll_of(&job->interrupt, thread), .k = k, .x = beside};
    for (size_t i = 0; i < n; i++)
        if (c->x[begin + i] > -CSM_INF) beside[r.n++] = c->x[begin + i];
    r.scratch = beside + 3 * n;
    r.taken = taken ? beside + n : NULL;
    r.left = taken ? beside + 2 * n : NULL;
    double rest;
    const double scale = tame(&r, beside, r.scratch, &rest);
    if (!csm_subset_run(&r)) return CSM_INTERRUPTED;
    *to = r.log_sum / scale;
    if (rest != 0) *to += rest;
    for (size_t i = 0, j = 0; i < n && taken; i++) taken[i] = c->x[begin + i] > -CSM_INF ? r.taken[j++] : 0;
    return CSM_OK;
}
/* NumPy would round in the caller's rounding mode, and flush subnormal numbers to zero if the caller does. */
static void round_row(const csm_subset_call *c, size_t row) {
    if (c->log_sums) c->single[row] = (float)c->log_sums[row];
    for (int64_t i = c->offsets[row]; i < c->offsets[row + 1] && c->marginals; i++)
        c->single[i] = (float)c->marginals[i];
}
static csm_status subsets_body(void *context, size_t begin, size_t end, int thread) {
    subset_job *job = context;
    for (size_t row = begin; row < end; row++) {
        const csm_status status = run_row(job, row, thread);
        if (status != CSM_OK) return status;
        if (job->call->single) round_row(job->call, row);
    }
    return CSM_OK;
}
csm_status csm_run_subsets(const csm_table *table, const csm_subset_call *call) {
    subset_job job = {.table = table, .call = call};
    csm_buffer single[BUFFERS];
    double cells = 0;
    job.interrupt.caller = csm_fp_enter();
    for (size_t i = 0; i < call->rows; i++)
        cells += (double)(call->offsets[i + 1] - call->offsets[i]) * (double)(call->k[i] + 16);
    const int threads = csm_threads_for(cells, call->rows, call->threads);
    job.interrupt.check = call->interrupt;
    csm_status status = csm_scratch_begin(&job.scratch, threads, BUFFERS, single);
    if (status == CSM_OK) status = csm_parallel(call->rows, 1, threads, subsets_body, &job, &job.interrupt);
    csm_scratch_end(&job.scratch);
    csm_fp_leave(job.interrupt.caller); /* the callback may have changed it */
    return status;
}
