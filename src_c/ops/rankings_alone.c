/* One list of a ranking on its own: of more than CSM_RANKING_COUNTED members, with scores that are far apart or absent,
 * or with ties other than Breslow's.
 *
 * e^x are those of the CRF's kernels, relative to the maximum, or with exponents of their own where the x are more than
 * far apart.  Where x / T are so large that their distances round, or overflow, elements that are near each other are a
 * cluster, and their exponents are relative to its maximum.  Ties as sums over subsets have no exponents: where x / T
 * overflow, their x round at some 2^-42. */
#include "rankings_run.h"

#include <string.h>

#define RANKING_TINY \
    0x1p-860 /* least e^(x - max): quotients of sums of up to 2^60 terms stay within the range of double */
#define RANKING_DIVIDED 0x1p40 /* distances in temperatures up to which `correct` is exact */
#define RANKING_GAP 2048.0 /* e^-gap vanishes beside 1, whatever the number of terms */
#define RANKING_GAP_POWER 2955.0 /* the power of two that stands for a larger gap */

/* Merges runs. */
void csm_ranking_merge(ranking_run *run) {
    const size_t n = run->n;
    int64_t *from = run->order, *to = run->beside;
    for (size_t i = 0; i < n; i++) from[i] = (int64_t)i;
    for (size_t width = 1; width < n; width *= 2) {
        for (size_t low = 0; low < n; low += 2 * width) {
            const size_t middle = n - low < width ? n : low + width, high = n - low < 2 * width ? n : low + 2 * width;
            size_t i = low, j = middle;
            for (size_t at = low; at < high; at++) {
                const int takes_right = i == middle || (j < high && run->key[from[j]] > run->key[from[i]]);
                to[at] = takes_right ? from[j++] : from[i++];
                if (ranking_stops(run, at)) return;
            }
        }
        int64_t *swapped = from;
        from = to;
        to = swapped;
    }
    if (from != run->order) memcpy(run->order, from, n * sizeof *from);
}

/* Reads the x of the members in their order, and their maximum.  Returns 1 if one of them is NaN or +inf. */
static int read_members(ranking_run *run, double *max) {
    const csm_ranking_call *c = run->job->call;
    const csm_call *base = &run->job->base;
    const char *x = (const char *)c->x + run->first * base->itemsize;
    const size_t n = run->n, padded = (n + 7) / 8 * 8;
    const double *wide = (const double *)(const void *)x;
    const float *narrow = (const float *)(const void *)x;
    double *to = run->x, largest;
    int is_large = 0;
    *max = -CSM_INF;
    if (base->itemsize == 2) {
        base->table->widen[base->dtype](x, run->narrow, run->length);
        narrow = run->narrow;
    }
    for (size_t i = n; i < padded; i++) to[i] = -CSM_INF;
    for (size_t begin = 0, end; begin < n && !run->is_stopped; begin = end) {
        end = csm_poll_end(begin, n);
        if (csm_is_single(base))
            for (size_t i = begin; i < end; i++) to[i] = (double)narrow[run->order[i]];
        else
            for (size_t i = begin; i < end; i++) to[i] = wide[run->order[i]];
        is_large |= base->table->crf.maxima(to + begin, 1, (end - begin + 7) / 8 * 8, &largest);
        if (largest > *max) *max = largest;
        run->is_stopped |= end < n && csm_poll_stops(&run->poll, end - begin);
    }
    return is_large != 0;
}
/* Whether the elements are observed, in their order, or NULL if all are. */
static const unsigned char *read_observed(ranking_run *run) {
    const csm_ranking_call *c = run->job->call;
    int all = 1;
    if (!c->observed) return NULL;
    for (size_t i = 0; i < run->n; i++) {
        run->observed[i] = c->observed[run->first + (size_t)run->order[i]] != 0;
        all &= run->observed[i];
        if (ranking_stops(run, i)) break;
    }
    return all ? NULL : run->observed;
}

/* Groups of ties, and those that count. */
static void find_groups(ranking_run *run, ranking_list *list) {
    const csm_ranking_call *c = run->job->call;
    const size_t n = run->n;
    list->groups = n;
    list->factors = n < c->top ? n : c->top;
    list->begin = NULL;
    if (c->ties == CSM_RANKING_ORDER || !run->has_ties) return;
    size_t groups = 0;
    list->factors = 0;
    for (size_t i = 0; i < n && !ranking_stops(run, i); i++) {
        if (i > 0 && run->sorted_key[i] == run->sorted_key[i - 1]) continue;
        run->begin[groups++] = i;
        list->factors += i < c->top;
    }
    run->begin[groups] = n;
    list->groups = groups;
    list->begin = run->begin;
}

