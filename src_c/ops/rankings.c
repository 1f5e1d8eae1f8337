/* The driver of the Plackett-Luce loss: lists, their order, threads, and the sum over lists.
 *
 * A list is computed by one thread, alone, in double, so that its bits depend on nothing else.  Its order is found by
 * counting (kernel/rankings), from 65 elements on by merging; e^x are those of the CRF's kernels, relative to the
 * maximum, or with exponents of their own where the x are more than RANKING_RANGE apart.
 *
 * Losses are added in a tree over the lists.  A list with NaN among its elements, or with +inf, is NaN; elements without
 * a relevance are not read, and their gradient is 0. */
#include "rankings.h"

#include "../core/call.h"
#include "../core/reduction.h"

#include <string.h>

#define RANKING_RANGE 600.0      /* nats: quotients of sums of up to 2^60 terms stay far from the range of double */
#define RANKING_LARGEST 0x1p45   /* beyond it, the maximum is subtracted first */
enum { NUMBERS, PLACES, EXACT, BUFFERS, PAD = 8, ARRAYS = 14, PIECE_ELEMENTS = 4096 };

typedef struct ranking_job {
    const csm_ranking_call *call;
    csm_call base; /* dtype, table, threads, interrupt */
    double divisor;
    csm_scratch scratch;
} ranking_job;

/* A list while it is computed: arrays of its members, in the order of the call or sorted. */
typedef struct ranking_run {
    ranking_job *job;
    size_t list, first, length; /* its elements */
    size_t n;                   /* its members: elements with a relevance */
    double *wide, *key, *sorted_key, *x, *e, *p, *power, *others, *weight, *grad, *by_place;
    int64_t *member, *place, *order, *beside;
    size_t *begin;
    unsigned char *observed;
    size_t pairs; /* of equal keys, if they were counted; else 1 */
} ranking_run;

