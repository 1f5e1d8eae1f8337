/* The driver of the Plackett-Luce loss: lists, their order, threads, and the sum over lists.
 *
 * A list is computed by one thread, alone, in double, so that its bits depend on nothing else.  Its order is found by
 * counting (kernel/rankings), from 65 elements on by merging; e^x are those of the CRF's kernels, relative to the
 * maximum, or with exponents of their own where the x are more than far apart.  Where x / T are so large that their
 * distances round, or overflow, elements that are near each other are a cluster, and their exponents are relative to
 * its maximum.  Ties as sums over subsets have no exponents: where x / T overflow, their x round at some 2^-42.
 *
 * Losses are added in a tree over the lists.  A list with NaN or +inf among its elements is NaN; elements without
 * a relevance are not read, and their gradient is 0. */
#include "rankings.h"

#include "../core/call.h"
#include "../core/reduction.h"

#include <string.h>

#define RANKING_TINY \
    0x1p-860 /* least e^(x - max): quotients of sums of up to 2^60 terms stay within the range of double */
#define RANKING_GAP 2048.0 /* e^-gap vanishes beside 1, whatever the number of terms */
#define RANKING_GAP_POWER 2955.0 /* the power of two that stands for a larger gap */
enum { NUMBERS, PLACES, SIDE_BY_SIDE, EXACT, BUFFERS, PIECE_ELEMENTS = 16384 };
enum { WINDOW = 512 }; /* lists among which those of like lengths are computed side by side */

typedef struct ranking_job {
    const csm_ranking_call *call;
    csm_call base; /* dtype, table, threads, interrupt */
    double divisor;
    csm_scratch scratch;
} ranking_job;

/* Lists that wait until all lanes are taken. */
typedef struct ranking_batch {
    csm_ranking_lanes lanes;
    csm_ranking_order order[CSM_RANKING_LANES];
    size_t list[CSM_RANKING_LANES], used;
} ranking_batch;

/* A list while it is computed: arrays of its members, in the order of the call or sorted. */
typedef struct ranking_run {
    ranking_job *job;
    ranking_batch *batch;
    int thread;
    size_t list, first, length; /* its elements */
    double sample_weight, factor, temperature; /* factor: of its gradient */
    size_t n;                   /* its members: elements with a relevance */
    double *key, *sorted_key, *x, *e, *p, *power, *others, *weight, *grad;
    float *narrow; /* storage in the compute type */
    int64_t *member, *order, *beside; /* elements in their order; those of `order` in falling order */
    size_t *begin;
    unsigned char *observed;
    int has_ties, has_absent; /* has_absent: an x is -inf */
} ranking_run;

/* The arrays for lists of up to `length` elements. */
static int make_run(ranking_run *run, size_t length) {
    const size_t room = (length + CSM_RANKING_PAD - 1) / CSM_RANKING_PAD * CSM_RANKING_PAD + CSM_RANKING_PAD;
    csm_scratch *scratch = &run->job->scratch;
    double *at = (double *)(void *)csm_scratch_get(scratch, run->thread, NUMBERS, 12 * room * sizeof *at);
    int64_t *places = (int64_t *)(void *)csm_scratch_get(scratch, run->thread, PLACES, 5 * room * sizeof *places);
    const size_t lanes = CSM_RANKING_COUNTED * CSM_RANKING_LANES;
    double *beside = (double *)(void *)csm_scratch_get(scratch, run->thread, SIDE_BY_SIDE, 3 * lanes * sizeof *beside);
    if (!at || !places || !beside) return 0;
    run->batch->lanes.e = beside;
    run->batch->lanes.inverse = beside + lanes;
    run->batch->lanes.grad = beside + 2 * lanes;
    run->key = at;
    run->sorted_key = at + room;
    run->x = at + 2 * room;
    run->e = at + 3 * room;
    run->p = at + 4 * room;
    run->power = at + 5 * room;
    run->others = at + 6 * room; /* two numbers for each element */
    run->weight = at + 8 * room; /* the same */
    run->grad = at + 10 * room;
    run->narrow = (float *)(void *)(at + 11 * room); /* or doubles */
    run->member = places;
    run->order = places + room;
    run->beside = places + 2 * room;
    run->begin = (size_t *)(places + 3 * room);
    run->observed = (unsigned char *)(places + 4 * room);
    return 1;
}