/* (a - b) / T, infinite only if the result is; what its rounding leaves goes to low. */
static double distance(double a, double b, double t, double *low) {
    double d = a, rest = 0;
    csm_two_sum(&d, &rest, -b);
    *low = 0;
    if (!(d < CSM_INF)) return (a * 0.5 - b * 0.5) / (t * 0.5);
    const double z = d / t;
    if (z < CSM_INF) *low = (fma(-z, t, d) + rest) / t;
    return z;
}

/* Divides x by T.  Where that is rounded, x - max instead; what the quotients lack goes to grad, which is free. */
static double divide(ranking_run *run, double temperature, double max) {
    double low;
    if (ranking_is_power(temperature)) {
        for (size_t i = 0; i < run->n && !ranking_stops(run, i); i++) run->x[i] /= temperature;
        return max / temperature;
    }
    for (size_t i = 0; i < run->n && !ranking_stops(run, i); i++) {
        run->x[i] = -distance(max, run->x[i], temperature, &low);
        run->grad[i] = -low;
    }
    return 0;
}
/* Multiplies powers of e by e^low, from grad. */
static void correct(const ranking_run *run, double *e, size_t begin, size_t end) {
    for (size_t i = begin; i < end; i++) {
        const double low = run->grad[i];
        e[i] += e[i] * (low * (1 + low * (0.5 + low * (1.0 / 6))));
    }
}
/* p and power of the members; `rounds`: the x are rounded, and the p are corrected. */
static void split(ranking_run *run, int rounds) {
    const size_t n = run->n;
    for (size_t begin = 0, end; begin < n && !run->is_stopped; begin = end) {
        end = csm_poll_end(begin, n);
        run->job->base.table->crf.split(run->x + begin, run->p + begin, run->power + begin, (end - begin + 7) / 8 * 8);
        if (rounds) correct(run, run->p, begin, end);
        run->is_stopped |= end < n && csm_poll_stops(&run->poll, end - begin);
    }
}

/* Whether the division by T has made a number -inf. */
static int has_lost(ranking_run *run) {
    const csm_call *base = &run->job->base;
    const char *x = (const char *)run->job->call->x + run->first * base->itemsize;
    for (size_t i = 0; i < run->n && !ranking_stops(run, i); i++)
        if (run->x[i] == -CSM_INF && csm_element(base, x, (size_t)run->order[i]) > -CSM_INF) return 1;
    return 0;
}

/* e of the members, or p and power where they are too far apart.  Returns 0 if x / T are too large for both. */
static int exponentials(ranking_run *run, ranking_list *list, double temperature, double max) {
    const csm_crf_kernels *k = &run->job->base.table->crf;
    const size_t n = run->n;
    const int rounds = !ranking_is_power(temperature) && max > -CSM_INF;
    double power, least = CSM_INF, lowest = 0;
    int is_tiny = 0;
    if (temperature != 1 && max > -CSM_INF) max = divide(run, temperature, max);
    if (max > RANKING_LARGEST || (max < -RANKING_LARGEST && max > -CSM_INF)) return 0;
    for (size_t begin = 0, end; begin < n && !run->is_stopped; begin = end) {
        end = csm_poll_end(begin, n);
        k->exponentials(run->x + begin, &max, run->e + begin, &power, 1, (end - begin + 7) / 8 * 8);
        for (size_t i = begin; i < end; i++) is_tiny |= run->e[i] < RANKING_TINY;
        if (rounds) correct(run, run->e, begin, end);
        run->is_stopped |= end < n && csm_poll_stops(&run->poll, end - begin);
    }
    run->has_absent = 0;
    list->is_wide = 0;
    if (!is_tiny) return 1;
    for (size_t i = 0; i < n && !ranking_stops(run, i); i++) {
        run->has_absent |= run->x[i] == -CSM_INF;
        if (!(run->x[i] > -CSM_INF)) continue;
        if (run->e[i] < least) least = run->e[i];
        if (run->x[i] < lowest) lowest = run->x[i];
    }
    if (lowest < (rounds ? -RANKING_DIVIDED : -RANKING_LARGEST)) return 0;
    if (run->has_absent && temperature != 1 && has_lost(run)) return 0;
    list->is_wide = least < RANKING_TINY;
    if (!list->is_wide) return 1;
    split(run, rounds);
    return 1;
}