static int make_run(ranking_run *run, int thread) {
    const size_t room = (run->length + 1 + PAD) / PAD * PAD + PAD;
    double *at = (double *)(void *)csm_scratch_get(&run->job->scratch, thread, NUMBERS, ARRAYS * room * sizeof *at);
    int64_t *places = (int64_t *)(void *)csm_scratch_get(&run->job->scratch, thread, PLACES, 6 * room * sizeof *places);
    if (!at || !places) return 0;
    run->wide = at;
    run->key = at + room;
    run->sorted_key = at + 2 * room;
    run->x = at + 3 * room;
    run->e = at + 4 * room;
    run->p = at + 5 * room;
    run->power = at + 6 * room;
    run->others = at + 7 * room; /* two numbers for each element */
    run->weight = at + 9 * room;
    run->grad = at + 11 * room;
    run->by_place = at + 12 * room;
    run->member = places;
    run->place = places + room;
    run->order = places + 2 * room;
    run->beside = places + 3 * room;
    run->begin = (size_t *)(places + 4 * room);
    run->observed = (unsigned char *)(places + 5 * room);
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

/* Finds the members and their order. */
static void sort_members(ranking_run *run) {
    const csm_ranking_call *c = run->job->call;
    const double *relevance = c->relevance + run->first;
    int falls = 1, has_ties = 0;
    run->n = 0;
    for (size_t i = 0; i < run->length; i++) {
        const double key = relevance[i];
        run->member[run->n] = (int64_t)i;
        run->key[run->n] = key;
        if (run->n > 0) {
            falls &= !(key > run->key[run->n - 1]);
            has_ties |= key == run->key[run->n - 1];
        }
        run->n += key == key;
    }
    run->pairs = 1;
    if (falls) {
        for (size_t i = 0; i < run->n; i++) run->order[i] = (int64_t)i;
        run->pairs = (size_t)has_ties;
    } else if (run->n <= CSM_RANKING_COUNTED) {
        run->pairs = run->job->base.table->rankings.places(run->key, run->n, run->place);
        for (size_t i = 0; i < run->n; i++) run->order[run->place[i]] = (int64_t)i;
    } else {
        merge_places(run);
    }
}

/* Reads x / T of the members in their order.  Returns 1 if the list is NaN. */
static int read_members(ranking_run *run, double temperature, double *max, double *min) {
    const csm_ranking_call *c = run->job->call;
    const csm_call *base = &run->job->base;
    const char *x = (const char *)c->x + run->first * base->itemsize;
    const int single = csm_is_single(base);
    float *narrow = (float *)(void *)run->by_place;
    int is_bad = 0;
    base->table->widen[base->dtype](x, single ? (void *)narrow : (void *)run->wide, run->length);
    for (size_t i = 0; i < run->length && single; i++) run->wide[i] = (double)narrow[i];
    *max = -CSM_INF;
    *min = CSM_INF;
    for (size_t i = 0; i < run->n; i++) {
        double v = run->wide[run->member[run->order[i]]];
        if (temperature != 1) v /= temperature;
        is_bad |= !(v < CSM_INF);
        run->x[i] = v;
        *max = v > *max ? v : *max;
        *min = v > -CSM_INF && v < *min ? v : *min;
    }
    if (*max > RANKING_LARGEST || *max < -RANKING_LARGEST)
        for (size_t i = 0; i < run->n; i++) run->x[i] -= *max;
    if (c->observed)
        for (size_t i = 0; i < run->n; i++)
            run->observed[i] = c->observed[run->first + (size_t)run->member[run->order[i]]] != 0;
    return is_bad;
}

/* Groups of ties, and those that count. */
static void find_groups(ranking_run *run, ranking_list *list) {
    const csm_ranking_call *c = run->job->call;
    const size_t n = run->n;
    list->groups = n;
    list->factors = n < c->top ? n : c->top;
    list->begin = NULL;
    if (c->ties == CSM_RANKING_ORDER || run->pairs == 0) return;
    for (size_t i = 0; i < n; i++) run->sorted_key[i] = run->key[run->order[i]];
    size_t groups = 0;
    list->factors = 0;
    for (size_t i = 0; i < n; i++) {
        if (i > 0 && run->sorted_key[i] == run->sorted_key[i - 1]) continue;
        run->begin[groups++] = i;
        list->factors += i < c->top;
    }
    run->begin[groups] = n;
    list->groups = groups;
    if (groups < n) list->begin = run->begin;
}

/* e of the members, or p and power where they are too far apart. */
static void exponentials(ranking_run *run, ranking_list *list, double max, double min) {
    const csm_crf_kernels *k = &run->job->base.table->crf;
    const size_t n = run->n, padded = (n + PAD - 1) / PAD * PAD;
    double reference = max > RANKING_LARGEST || max < -RANKING_LARGEST ? 0 : max, power;
    for (size_t i = n; i < padded; i++) run->x[i] = -CSM_INF;
    if (!(reference > -CSM_INF)) reference = 0;
    list->is_wide = min < CSM_INF && !(max - min <= RANKING_RANGE);
    if (list->is_wide) k->split(run->x, run->p, run->power, padded);
    else k->exponentials(run->x, &reference, run->e, &power, 1, padded);
}

static void write_gradient(const ranking_run *run, const double *grad, double factor) {
    const csm_ranking_call *c = run->job->call;
    const csm_call *base = &run->job->base;
    const size_t length = run->length;
    double *out = run->by_place;
    char *to = (char *)c->grad + run->first * base->itemsize;
    if (run->n < length) memset(out, 0, length * sizeof *out);
    for (size_t i = 0; i < run->n; i++) out[run->member[grad ? run->order[i] : (int64_t)i]] = grad ? grad[i] * factor : factor;
    if (csm_is_single(base)) {
        float *narrow = (float *)(void *)out; /* behind the doubles that are still to be read */
        for (size_t i = 0; i < length; i++) {
            const float v = (float)out[i];
            memcpy(&narrow[i], &v, sizeof v);
        }
    }
    base->table->narrow[base->dtype](out, to, length);
}

static csm_status run_list(ranking_run *run, int thread) {
    ranking_job *job = run->job;
    const csm_ranking_call *c = job->call;
    const double weight = c->sample_weight ? c->sample_weight[run->list] : 1;
    const double temperature = c->temperatures ? c->temperatures[run->list] : c->temperature;
    double *loss = &c->losses[run->list], factor = weight, max, min;
    *loss = 0;
    run->n = 0;
    if (c->upstream) factor *= c->upstream[run->list];
    factor = job->divisor == 0 || factor == 0 ? 0 : factor / job->divisor;
    if (weight != 0) sort_members(run);
    if (run->n == 0) {
        if (c->grad) write_gradient(run, NULL, 0);
        return CSM_OK;
    }
    ranking_list list = {.table = job->base.table,
                         .ties = c->ties,
                         .poll = csm_poll_of(&job->base.interrupt, thread),
                         .n = run->n,
                         .observed = c->observed ? run->observed : NULL,
                         .x = run->x,
                         .e = run->e,
                         .p = run->p,
                         .power = run->power,
                         .others = run->others,
                         .weight = run->weight,
                         .grad = run->grad};
    if (read_members(run, temperature, &max, &min)) {
        *loss = CSM_NAN;
        if (c->grad) write_gradient(run, NULL, factor == 0 ? 0 : CSM_NAN);
        return CSM_OK;
    }
    find_groups(run, &list);
    exponentials(run, &list, max, min);
    if (list.is_wide) csm_ranking_terms_wide(&list);
    else csm_ranking_terms(&list);
    if (c->ties == CSM_RANKING_EXACT && list.begin) {
        const size_t numbers = csm_ranking_exact_scratch(&list);
        double *beside = (double *)(void *)csm_scratch_get(&job->scratch, thread, EXACT, numbers * sizeof *beside);
        if (!beside) return CSM_NO_MEMORY;
        if (!csm_ranking_exact(&list, beside)) return CSM_INTERRUPTED;
    }
    *loss = weight * list.loss;
    if (c->grad) write_gradient(run, run->grad, factor / temperature);
    return CSM_OK;
}

static csm_status lists_body(void *context, size_t begin, size_t end, int thread) {
    ranking_job *job = context;
    const int64_t *offsets = job->call->offsets;
    for (size_t i = begin; i < end; i++) {
        ranking_run run = {.job = job, .list = i, .first = (size_t)offsets[i]};
        run.length = (size_t)offsets[i + 1] - run.first;
        if (!make_run(&run, thread)) return CSM_NO_MEMORY;
        const csm_status status = run_list(&run, thread);
        if (status != CSM_OK) return status;
        if (csm_stops(&job->base.interrupt, thread, 16 * run.length)) return CSM_INTERRUPTED;
    }
    return CSM_OK;
}

/* The sum of the weights of lists with a factor; `beside` has room for one number a list. */
static double sum_of_weights(const csm_ranking_call *c, double *beside) {
    for (size_t i = 0; i < c->lists; i++)
        beside[i] = has_factor(c, i) ? c->sample_weight ? c->sample_weight[i] : 1 : 0;
    return csm_tree_sum(beside, c->lists);
}

csm_status csm_run_rankings(const csm_table *table, csm_ranking_call *call) {
    ranking_job job = {.call = call, .divisor = 1};
    csm_buffer single[BUFFERS];
    csm_set_dtype(&job.base, call->dtype, table);
    if (call->reduction == CSM_MEAN) job.divisor = sum_of_weights(call, call->losses);
    const double elements = call->lists ? (double)(call->offsets[call->lists] - call->offsets[0]) : 0;
    const int threads = csm_threads_for(8 * elements, call->lists, call->threads);
    const size_t piece = elements > 0 ? (size_t)(PIECE_ELEMENTS * (double)call->lists / elements) + 1 : 1;
    job.base.interrupt.check = call->interrupt;
    csm_status status = csm_scratch_begin(&job.scratch, threads, BUFFERS, single);
    if (status == CSM_OK)
        status = csm_parallel(call->lists, piece, threads, lists_body, &job, &job.base.interrupt);
    csm_scratch_end(&job.scratch);
    if (status != CSM_OK || call->reduction == CSM_NONE) return status;
    const double sum = csm_tree_sum(call->losses, call->lists);
    call->total = csm_finish_loss(job.divisor == 0 ? CSM_NAN : sum / job.divisor, csm_is_single(&job.base));
    return CSM_OK;
}
