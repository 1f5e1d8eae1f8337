/* The driver of certificates of linear layers: which class is nearest to overtaking that of a row, and how far away.
 *
 *   radius = min over j != y of the least ||delta||_p with z_j(x + delta) >= z_y(x + delta), x + delta within the walls
 *
 * First every rival's gap, with the distance it would have without walls, which is a lower bound.  With walls, rivals
 * are visited in rising order of that bound, until it is no less than the best distance found: 1.2 to 1.8 of 9 on
 * average for digits.  A row is computed by one thread, so that no bit depends on the threads.
 * Rows with a gap that is not finite have radius NaN.
 */
#include "../core/extension.h"
#include "../core/parallel.h"
#include "../core/scratch.h"

#include <string.h>

typedef struct certify_job {
    const csm_table *table;
    const csm_certify_call *call;
    size_t count;      /* of dual norms */
    const int64_t *of; /* of dual norms */
    double *norms;
    csm_scratch scratch;
    csm_interrupt interrupt;
} certify_job;

/* A thread's memory, and what is known of one row. */
typedef struct certify_row {
    const double *x;
    csm_gap *gaps; /* one for each class */
    double *reach; /* 3 d numbers */
    const double *zeros;
    int thread;
} certify_row;

static double bias_of(const csm_certify_call *c, size_t class) { return c->bias ? c->bias[class] : 0; }

static int is_finite(double x) { return x - x == 0; }

static int is_less(const csm_gap *a, const csm_gap *b) {
    return a->ahead < b->ahead || (a->ahead == b->ahead && a->ahead_low < b->ahead_low);
}

/* The gap of class y before class j; before a class without weights if `other` is NULL. */
static void find_gap(const certify_job *job, const certify_row *row, size_t y, size_t j, csm_gap *gap) {
    const csm_certify_call *c = job->call;
    const int has_other = j < c->classes;
    job->table->adversarial.gap(c->w + y * c->d, has_other ? c->w + j * c->d : row->zeros, row->x, c->d, bias_of(c, y),
                                has_other ? bias_of(c, j) : 0, c->norm, c->exponent, gap);
}

/* The class with the largest logit, of equal ones the first; `classes` if a logit is not finite. */
static size_t find_class(certify_job *job, const certify_row *row, csm_status *status) {
    const csm_certify_call *c = job->call;
    csm_gap best, logit;
    size_t y = 0;
    for (size_t j = 0; j < c->classes; j++) {
        find_gap(job, row, j, c->classes, &logit);
        if (!is_finite(logit.ahead)) return c->classes;
        if (j == 0 || is_less(&best, &logit)) {
            best = logit;
            y = j;
        }
        if (csm_stops(&job->interrupt, row->thread, 2 * c->d + 8)) *status = CSM_INTERRUPTED;
        if (*status != CSM_OK) return c->classes;
    }
    return y;
}

/* The rival with the least distance, of equal ones the first. */
static size_t find_nearest(const certify_row *row, size_t classes, size_t y) {
    size_t nearest = classes;
    for (size_t j = 0; j < classes; j++)
        if (j != y && (nearest == classes || row->gaps[j].distance < row->gaps[nearest].distance)) nearest = j;
    return nearest;
}

/* Distances within the walls, for as many rivals as needed. */
static double search(certify_job *job, const certify_row *row, size_t i, size_t y, size_t *rival, csm_status *status) {
    const csm_certify_call *c = job->call;
    double best = CSM_INF;
    *rival = c->classes;
    for (;;) {
        const size_t j = find_nearest(row, c->classes, y);
        if (j == c->classes || !(row->gaps[j].distance < best)) return best;
        double distance = row->gaps[j].distance;
        if (c->low && distance > 0) {
            const csm_walls walls = {c->low + i * c->low_step, c->high + i * c->high_step};
            distance = job->table->adversarial.reach(c->w + y * c->d, c->w + j * c->d, row->x, c->d, &walls, c->norm,
                                                     &row->gaps[j], row->reach);
            if (csm_stops(&job->interrupt, row->thread, 16 * c->d + c->classes)) *status = CSM_INTERRUPTED;
            if (*status != CSM_OK) return best;
        }
        if (distance < best) {
            best = distance;
            *rival = j;
        }
        if (!c->low || best == 0) return best;
        row->gaps[j].distance = CSM_INF;
    }
}