/* Members that are near each other, RANKING_GAP_POWER of exponents apart from the next: the members in falling order of
 * x, and for each of them the maximum of its cluster and the cluster's exponent. */
typedef struct ranking_clusters {
    const int64_t *falling;
    double *maximum, *power;
    double t;
    int keeps_x; /* x / T do not overflow: `exact` takes them as they are */
} ranking_clusters;

/* Sets x and p 2^power of the members; x holds what has not been divided by T. */
static void find_clusters(ranking_run *run, ranking_clusters *c) {
    const size_t n = run->n;
    int64_t *const order = run->order;
    double maximum = -CSM_INF, before = -CSM_INF, power = 0, low;
    for (size_t i = 0; i < n && !ranking_stops(run, i); i++) {
        run->key[i] = run->x[i];
        c->maximum[i] = c->power[i] = 0; /* new pages in their order: at random, 8192 elements would touch them all */
    }
    run->order = run->member; /* neither keys nor members are needed any more */
    if (!run->is_stopped) csm_ranking_merge(run);
    c->falling = run->order;
    run->order = order;
    for (size_t j = 0; j < n && !ranking_stops(run, j); j++) {
        const size_t i = (size_t)c->falling[j];
        const double x = run->key[i];
        if (j > 0 && x > -CSM_INF && distance(before, x, c->t, &low) > RANKING_GAP) power -= RANKING_GAP_POWER;
        if (j == 0 || power < c->power[c->falling[j - 1]] || x == -CSM_INF) maximum = x;
        c->maximum[i] = maximum;
        c->power[i] = power;
        run->x[i] = x > -CSM_INF ? -distance(maximum, x, c->t, &low) : x;
        run->grad[i] = x > -CSM_INF ? -low : 0;
        before = x;
    }
    split(run, 1);
    c->keeps_x = 1;
    for (size_t i = 0; i < n && !ranking_stops(run, i); i++)
        c->keeps_x &= run->key[i] == -CSM_INF || fabs(run->key[i] / c->t) < CSM_INF;
    for (size_t i = 0; i < n && !ranking_stops(run, i); i++) {
        run->power[i] += c->power[i];
        run->x[i] = c->keeps_x ? run->key[i] / c->t : run->x[i] + c->power[i] * 0x1.62e42fefa39efp-1;
    }
}

/* The part of the distance from a member to a larger one that is lost, because clusters have been moved together. */
static double lacks(const ranking_clusters *c, int64_t larger, size_t i) {
    if (c->maximum[i] == -CSM_INF) return 0;
    const double power = c->power[larger] - c->power[i];
    double low;
    return distance(c->maximum[larger], c->maximum[i], c->t, &low) - power * 0x1.62e42fefa39efp-1;
}

/* The lost part of the loss: the lost distances of each chosen member to the largest one not before it; of a group of
 * `exact` without its x, those of its members to as many of the largest. */
static double loss_lacks(ranking_run *run, const ranking_clusters *c, const ranking_list *list) {
    double sum = 0;
    for (size_t g = 0, first = 0; g < list->factors && !run->is_stopped; g++) {
        const size_t begin = ranking_begin(list, g), end = ranking_begin(list, g + 1);
        while ((size_t)c->falling[first] < begin) first++;
        if (list->ties != CSM_RANKING_EXACT || end - begin == 1) {
            for (size_t i = begin; i < end && !ranking_stops(run, i); i++)
                if (ranking_is_observed(list, i)) sum += lacks(c, c->falling[first], i);
            continue;
        }
        size_t d = 0;
        for (size_t i = begin; i < end; i++) d += (size_t)ranking_is_observed(list, i);
        if (d > 1 && c->keeps_x) continue;
        for (size_t j = first, largest = first; j < list->n && !ranking_stops(run, j); j++) {
            const size_t i = (size_t)c->falling[j];
            if (i < begin || i >= end || !ranking_is_observed(list, i)) continue;
            while ((size_t)c->falling[largest] < begin) largest++;
            sum += lacks(c, c->falling[largest++], i);
        }
        run->is_stopped |= csm_poll_stops(&run->poll, list->n);
    }
    return sum;
}

/* For x / T that are too large for exponentials.  Returns what the loss lacks. */
static double use_clusters(ranking_run *run, ranking_list *list, double temperature) {
    ranking_clusters c = {NULL, run->others, run->weight, temperature, 0}; /* the terms overwrite them */
    double max;
    read_members(run, &max);
    if (!run->is_stopped) find_clusters(run, &c);
    list->is_wide = 1;
    return run->is_stopped ? 0 : loss_lacks(run, &c, list);
}

