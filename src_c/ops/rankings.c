/* The driver of the Plackett-Luce loss: lists, their order, threads, and the sum over lists.
 *
 * A list is computed by one thread, in double.  Lists of up to CSM_RANKING_COUNTED members are ordered by counting, and
 * those of like lengths are computed side by side, one in each lane (kernel/rankings): lanes do not mix, so that the
 * bits of a list depend on nothing else.  Other lists are merged, and computed alone (rankings_alone.c).
 *
 * Losses are added in a tree over the lists.  A list with NaN or +inf among its elements is NaN; elements without
 * a relevance are not read, and their gradient is 0. */
#include "rankings_run.h"

#include "../core/reduction.h"

#include <string.h>

/* WINDOW: lists among which those of like lengths are computed side by side; AHEAD: those that are prefetched. */
enum { PIECE_ELEMENTS = 16384, WINDOW = 1024, AHEAD = 8 };

/* The arrays for lists of up to `length` elements. */
static int make_run(ranking_run *run, size_t length) {
    const size_t room = (length + CSM_RANKING_PAD - 1) / CSM_RANKING_PAD * CSM_RANKING_PAD + CSM_RANKING_PAD;
    csm_scratch *scratch = &run->job->scratch;
    double *at = (double *)(void *)csm_scratch_get(scratch, run->thread, RANKING_NUMBERS, 12 * room * sizeof *at);
    int64_t *places =
        (int64_t *)(void *)csm_scratch_get(scratch, run->thread, RANKING_PLACES, 5 * room * sizeof *places);
    const size_t lanes = CSM_RANKING_COUNTED * CSM_RANKING_LANES;
    double *beside = (double *)(void *)csm_scratch_get(scratch, run->thread, RANKING_BATCH, 6 * lanes * sizeof *beside);
    if (!at || !places || !beside) return 0;
    run->batch->lanes.e = beside;
    run->batch->lanes.inverse = beside + lanes;
    run->batch->lanes.grad = beside + 2 * lanes;
    run->batch->lanes.before = beside + 3 * lanes;
    run->batch->lanes.counts = beside + 4 * lanes;
    run->batch->lanes.tied = beside + 5 * lanes;
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

/* Whether an observed element is among the places that count: the first of the most relevant ones decides. */
static int has_factor(const csm_ranking_call *c, size_t list) {
    const size_t begin = (size_t)c->offsets[list], end = (size_t)c->offsets[list + 1];
    size_t best = end, before = 0;
    double largest = 0;
    if (c->top == 0) return 0;
    for (size_t i = begin; i < end; i++) {
        const double key = ranking_relevance(c, i);
        if (key != key || !ranking_counts(c, i) || (best != end && key <= largest)) continue;
        if (c->top == SIZE_MAX) return 1;
        best = i;
        largest = key;
    }
    if (best == end) return 0;
    for (size_t i = begin; i < end; i++) {
        const double key = ranking_relevance(c, i);
        before += key > largest || (c->ties == CSM_RANKING_ORDER && i < best && key == largest);
    }
    return before < c->top;
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

/* Gathers the members and their keys. */
static void gather_members(ranking_run *run) {
    run->n = 0;
    for (size_t i = 0; i < run->length; i++) {
        const double key = ranking_relevance(run->job->call, run->first + i);
        run->member[run->n] = (int64_t)i;
        run->key[run->n] = key;
        run->n += key == key;
        if (ranking_stops(run, i)) return;
    }
}

/* Places of gathered members as if they had been counted. */
static void place_merged(ranking_run *run, csm_ranking_order *order) {
    int32_t row = 0, group = 0;
    order->has_ties = 0;
    csm_ranking_merge(run);
    for (size_t i = 0; i < run->n; i++, row += CSM_RANKING_LANES) {
        const int64_t at = run->order[i];
        if (i > 0 && run->key[at] == run->key[run->order[i - 1]]) order->has_ties = 1;
        else group = row;
        order->row[at] = row;
        order->group[at] = group;
    }
}

/* Finds the places of the members.  Returns 0 if they are too many for a lane; then run->order has their order. */
static int find_places(ranking_run *run, ranking_lane *lane) {
    const csm_ranking_call *c = run->job->call;
    const csm_ranking_kernels *k = &run->job->base.table->rankings;
    run->n = SIZE_MAX;
    if (run->length <= CSM_RANKING_COUNTED) {
        const void *key = c->relevance_single + run->first;
        if (c->relevance) key = c->relevance + run->first;
        run->n = k->places(key, c->relevance == NULL, run->length, &lane->order);
    }
    lane->is_gathered = run->n == SIZE_MAX;
    if (!lane->is_gathered) return 1;
    gather_members(run);
    if (run->n > CSM_RANKING_COUNTED || run->is_stopped) {
        if (!run->is_stopped) csm_ranking_merge(run);
        for (size_t i = 0; i < run->n && !ranking_stops(run, i); i++) {
            run->sorted_key[i] = run->key[run->order[i]];
            run->order[i] = run->member[run->order[i]];
        }
        return 0;
    }
    memcpy(lane->element, run->member, run->n * sizeof *lane->element);
    if (k->places(run->key, 0, run->n, &lane->order) == SIZE_MAX) place_merged(run, &lane->order);
    return 1;
}

/* Sets flags if there are ties or members without a factor. */
static void set_flags(ranking_run *run, ranking_lane *l, size_t lane) {
    const csm_ranking_call *c = run->job->call;
    const int has_ties = l->order.has_ties && c->ties != CSM_RANKING_ORDER, all = !c->observed && c->top >= run->n;
    const int32_t *row = l->order.row, *group = has_ties ? l->order.group : row;
    const int32_t end = (int32_t)run->n * CSM_RANKING_LANES;
    const size_t count = l->is_gathered ? run->n : run->length;
    double *tied = run->batch->lanes.tied + lane, *counts = run->batch->lanes.counts + lane;
    l->has_flags = has_ties || !all;
    if (!l->has_flags) return;
    for (size_t i = 0; i < count; i++)
        if (row[i] < end) tied[row[i]] = (double)((uint32_t)(group[i] - row[i]) >> 31); /* no branch */
    for (int32_t i = 0; i < end && all; i += CSM_RANKING_LANES) counts[i] = 1;
    for (size_t i = 0; i < count && !all; i++) {
        const size_t element = run->first + (l->is_gathered ? (size_t)l->element[i] : i);
        const int is_in_top = (size_t)group[i] / CSM_RANKING_LANES < c->top;
        if (row[i] < end) counts[row[i]] = ranking_counts(c, element) && is_in_top;
    }
}

/* The members of a lane in their order, for a list that is computed alone. */
static void use_places(ranking_run *run, const ranking_lane *lane) {
    const size_t count = lane->is_gathered ? run->n : run->length;
    for (size_t i = 0; i < count; i++) {
        const size_t place = (size_t)lane->order.row[i] / CSM_RANKING_LANES;
        if (place >= run->n) continue;
        run->order[place] = lane->is_gathered ? lane->element[i] : (int64_t)i;
        run->sorted_key[place] = ranking_relevance(run->job->call, run->first + (size_t)run->order[place]);
    }
}

/* Gives the list the next lane. */
static void take_lane(ranking_run *run) {
    ranking_batch *b = run->batch;
    const csm_call *base = &run->job->base;
    const char *x = (const char *)run->job->call->x + run->first * base->itemsize;
    const double *wide = (const double *)(const void *)x;
    const float *narrow = (const float *)(const void *)x;
    ranking_lane *lane = &b->lane[b->used];
    const int32_t *row = lane->order.row;
    double *to = b->lanes.e + b->used;
    lane->list = run->list;
    b->lanes.temperature[b->used] = run->temperature;
    b->lanes.factor[b->used] = run->factor / run->temperature;
    b->lanes.count[b->used++] = (double)run->n;
    if (base->itemsize == 2 && !lane->is_gathered) {
        base->table->widen[base->dtype](x, run->narrow, run->length);
        narrow = run->narrow;
    }
    if (lane->is_gathered)
        for (size_t i = 0; i < run->n; i++) to[row[i]] = csm_element(base, x, (size_t)lane->element[i]);
    else if (csm_is_single(base))
        for (size_t i = 0; i < run->length; i++) to[row[i]] = (double)narrow[i];
    else
        for (size_t i = 0; i < run->length; i++) to[row[i]] = wide[i];
}

/* Fills what a lane lacks: flags, rows behind its end, or the list. */
static void complete_lane(ranking_batch *b, size_t lane) {
    csm_ranking_lanes *lanes = &b->lanes;
    const size_t rows = lanes->rows * CSM_RANKING_LANES;
    if (lane >= b->used) {
        lanes->temperature[lane] = lanes->factor[lane] = lanes->count[lane] = 1;
        lanes->e[lane] = 0;
        b->lane[lane].has_flags = 0;
    }
    const size_t end = (size_t)lanes->count[lane] * CSM_RANKING_LANES;
    for (size_t i = end; i < rows; i += CSM_RANKING_LANES) lanes->e[i + lane] = -CSM_INF;
    if (!lanes->has_flags) return;
    for (size_t i = b->lane[lane].has_flags ? end : 0; i < rows; i += CSM_RANKING_LANES) {
        lanes->counts[i + lane] = i < end;
        lanes->tied[i + lane] = 0;
    }
}

/* Writes the gradient of a lane. */
static void write_lane(ranking_run *run, size_t lane) {
    const csm_call *base = &run->job->base;
    const ranking_lane *l = &run->batch->lane[lane];
    char *to = (char *)run->job->call->grad + run->first * base->itemsize;
    float *narrow = base->itemsize == 4 ? (float *)(void *)to : run->narrow;
    double *wide = (double *)(void *)to, *grad = run->batch->lanes.grad + lane;
    const int32_t *row = l->order.row;
    if (l->is_gathered) {
        use_places(run, l);
        for (size_t i = 0; i < run->n; i++) run->grad[i] = grad[i * CSM_RANKING_LANES];
        csm_ranking_write(run, run->grad, 1);
        return;
    }
    if (run->n < run->length) grad[run->n * CSM_RANKING_LANES] = 0; /* the row of elements without a relevance */
    if (csm_is_single(base))
        for (size_t i = 0; i < run->length; i++) narrow[i] = (float)grad[row[i]];
    else
        for (size_t i = 0; i < run->length; i++) wide[i] = grad[row[i]];
    if (base->itemsize == 2) base->table->narrow[base->dtype](narrow, to, run->length);
}

/* Computes the lists that have a lane; those whose scores are NaN, or too far apart, alone. */
static csm_status run_batch(ranking_run *run) {
    const csm_ranking_call *c = run->job->call;
    ranking_batch *b = run->batch;
    csm_ranking_lanes *lanes = &b->lanes;
    csm_status status = CSM_OK;
    lanes->rows = 1;
    lanes->has_flags = 0;
    for (size_t l = 0; l < b->used; l++) {
        if (lanes->count[l] > (double)lanes->rows) lanes->rows = (size_t)lanes->count[l];
        lanes->has_flags |= b->lane[l].has_flags;
    }
    for (size_t l = 0; l < CSM_RANKING_LANES; l++) complete_lane(b, l);
    run->job->base.table->rankings.side_by_side(lanes);
    for (size_t l = 0; l < b->used && status == CSM_OK; l++) {
        begin_list(run, b->lane[l].list);
        run->n = (size_t)lanes->count[l];
        if (lanes->loss[l] == lanes->loss[l]) {
            c->losses[run->list] = run->sample_weight * lanes->loss[l];
            if (c->grad) write_lane(run, l);
        } else {
            use_places(run, &b->lane[l]);
            status = csm_ranking_alone(run);
        }
    }
    b->used = 0;
    return status;
}

static csm_status run_list(ranking_run *run, size_t list) {
    const csm_ranking_ties ties = run->job->call->ties;
    ranking_batch *b = run->batch;
    ranking_lane *lane = &b->lane[b->used];
    begin_list(run, list);
    run->n = 0;
    if (run->sample_weight == 0 || !find_places(run, lane)) return csm_ranking_alone(run);
    set_flags(run, lane, b->used);
    if (run->n == 0 || !ranking_has_inverse(run) ||
        (lane->order.has_ties && (ties == CSM_RANKING_EFRON || ties == CSM_RANKING_EXACT))) {
        use_places(run, lane);
        return csm_ranking_alone(run);
    }
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

/* Prefetches the ends of what a list reads and writes: lists of a window are not in the order of memory. */
INLINE void prefetch_list(const csm_ranking_call *c, size_t itemsize, size_t list) {
    const size_t begin = (size_t)c->offsets[list], end = (size_t)c->offsets[list + 1];
    const size_t width = c->relevance ? sizeof *c->relevance : sizeof *c->relevance_single;
    const char *relevance = c->relevance ? (const char *)c->relevance : (const char *)c->relevance_single;
    const char *x = (const char *)c->x, *grad = c->grad ? (const char *)c->grad : x;
    PREFETCH(relevance + begin * width);
    PREFETCH(relevance + begin * width + CSM_ALIGN);
    PREFETCH(relevance + end * width - 1);
    PREFETCH(x + begin * itemsize);
    PREFETCH(x + begin * itemsize + CSM_ALIGN);
    PREFETCH(x + end * itemsize - 1);
    PREFETCH(grad + begin * itemsize);
    PREFETCH(grad + begin * itemsize + CSM_ALIGN);
    PREFETCH(grad + end * itemsize - 1);
}

static csm_status lists_body(void *context, size_t begin, size_t end, int thread) {
    ranking_job *job = context;
    const int64_t *offsets = job->call->offsets;
    ranking_batch batch = {.lanes = {.has_grad = job->call->grad != NULL}};
    ranking_run run = {
        .job = job, .batch = &batch, .poll = csm_poll_of(&job->base.interrupt, thread), .thread = thread};
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
            if (i + AHEAD < count) prefetch_list(job->call, job->base.itemsize, at + order[i + AHEAD]);
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
    csm_buffer single[RANKING_BUFFERS];
    job.base.interrupt.caller = csm_fp_enter();
    csm_set_dtype(&job.base, call->dtype, table);
    if (call->reduction == CSM_MEAN) job.divisor = sum_of_weights(call, call->losses);
    const double elements = call->lists ? (double)(call->offsets[call->lists] - call->offsets[0]) : 0;
    const int threads = csm_threads_for(8 * elements, call->lists, call->threads);
    const size_t piece = elements > 0 ? (size_t)(PIECE_ELEMENTS * (double)call->lists / elements) + 1 : 1;
    job.base.interrupt.check = call->interrupt;
    csm_status status = csm_scratch_begin(&job.scratch, threads, RANKING_BUFFERS, single);
    if (status == CSM_OK) status = csm_parallel(call->lists, piece, threads, lists_body, &job, &job.base.interrupt);
    csm_scratch_end(&job.scratch);
    if (status == CSM_OK) reduce(&job, call);
    csm_fp_leave(job.base.interrupt.caller); /* the callback may have changed it */
    return status;
}