static int is_observed(const csm_ranking_call *c, size_t i) { return !c->observed || c->observed[i]; }

/* Whether an observed element is among the places that count: the first of the most relevant ones decides. */
static int has_factor(const csm_ranking_call *c, size_t list) {
    const size_t begin = (size_t)c->offsets[list], end = (size_t)c->offsets[list + 1];
    size_t best = end, before = 0;
    if (c->top == 0) return 0;
    for (size_t i = begin; i < end; i++) {
        if (c->relevance[i] != c->relevance[i] || !is_observed(c, i)) continue;
        if (best == end || c->relevance[i] > c->relevance[best]) best = i;
        if (c->top == SIZE_MAX) return 1;
    }
    if (best == end) return 0;
    for (size_t i = begin; i < end; i++) {
        before += c->relevance[i] > c->relevance[best];
        if (c->ties == CSM_RANKING_ORDER) before += i < best && c->relevance[i] == c->relevance[best];
    }
    return before < c->top;
}

/* Sorts the places of keys in falling order, equal ones in their order, by merging runs. */
static void merge_places(ranking_run *run) {
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
            }
        }
        int64_t *swapped = from;
        from = to;
        to = swapped;
    }
    if (from != run->order) memcpy(run->order, from, n * sizeof *from);
}

/* The order of counted elements. */
static void use_places(ranking_run *run, const double *relevance, const csm_ranking_order *order) {
    unsigned char tied[CSM_RANKING_COUNTED] = {0};
    for (size_t i = 0; i < run->length; i++) {
        if (relevance[i] != relevance[i]) continue;
        size_t place = (size_t)order->row[i] / CSM_RANKING_LANES;
        place += tied[place]++;
        run->order[place] = (int64_t)i;
        run->sorted_key[place] = relevance[i];
    }
}
/* The order of any elements: the members are gathered, and sorted unless they are. */
static void sort_any(ranking_run *run, const double *relevance) {
    int falls = 1;
    size_t n = 0;
    for (size_t i = 0; i < run->length; i++) {
        if (relevance[i] != relevance[i]) continue;
        run->member[n] = (int64_t)i;
        run->key[n] = relevance[i];
        falls &= n == 0 || run->key[n] <= run->key[n - 1];
        n++;
    }
    run->n = n;
    if (!falls) merge_places(run);
    for (size_t i = 0; i < n; i++) {
        const size_t at = falls ? i : (size_t)run->order[i];
        run->sorted_key[i] = run->key[at];
        run->order[i] = run->member[at];
    }
}
/* Finds the members, their order, and whether there are ties.  order: NULL if the elements have not been counted. */
static void sort_members(ranking_run *run, const csm_ranking_order *order) {
    const double *relevance = run->job->call->relevance + run->first;
    if (order) use_places(run, relevance, order);
    else sort_any(run, relevance);
    run->has_ties = 0;
    for (size_t i = 1; i < run->n; i++) run->has_ties |= run->sorted_key[i] == run->sorted_key[i - 1];
}