static csm_status certify_row_of(certify_job *job, const certify_row *row, size_t i) {
    const csm_certify_call *c = job->call;
    csm_status status = CSM_OK;
    size_t y = c->target ? (size_t)c->target[i] : find_class(job, row, &status), other = c->classes, rival;
    c->radius[i] = c->margin[i] = CSM_NAN;
    c->rival[i] = -1;
    if (status != CSM_OK || y == c->classes) return status;
    for (size_t j = 0; j < c->classes; j++) {
        csm_gap *gap = &row->gaps[j];
        find_gap(job, row, y, j == y ? c->classes : j, gap);
        if (!is_finite(gap->ahead)) return CSM_OK;
        if (j != y && (other == c->classes || is_less(gap, &row->gaps[other]))) other = j;
        if (csm_stops(&job->interrupt, row->thread, 4 * c->d + 8)) return CSM_INTERRUPTED;
    }
    c->margin[i] = other == c->classes ? CSM_INF : row->gaps[other].ahead + 0.0;
    c->radius[i] = search(job, row, i, y, &rival, &status);
    if (c->radius[i] == 0) rival = other;
    c->rival[i] = rival == c->classes || c->radius[i] == CSM_INF ? -1 : (int64_t)rival;
    return status;
}

static csm_status certify_body(void *context, size_t begin, size_t end, int thread) {
    certify_job *job = context;
    const csm_certify_call *c = job->call;
    const size_t gap_bytes = csm_rounded(c->classes * sizeof(csm_gap)), d_bytes = c->d * sizeof(double);
    char *memory = csm_scratch_get(&job->scratch, thread, 0, gap_bytes + 4 * d_bytes + CSM_ALIGN);
    if (!memory) return CSM_NO_MEMORY;
    double *numbers = (double *)(memory + gap_bytes);
    certify_row row = {NULL, (csm_gap *)memory, numbers, numbers + 3 * c->d, thread};
    memset(numbers + 3 * c->d, 0, d_bytes);
    for (size_t i = begin; i < end; i++) {
        row.x = c->x + i * c->d;
        const csm_status status = certify_row_of(job, &row, i);
        if (status != CSM_OK) return status;
    }
    return CSM_OK;
}

static csm_status norms_body(void *context, size_t begin, size_t end, int thread) {
    certify_job *job = context;
    const csm_certify_call *c = job->call;
    for (size_t i = begin; i < end; i++) {
        const double *w = c->w + (size_t)job->of[i] * c->d;
        for (size_t j = 0; j < c->classes; j++) {
            job->norms[i * c->classes + j] =
                job->table->adversarial.norm(w, c->w + j * c->d, c->d, c->norm, c->exponent);
            if (csm_stops(&job->interrupt, thread, c->d + 8)) return CSM_INTERRUPTED;
        }
    }
    return CSM_OK;
}

static csm_status run(certify_job *job, size_t units, csm_body body) {
    const csm_certify_call *c = job->call;
    csm_buffer single[1];
    const csm_fp_environment saved = csm_fp_enter();
    job->interrupt = (csm_interrupt){.check = c->interrupt, .context = c->interrupt_context, .caller = saved};
    const double elements = (double)c->classes * (double)(4 * c->d + 16) + 1;
    const int threads = csm_threads_for((double)units * elements, units, c->threads < 1 ? 1 : c->threads);
    csm_status status = csm_scratch_begin(&job->scratch, threads, 1, single);
    if (status == CSM_OK) {
        const size_t piece = (size_t)(CSM_POLL_ELEMENTS / elements) + 1;
        if (units > 0) status = csm_parallel(units, piece, threads, body, job, &job->interrupt);
        csm_scratch_end(&job->scratch);
    }
    csm_fp_leave(job->interrupt.caller); /* the callback may have changed it */
    return status;
}

csm_status csm_run_certify(const csm_table *table, const csm_certify_call *call) {
    certify_job job = {.table = table, .call = call};
    return run(&job, call->n, certify_body);
}

csm_status csm_run_dual_norms(const csm_table *table, const csm_certify_call *call, size_t count, const int64_t *of,
                              double *out) {
    certify_job job = {.table = table, .call = call, .count = count, .of = of, .norms = out};
    return run(&job, count, norms_body);
}