void csm_ranking_write(ranking_run *run, const double *grad, double factor) {
    const csm_ranking_call *c = run->job->call;
    const csm_call *base = &run->job->base;
    char *to = (char *)c->grad + run->first * base->itemsize;
    float *narrow = base->itemsize == 4 ? (float *)(void *)to : run->narrow;
    double *wide = (double *)(void *)to;
    const int single = csm_is_single(base);
    for (size_t i = 0; i < run->length && run->n < run->length; i++) {
        if (single) narrow[i] = 0;
        else wide[i] = 0;
    }
    for (size_t i = 0; i < run->n && !ranking_stops(run, i); i++) {
        const double v = grad ? grad[i] * factor : factor;
        if (single) narrow[run->order[i]] = (float)v;
        else wide[run->order[i]] = v;
    }
    if (base->itemsize == 2) base->table->narrow[base->dtype](narrow, to, run->length);
}

/* The gradient times factor / T, infinite or 0 only if the product is; returns the factor that is left. */
static double divide_gradient(ranking_run *run) {
    double t = run->temperature, factor = run->factor;
    if (ranking_has_inverse(run)) return factor / t;
    const double power = csm_take_exponent(&factor) - csm_take_exponent(&t);
    for (size_t i = 0; i < run->n && !ranking_stops(run, i); i++) {
        const double own = csm_take_exponent(&run->grad[i]);
        run->grad[i] = csm_times_pow2(run->grad[i] * factor / t, own + power);
    }
    return 1;
}

/* The terms of a list whose numbers have been read. */
static csm_status compute_terms(ranking_run *run, double temperature, double max, double *loss) {
    ranking_job *job = run->job;
    const csm_ranking_call *c = job->call;
    ranking_list list = {.table = job->base.table,
                         .ties = c->ties,
                         .poll = run->poll,
                         .n = run->n,
                         .observed = read_observed(run),
                         .x = run->x,
                         .e = run->e,
                         .p = run->p,
                         .power = run->power,
                         .others = run->others,
                         .weight = run->weight,
                         .grad = run->grad};
    double rest = 0;
    run->has_ties = 0;
    for (size_t i = 1; i < run->n; i++) run->has_ties |= run->sorted_key[i] == run->sorted_key[i - 1];
    find_groups(run, &list);
    if (run->is_stopped) return CSM_INTERRUPTED; /* the order is not one of the members */
    if (!exponentials(run, &list, temperature, max)) rest = use_clusters(run, &list, temperature);
    if (run->is_stopped) return CSM_INTERRUPTED;
    if (!list.is_wide && !list.begin && !list.observed && list.factors == list.n && !run->has_absent)
        list.is_stopped = !job->base.table->rankings.terms(&run->poll, run->e, run->n, run->others, run->weight,
                                                           run->grad, &list.loss);
    else if (list.is_wide) csm_ranking_terms_wide(&list);
    else csm_ranking_terms(&list);
    if (list.is_stopped) return CSM_INTERRUPTED;
    if (c->ties == CSM_RANKING_EXACT && list.begin) {
        const size_t numbers = csm_ranking_exact_scratch(&list);
        double *beside =
            (double *)(void *)csm_scratch_get(&job->scratch, run->thread, RANKING_EXACT, numbers * sizeof *beside);
        if (!beside) return CSM_NO_MEMORY;
        if (!csm_ranking_exact(&list, beside)) return CSM_INTERRUPTED;
    }
    *loss = list.loss + rest;
    return CSM_OK;
}

csm_status csm_ranking_alone(ranking_run *run) {
    ranking_job *job = run->job;
    const csm_ranking_call *c = job->call;
    double *to = &c->losses[run->list], max, loss = 0;
    *to = 0;
    if (run->is_stopped) return CSM_INTERRUPTED;
    if (run->n == 0) {
        if (c->grad) csm_ranking_write(run, NULL, 0);
        return CSM_OK;
    }
    if (read_members(run, &max)) {
        *to = CSM_NAN;
        if (c->grad) csm_ranking_write(run, NULL, run->factor == 0 ? 0 : CSM_NAN);
        return CSM_OK;
    }
    const csm_status status = compute_terms(run, run->temperature, max, &loss);
    if (status != CSM_OK) return status;
    *to = run->sample_weight * loss;
    if (c->grad) csm_ranking_write(run, run->grad, divide_gradient(run));
    return run->is_stopped ? CSM_INTERRUPTED : CSM_OK;
}