/* Reads x / T of the members in their order, and their maximum.  Returns 1 if one of them is NaN or +inf. */
static int read_members(ranking_run *run, double temperature, double *max) {
    const csm_ranking_call *c = run->job->call;
    const csm_call *base = &run->job->base;
    const char *x = (const char *)c->x + run->first * base->itemsize;
    const size_t n = run->n, padded = (n + 7) / 8 * 8;
    const double *wide = (const double *)(const void *)x;
    const float *narrow = (const float *)(const void *)x;
    double *to = run->x;
    if (base->itemsize == 2) {
        base->table->widen[base->dtype](x, run->narrow, run->length);
        narrow = run->narrow;
    }
    if (csm_is_single(base))
        for (size_t i = 0; i < n; i++) to[i] = (double)narrow[run->order[i]];
    else
        for (size_t i = 0; i < n; i++) to[i] = wide[run->order[i]];
    for (size_t i = 0; i < n && temperature != 1; i++) to[i] /= temperature;
    for (size_t i = n; i < padded; i++) to[i] = -CSM_INF;
    return base->table->crf.maxima(to, 1, padded, max) != 0;
}
/* Whether the elements are observed, in their order, or NULL if all are. */
static const unsigned char *read_observed(ranking_run *run) {
    const csm_ranking_call *c = run->job->call;
    int all = 1;
    if (!c->observed) return NULL;
    for (size_t i = 0; i < run->n; i++) {
        run->observed[i] = c->observed[run->first + (size_t)run->order[i]] != 0;
        all &= run->observed[i];
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
    for (size_t i = 0; i < n; i++) {
        if (i > 0 && run->sorted_key[i] == run->sorted_key[i - 1]) continue;
        run->begin[groups++] = i;
        list->factors += i < c->top;
    }
    run->begin[groups] = n;
    list->groups = groups;
    list->begin = run->begin;
}

/* Whether the division by T has made a number -inf. */
static int has_lost(const ranking_run *run) {
    const csm_call *base = &run->job->base;
    const char *x = (const char *)run->job->call->x + run->first * base->itemsize;
    for (size_t i = 0; i < run->n; i++)
        if (run->x[i] == -CSM_INF && csm_element(base, x, (size_t)run->order[i]) > -CSM_INF) return 1;
    return 0;
}

/* e of the members, or p and power where they are too far apart.  Returns 0 if x / T are too large for both. */
static int exponentials(ranking_run *run, ranking_list *list, double temperature, double max) {
    const csm_crf_kernels *k = &run->job->base.table->crf;
    const size_t n = run->n, padded = (n + 7) / 8 * 8;
    double power, least = CSM_INF, lowest = 0;
    int is_tiny = 0;
    if (max > RANKING_LARGEST || (max < -RANKING_LARGEST && max > -CSM_INF)) return 0;
    k->exponentials(run->x, &max, run->e, &power, 1, padded);
    for (size_t i = 0; i < n; i++) is_tiny |= run->e[i] < RANKING_TINY;
    run->has_absent = 0;
    list->is_wide = 0;
    if (!is_tiny) return 1;
    for (size_t i = 0; i < n; i++) {
        run->has_absent |= run->x[i] == -CSM_INF;
        if (!(run->x[i] > -CSM_INF)) continue;
        if (run->e[i] < least) least = run->e[i];
        if (run->x[i] < lowest) lowest = run->x[i];
    }
    if (lowest < -RANKING_LARGEST || (run->has_absent && temperature < 1 && has_lost(run))) return 0;
    list->is_wide = least < RANKING_TINY;
    if (list->is_wide) k->split(run->x, run->p, run->power, padded);
    return 1;
}

/* (a - b) / T, infinite only if the result is. */
static double distance(double a, double b, double t) {
    const double d = a - b;
    return d < CSM_INF ? d / t : (a * 0.5 - b * 0.5) / (t * 0.5);
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
    const size_t n = run->n, padded = (n + 7) / 8 * 8;
    int64_t *const order = run->order;
    double maximum = -CSM_INF, before = -CSM_INF, power = 0;
    memcpy(run->key, run->x, n * sizeof *run->key);
    run->order = run->member; /* neither keys nor members are needed any more */
    merge_places(run);
    c->falling = run->order;
    run->order = order;
    for (size_t j = 0; j < n; j++) {
        const size_t i = (size_t)c->falling[j];
        const double x = run->key[i];
        if (j > 0 && x > -CSM_INF && distance(before, x, c->t) > RANKING_GAP) power -= RANKING_GAP_POWER;
        if (j == 0 || power < c->power[c->falling[j - 1]] || x == -CSM_INF) maximum = x;
        c->maximum[i] = maximum;
        c->power[i] = power;
        run->x[i] = x > -CSM_INF ? -distance(maximum, x, c->t) : x;
        before = x;
    }
    run->job->base.table->crf.split(run->x, run->p, run->power, padded);
    c->keeps_x = 1;
    for (size_t i = 0; i < n; i++) c->keeps_x &= run->key[i] == -CSM_INF || fabs(run->key[i] / c->t) < CSM_INF;
    for (size_t i = 0; i < n; i++) {
        run->power[i] += c->power[i];
        run->x[i] = c->keeps_x ? run->key[i] / c->t : run->x[i] + c->power[i] * 0x1.62e42fefa39efp-1;
    }
}

/* The part of the distance from a member to a larger one that is lost, because clusters have been moved together. */
static double lacks(const ranking_clusters *c, int64_t larger, size_t i) {
    if (c->maximum[i] == -CSM_INF) return 0;
    const double power = c->power[larger] - c->power[i];
    return distance(c->maximum[larger], c->maximum[i], c->t) - power * 0x1.62e42fefa39efp-1;
}

/* The lost part of the loss: the lost distances of each chosen member to the largest one not before it; of a group of
 * `exact` without its x, those of its members to as many of the largest. */
static double loss_lacks(const ranking_clusters *c, const ranking_list *list) {
    double sum = 0;
    for (size_t g = 0, first = 0; g < list->factors; g++) {
        const size_t begin = ranking_begin(list, g), end = ranking_begin(list, g + 1);
        while ((size_t)c->falling[first] < begin) first++;
        if (list->ties != CSM_RANKING_EXACT || end - begin == 1) {
            for (size_t i = begin; i < end; i++)
                if (ranking_is_observed(list, i)) sum += lacks(c, c->falling[first], i);
            continue;
        }
        size_t d = 0;
        for (size_t i = begin; i < end; i++) d += (size_t)ranking_is_observed(list, i);
        if (d > 1 && c->keeps_x) continue;
        for (size_t j = first, largest = first; j < list->n; j++) {
            const size_t i = (size_t)c->falling[j];
            if (i < begin || i >= end || !ranking_is_observed(list, i)) continue;
            while ((size_t)c->falling[largest] < begin) largest++;
            sum += lacks(c, c->falling[largest++], i);
        }
        if (csm_poll_stops(&list->poll, list->n)) break;
    }
    return sum;
}

/* For x / T that are too large for exponentials.  Returns what the loss lacks. */
static double use_clusters(ranking_run *run, ranking_list *list, double temperature) {
    ranking_clusters c = {NULL, run->others, run->weight, temperature, 0}; /* the terms overwrite them */
    double max;
    read_members(run, 1, &max);
    find_clusters(run, &c);
    list->is_wide = 1;
    return loss_lacks(&c, list);
}

/* Writes the gradient of the list times a factor; grad NULL: the factor for every member. */
static void write_gradient(const ranking_run *run, const double *grad, double factor) {
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
    for (size_t i = 0; i < run->n; i++) {
        const double v = grad ? grad[i] * factor : factor;
        if (single) narrow[run->order[i]] = (float)v;
        else wide[run->order[i]] = v;
    }
    if (base->itemsize == 2) base->table->narrow[base->dtype](narrow, to, run->length);
}

/* The terms of a list whose numbers have been read. */
static csm_status compute_terms(ranking_run *run, double temperature, double max, double *loss) {
    ranking_job *job = run->job;
    const csm_ranking_call *c = job->call;
    ranking_list list = {.table = job->base.table,
                         .ties = c->ties,
                         .poll = csm_poll_of(&job->base.interrupt, run->thread),
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
    find_groups(run, &list);
    if (!exponentials(run, &list, temperature, max)) rest = use_clusters(run, &list, temperature);
    if (!list.is_wide && !list.begin && !list.observed && list.factors == list.n && !run->has_absent)
        list.loss = job->base.table->rankings.terms(run->e, run->n, run->others, run->weight, run->grad);
    else if (list.is_wide) csm_ranking_terms_wide(&list);
    else csm_ranking_terms(&list);
    if (c->ties == CSM_RANKING_EXACT && list.begin) {
        const size_t numbers = csm_ranking_exact_scratch(&list);
        double *beside = (double *)(void *)csm_scratch_get(&job->scratch, run->thread, EXACT, numbers * sizeof *beside);
        if (!beside) return CSM_NO_MEMORY;
        if (!csm_ranking_exact(&list, beside)) return CSM_INTERRUPTED;
    }
    *loss = list.loss + rest;
    return CSM_OK;
}

static void begin_list(ranking_run *run, size_t list) {
    const csm_ranking_call *c = run->job->call;
    run->list = list;
    run->first = (size_t)c->offsets[list];
    run->length = (size_t)c->offsets[list + 1] - run->first;
    run->sample_weight = run->factor = c->sample_weight ? c->sample_weight[list] : 1;
    run->temperature = c->temperatures ? c->temperatures[list] : c->temperature;
    if (c->upstream) run->factor *= c->upstream[list];
    run->factor = run->job->divisor == 0 || run->factor == 0 ? 0 : run->factor / run->job->divisor;
}

/* A list on its own; order: as in sort_members. */
static csm_status run_alone(ranking_run *run, const csm_ranking_order *order) {
    ranking_job *job = run->job;
    const csm_ranking_call *c = job->call;
    double *to = &c->losses[run->list], max, loss;
    *to = 0;
    if (run->sample_weight != 0) sort_members(run, order);
    else run->n = 0;
    if (run->n == 0) {
        if (c->grad) write_gradient(run, NULL, 0);
        return CSM_OK;
    }
    const int is_large = read_members(run, run->temperature, &max) != 0;
    if (is_large && (run->temperature >= 1 || read_members(run, 1, &max))) {
        *to = CSM_NAN;
        if (c->grad) write_gradient(run, NULL, run->factor == 0 ? 0 : CSM_NAN);
        return CSM_OK;
    }
    const csm_status status = compute_terms(run, run->temperature, is_large ? CSM_INF : max, &loss);
    if (status != CSM_OK) return status;
    *to = run->sample_weight * loss;
    if (c->grad) write_gradient(run, run->grad, run->factor / run->temperature);
    return CSM_OK;
}

/* Whether every member contributes a factor. */
static int all_count(const ranking_run *run) {
    const csm_ranking_call *c = run->job->call;
    if (c->top < run->n) return 0;
    for (size_t i = run->first; i < run->first + run->length && c->observed; i++)
        if (!c->observed[i] && c->relevance[i] == c->relevance[i]) return 0;
    return 1;
}

/* Gives the list the next lane. */
static void take_lane(ranking_run *run) {
    ranking_batch *b = run->batch;
    const csm_call *base = &run->job->base;
    const char *x = (const char *)run->job->call->x + run->first * base->itemsize;
    const double *wide = (const double *)(const void *)x;
    const float *narrow = (const float *)(const void *)x;
    const int32_t *row = b->order[b->used].row;
    const size_t lane = b->used++;
    double *to = b->lanes.e + lane;
    b->list[lane] = run->list;
    b->lanes.temperature[lane] = run->temperature;
    b->lanes.factor[lane] = run->factor / run->temperature;
    b->lanes.count[lane] = (double)run->n;
    if (base->itemsize == 2) {
        base->table->widen[base->dtype](x, run->narrow, run->length);
        narrow = run->narrow;
    }
    if (csm_is_single(base))
        for (size_t i = 0; i < run->length; i++) to[row[i]] = (double)narrow[i];
    else
        for (size_t i = 0; i < run->length; i++) to[row[i]] = wide[i];
}

/* Writes the gradient of a lane. */
static void write_lane(const ranking_run *run, size_t lane) {
    const csm_call *base = &run->job->base;
    const ranking_batch *b = run->batch;
    char *to = (char *)run->job->call->grad + run->first * base->itemsize;
    float *narrow = base->itemsize == 4 ? (float *)(void *)to : run->narrow;
    double *wide = (double *)(void *)to, *grad = b->lanes.grad + lane;
    const int32_t *row = b->order[lane].row;
    const size_t n = (size_t)b->lanes.count[lane];
    if (n < run->length) grad[n * CSM_RANKING_LANES] = 0; /* the row of elements without a relevance */
    if (csm_is_single(base))
        for (size_t i = 0; i < run->length; i++) narrow[i] = (float)grad[row[i]];
    else
        for (size_t i = 0; i < run->length; i++) wide[i] = grad[row[i]];
    if (base->itemsize == 2) base->table->narrow[base->dtype](narrow, to, run->length);
}

/* Computes the lists that have a lane; those whose scores are too far apart, or NaN, on their own. */
static csm_status run_batch(ranking_run *run) {
    const csm_ranking_call *c = run->job->call;
    ranking_batch *b = run->batch;
    csm_ranking_lanes *lanes = &b->lanes;
    csm_status status = CSM_OK;
    lanes->rows = 1;
    for (size_t l = 0; l < b->used; l++)
        if (lanes->count[l] > (double)lanes->rows) lanes->rows = (size_t)lanes->count[l];
    for (size_t l = 0; l < CSM_RANKING_LANES; l++) {
        size_t i = 1;
        if (l < b->used) {
            i = (size_t)lanes->count[l];
        } else {
            lanes->e[l] = 0;
            lanes->temperature[l] = lanes->factor[l] = 1;
        }
        for (; i < lanes->rows; i++) lanes->e[i * CSM_RANKING_LANES + l] = -CSM_INF;
    }
    run->job->base.table->rankings.side_by_side(lanes);
    for (size_t l = 0; l < b->used && status == CSM_OK; l++) {
        begin_list(run, b->list[l]);
        if (lanes->loss[l] == lanes->loss[l]) {
            c->losses[run->list] = run->sample_weight * lanes->loss[l];
            if (c->grad) write_lane(run, l);
        } else {
            run->n = (size_t)lanes->count[l];
            status = run_alone(run, &b->order[l]);
        }
    }
    b->used = 0;
    return status;
}

static csm_status run_list(ranking_run *run, size_t list) {
    ranking_batch *b = run->batch;
    csm_ranking_order *order = &b->order[b->used];
    begin_list(run, list);
    if (run->sample_weight == 0 || run->length > CSM_RANKING_COUNTED) return run_alone(run, NULL);
    run->n = run->job->base.table->rankings.places(run->job->call->relevance + run->first, run->length, order);
    if (run->n == SIZE_MAX) return run_alone(run, NULL);
    if (run->n == 0 || order->has_ties || !all_count(run)) return run_alone(run, order);
    take_lane(run);
    return b->used == CSM_RANKING_LANES ? run_batch(run) : CSM_OK;
}

/* Orders up to WINDOW lists by their length. */
static void sort_lists(const int64_t *offsets, size_t count, uint16_t *order) {
    enum { CLASSES = CSM_RANKING_COUNTED + 2 };
    uint16_t begin[CLASSES + 1] = {0};
    for (int pass = 0; pass < 2; pass++) {
        for (size_t i = 0; i < count; i++) {
            const int64_t length = offsets[i + 1] - offsets[i];
            const size_t class = length < CLASSES - 1 ? (size_t)length : CLASSES - 1;
            if (pass == 0) begin[class + 1]++;
            else order[begin[class]++] = (uint16_t)i;
        }
        for (size_t class = 1; class < CLASSES && pass == 0; class++) begin[class] += begin[class - 1];
    }
}

static csm_status lists_body(void *context, size_t begin, size_t end, int thread) {
    ranking_job *job = context;
    const int64_t *offsets = job->call->offsets;
    ranking_batch batch = {.lanes = {.has_grad = job->call->grad != NULL}};
    ranking_run run = {.job = job, .batch = &batch, .thread = thread};
    uint16_t order[WINDOW];
    size_t longest = 0, elements = 0;
    for (size_t i = begin; i < end; i++) {
        const size_t length = (size_t)(offsets[i + 1] - offsets[i]);
        if (length > longest) longest = length;
    }
    if (!make_run(&run, longest)) return CSM_NO_MEMORY;
    for (size_t at = begin; at < end; at += WINDOW) {
        const size_t count = end - at < WINDOW ? end - at : WINDOW;
        csm_status status = CSM_OK;
        sort_lists(offsets + at, count, order);
        for (size_t i = 0; i < count; i++) {
            const size_t list = at + order[i];
            if ((status = run_list(&run, list)) != CSM_OK) return status;
            elements += 16 * (size_t)(offsets[list + 1] - offsets[list]);
            if (elements < CSM_POLL_ELEMENTS) continue;
            if (csm_stops(&job->base.interrupt, thread, elements)) return CSM_INTERRUPTED;
            elements = 0;
        }
        if (batch.used > 0 && (status = run_batch(&run)) != CSM_OK) return status;
    }
    return elements && csm_stops(&job->base.interrupt, thread, elements) ? CSM_INTERRUPTED : CSM_OK;
}

/* The sum of the weights of lists with a factor; `beside` has room for one number a list. */
static double sum_of_weights(const csm_ranking_call *c, double *beside) {
    for (size_t i = 0; i < c->lists; i++) beside[i] = has_factor(c, i) ? c->sample_weight ? c->sample_weight[i] : 1 : 0;
    return csm_tree_sum(beside, c->lists);
}

/* NumPy would round in the caller's rounding mode, and flush subnormal numbers to zero if the caller does. */
static void reduce(const ranking_job *job, csm_ranking_call *call) {
    for (size_t i = 0; i < call->lists && call->single; i++) call->single[i] = (float)call->losses[i];
    if (call->reduction == CSM_NONE) return;
    const double sum = csm_tree_sum(call->losses, call->lists);
    call->total = csm_finish_loss(job->divisor == 0 ? CSM_NAN : sum / job->divisor, csm_is_single(&job->base));
}

csm_status csm_run_rankings(const csm_table *table, csm_ranking_call *call) {
    ranking_job job = {.call = call, .divisor = 1};
    csm_buffer single[BUFFERS];
    job.base.interrupt.caller = csm_fp_enter();
    csm_set_dtype(&job.base, call->dtype, table);
    if (call->reduction == CSM_MEAN) job.divisor = sum_of_weights(call, call->losses);
    const double elements = call->lists ? (double)(call->offsets[call->lists] - call->offsets[0]) : 0;
    const int threads = csm_threads_for(8 * elements, call->lists, call->threads);
    const size_t piece = elements > 0 ? (size_t)(PIECE_ELEMENTS * (double)call->lists / elements) + 1 : 1;
    job.base.interrupt.check = call->interrupt;
    csm_status status = csm_scratch_begin(&job.scratch, threads, BUFFERS, single);
    if (status == CSM_OK) status = csm_parallel(call->lists, piece, threads, lists_body, &job, &job.base.interrupt);
    csm_scratch_end(&job.scratch);
    if (status == CSM_OK) reduce(&job, call);
    csm_fp_leave(job.base.interrupt.caller); /* the callback may have changed it */
    return status;
}
