/* The driver of exact top-k through int8: scans the codes, drops the classes that cannot be among the k best, and
 * computes the exact scores of the rest.
 *
 * The threshold of a query is the k-th largest lower bound that a thread has seen.  A class whose upper bound is below
 * it is not among the k best, whichever class is: k classes are better.  A thread keeps the others in a list; if the
 * list is full, the threshold rises and the list shrinks.  In the end the lists of all threads are merged, and the
 * threshold of the whole decides which classes are scored exactly.  Where the bounds leave more than an eighth of the
 * classes (and more than 2 k + 1024), the query is given back: all exact scores cost about as much then.
 * A thread decides that from its own list, before the threshold of the whole is known, because lists of all classes
 * would take more memory than the codes.  So it visits the classes in chunks that are spread over the whole layer: its
 * threshold is soon that of a fair sample, wherever a block of equal rows lies.  The result is the same for any number
 * of threads; where just about an eighth of the classes is left, whether a query is given back is not.
 *
 * A single query, which takes as long as memory, begins with the leading four bits of the codes, half as many bytes.
 * The groups that these leave wait until the threshold has risen; what is still above it then has full codes read.
 * Batches may begin with six bits, which takes fewer products.  Either way the full codes decide.
 *
 * Order: the exact score falling, NaN greatest, then the index rising.  It does not depend on the codes at all.
 * Queries are taken 64 at a time: a group of 16 classes stays in L1 for all of them, so that codes are read once.
 */
#include "int8.h"

#include "../core/selection.h"

#include <stdlib.h>

enum {
    MAX_QUERIES = 64,      /* of a scan */
    MIN_KEPT = 1024,       /* candidates in a list before it is compacted, in addition to 4 k */
    MAX_KEPT_PART = 8,     /* more candidates than 1 / 8 of the classes: all exact scores */
    MIN_FILTERED = 3,      /* queries of a scan for which six bits are tried first: fewer wait for memory */
    FEW_QUERIES = 8,       /* of a scan: with fewer it takes as long as memory, and a second limb of x is free */
    KEPT_BYTES = 64 << 20, /* of all lists */
    HEAP_MOST = 256,       /* largest k whose threshold is up to date after each candidate */
    WINDOW = 64, /* groups after which the use of six bits is judged; four bits are where a list of groups is full */
    PLAIN = 8,   /* times as many groups for which a filter that is of no use is left out */
    BLOCK = 64,  /* groups whose four bits are tested at once; one while there is no threshold, then two ... */
    AHEAD = 8192, /* bytes of codes between a group and the one that is prefetched */
    WAITING = 8192, /* groups that wait for their full codes */
    WAITING_AHEAD = 4
};

/* A group that four bits do not exclude, with its largest upper bound. */
typedef struct waiting {
    float upper;
    uint32_t group;
} waiting;

/* Candidates of one query in one thread. */
typedef struct kept {
    float *lower, *upper; /* one allocation */
    int32_t *id;
    size_t count, capacity;
    float *best; /* the k largest lower bounds, the least of them first (a heap), where k is at most HEAP_MOST */
    size_t held; /* of them */
    waiting *wait;
    size_t waits;
    float threshold;
    float below; /* classes with an upper bound of at most this are dropped: all after the list was given up */
    int is_full; /* too many: all scores are needed */
} kept;

/* How often a thread's filter has been of no use lately. */
typedef struct pace {
    size_t visits, hits, plain;
} pace;

typedef struct topk_call {
    const csm_table *table;
    const csm_int8_layer *layer;
    const csm_int8_search *search;
    size_t first, queries; /* of this scan */
    size_t vectors, limit;
    size_t chunk, chunks, stride; /* groups of a chunk, whole chunks, and how far apart those visited in turn are */
    int threads;
    kept *lists; /* threads x queries */
    int8_t *codes;
    int32_t *offset;
    size_t coded; /* queries that are scanned */
    csm_int8_query query[MAX_QUERIES];
    size_t number[MAX_QUERIES]; /* of each of them in this scan */
    int is_exact[MAX_QUERIES];
    int bits; /* of the codes by which classes are filtered: 4, 6, or 0 */
    int8_t *coarse_codes; /* of queries, for the filter */
    int32_t *coarse_offset;
    csm_int8_filter filter[MAX_QUERIES];
    pace *paces; /* of threads */
    csm_scratch scratch;
    csm_interrupt interrupt;
} topk_call;

/* The float below the threshold; none is where that is -infinity, because no upper bound is: where a score overflows,
 * its bound is infinite and the sum NaN. */
static void raise_threshold(kept *list, float threshold) {
    if (!(threshold > list->threshold) || list->is_full) return;
    list->threshold = threshold;
    list->below = nextafterf(threshold, -INFINITY);
}

static void give_up(kept *list) {
    list->is_full = 1;
    list->count = 0;
    list->below = INFINITY;
}

static int grow(kept *list, size_t capacity) {
    float *memory = csm_allocate(capacity * (2 * sizeof(float) + sizeof(int32_t)));
    if (!memory) return 0;
    if (list->count) {
        memcpy(memory, list->lower, list->count * sizeof(float));
        memcpy(memory + capacity, list->upper, list->count * sizeof(float));
        memcpy(memory + 2 * capacity, list->id, list->count * sizeof(int32_t));
    }
    csm_release(list->lower);
    list->lower = memory;
    list->upper = memory + capacity;
    list->id = (int32_t *)(memory + 2 * capacity);
    list->capacity = capacity;
    return 1;
}

/* The k-th largest of n lower bounds, -infinity if there are fewer. */
static csm_status find_threshold(topk_call *call, int thread, const float *lower, size_t n, float *threshold) {
    const size_t k = call->search->k;
    *threshold = -INFINITY;
    if (n < k || k == 0) return CSM_OK;
    char *memory = csm_scratch_get(&call->scratch, thread, 0, csm_select_size(n, k, sizeof(float)));
    if (!memory) return CSM_NO_MEMORY;
    csm_select s = csm_select_at(memory, n, k, sizeof(float), csm_poll_of(&call->interrupt, thread));
    call->table->select[CSM_DTYPE_f32](lower, n, k, 0, 0, &s);
    if (s.is_stopped) return CSM_INTERRUPTED;
    float least = INFINITY;
    for (size_t i = 0; i < k; i++) least = lower[s.index[i]] < least ? lower[s.index[i]] : least;
    *threshold = least;
    return CSM_OK;
}

/* Adds a lower bound to the k largest ones, and raises the threshold. */
static void rank_lower(kept *list, size_t k, float lower) {
    float *heap = list->best;
    size_t at;
    if (list->held < k) {
        for (at = list->held++; at && heap[(at - 1) / 2] > lower; at = (at - 1) / 2) heap[at] = heap[(at - 1) / 2];
    } else {
        if (!(lower > heap[0])) return;
        at = 0;
        for (size_t child; (child = 2 * at + 1) < k; at = child) {
            if (child + 1 < k && heap[child + 1] < heap[child]) child++;
            if (heap[child] >= lower) break;
            heap[at] = heap[child];
        }
    }
    heap[at] = lower;
    if (list->held == k) raise_threshold(list, heap[0]);
}

static void drop_below(kept *list) {
    size_t count = 0;
    for (size_t i = 0; i < list->count; i++) {
        if (list->upper[i] < list->threshold) continue;
        list->lower[count] = list->lower[i];
        list->upper[count] = list->upper[i];
        list->id[count++] = list->id[i];
    }
    list->count = count;
}

/* Makes room in a full list: by a higher threshold, or else by more memory. */
static csm_status make_room(topk_call *call, kept *list, int thread) {
    if (!list->best) {
        float threshold;
        csm_status status = find_threshold(call, thread, list->lower, list->count, &threshold);
        if (status != CSM_OK) return status;
        raise_threshold(list, threshold);
    }
    drop_below(list);
    if (list->count > call->limit) {
        give_up(list);
    } else if (list->count > list->capacity / 2 && !grow(list, 2 * list->capacity)) {
        return CSM_NO_MEMORY;
    }
    return CSM_OK;
}

/* The first memory of a list. */
static int begin_list(const topk_call *call, kept *list) {
    const size_t k = call->search->k, wanted = 4 * k + MIN_KEPT, all = call->layer->classes;
    if (!grow(list, wanted < all ? wanted : all)) return 0;
    if (k <= HEAP_MOST) list->best = csm_allocate(k * sizeof *list->best);
    return k > HEAP_MOST || list->best != NULL;
}

/* Adds the classes of a group whose bits are set to a list of query q of this scan. */
static csm_status keep(topk_call *call, int thread, kept *list, size_t q, size_t group, unsigned bits,
                       const float *lower, const float *upper) {
    for (size_t i = 0; bits; i++, bits >>= 1) {
        const size_t id = group * CSM_INT8_GROUP + i;
        if (!(bits & 1) || !csm_int8_takes_part(call->search, call->first + q, csm_int8_row_of(call->layer, id)))
            continue;
        if (list->count == list->capacity) {
            if (list->capacity) {
                csm_status status = make_room(call, list, thread);
                if (status != CSM_OK) return status;
                if (list->is_full) return CSM_OK;
            } else if (!begin_list(call, list)) {
                return CSM_NO_MEMORY;
            }
        }
        const int is_bound = lower[i] == lower[i] && call->layer->bias[id] > CSM_INT8_OFF_BIAS;
        list->lower[list->count] = is_bound ? lower[i] : -INFINITY;
        list->upper[list->count] = upper[i];
        list->id[list->count++] = (int32_t)id;
        if (list->best) rank_lower(list, call->search->k, list->lower[list->count - 1]);
    }
    return CSM_OK;
}

/* Whole chunks are visited a stride apart that is coprime to their number and about its golden section, which spreads
 * any run of them evenly.  A chunk is 1 MiB of codes, so that one query takes about 5% longer than in order (with
 * 32 KiB it is 50%), or fewer: at most about a quarter of the classes that a list may hold. */
static void spread_chunks(topk_call *call) {
    const csm_int8_layer *l = call->layer;
    const size_t bytes = csm_int8_steps(l) * 4 * CSM_INT8_GROUP, most = (1 << 20) / bytes;
    const size_t few = call->limit / (4 * CSM_INT8_GROUP);
    call->chunk = (most < few ? most : few) + 1;
    call->chunks = csm_int8_groups(l) / call->chunk;
    call->stride = (size_t)(0.6180339887498949 * (double)call->chunks) + 1;
    for (size_t divisor = 0; divisor != 1 && call->chunks;) {
        divisor = call->stride;
        for (size_t rest = call->chunks; rest;) {
            const size_t next = divisor % rest;
            divisor = rest;
            rest = next;
        }
        if (divisor != 1) call->stride++;
    }
}

/* The group that is visited as the i-th one; those behind the last whole chunk stay where they are. */
static size_t group_at(const topk_call *call, size_t i) {
    const size_t chunk = i / call->chunk;
    if (chunk >= call->chunks) return i;
    return (size_t)((uint64_t)chunk * call->stride % call->chunks) * call->chunk + i % call->chunk;
}

/* What a thread needs for the groups of a piece. */
typedef struct scanner {
    topk_call *call;
    int thread;
    kept *lists; /* of this thread */
    size_t open; /* lists that are not full: without any the other groups need not be multiplied */
    uint8_t *narrow;
    csm_int8_query query[MAX_QUERIES];
    csm_int8_filter filter[MAX_QUERIES];
    uint16_t reached[MAX_QUERIES > BLOCK ? MAX_QUERIES : BLOCK];
    int32_t *dots;
    float *upper; /* of a block of groups */
    size_t block;
} scanner;

static unsigned classes_of(const csm_int8_layer *l, size_t g) {
    const size_t left = l->classes - g * CSM_INT8_GROUP;
    return left < CSM_INT8_GROUP ? (1u << left) - 1 : 0xffff;
}

static csm_int8_group group_of(const csm_int8_layer *l, size_t g) {
    const size_t first = g * CSM_INT8_GROUP;
    return (csm_int8_group){l->scale + first, l->residual + first, l->norm + first, l->bias + first};
}

/* Keeps the classes of a group that the full codes leave for one query.  Limbs that are in two blocks
 * of vectors are multiplied one after the other. */
static csm_status refine(topk_call *call, int thread, kept *list, size_t i, size_t g) {
    const csm_int8_layer *l = call->layer;
    const size_t steps = csm_int8_steps(l);
    const csm_int8_group group = group_of(l, g);
    csm_int8_query query = call->query[i];
    int32_t dots[2 * CSM_INT8_GROUP];
    float lower[CSM_INT8_GROUP], upper[CSM_INT8_GROUP];
    uint16_t reached;
    for (size_t limb = 0, limbs = (size_t)query.limbs, together; limb < limbs; limb += together) {
        const size_t v = query.vector + limb, lane = v % CSM_INT8_VECTORS;
        const int8_t *x = call->codes + (v / CSM_INT8_VECTORS * steps * CSM_INT8_VECTORS + lane) * 4;
        together = lane + limbs - limb <= CSM_INT8_VECTORS ? limbs - limb : 1;
        csm_int8_dots(call->table, l->codes + g * steps * 4 * CSM_INT8_GROUP, steps, x, together, call->offset + v,
                      dots + CSM_INT8_GROUP * limb);
    }
    query.vector = 0;
    query.below = list->below;
    call->table->int8.reach(&query, 1, &group, dots, &reached);
    reached &= (uint16_t)classes_of(l, g);
    if (!reached) return CSM_OK;
    call->table->int8.bounds(&query, &group, dots, lower, upper);
    return keep(call, thread, list, call->number[i], g, reached, lower, upper);
}

/* Prefetches codes and numbers of a group.  Inline, because GCC drops calls of a function that has no other effect. */
INLINE void fetch_group(const csm_int8_layer *l, size_t g) {
    const size_t bytes = csm_int8_steps(l) * 4 * CSM_INT8_GROUP, first = g * CSM_INT8_GROUP;
    for (size_t at = 0; at < bytes; at += 64) PREFETCH(l->codes + g * bytes + at);
    PREFETCH(l->scale + first);
    PREFETCH(l->residual + first);
    PREFETCH(l->norm + first);
    PREFETCH(l->bias + first);
}

/* Prefetches a group that comes later: hardware prefetchers stop at the ends of pages (decision heads_int8 7).  Chunks
 * are visited out of order, but are far longer than AHEAD. */
INLINE void fetch_ahead(const csm_int8_layer *l, size_t g) {
    const size_t groups = AHEAD / (csm_int8_steps(l) * 4 * CSM_INT8_GROUP);
    if (groups && g + groups < csm_int8_groups(l)) fetch_group(l, g + groups);
}

/* A group by full codes, for all queries. */
static csm_status visit_plain(scanner *s, size_t g) {
    topk_call *call = s->call;
    const csm_int8_layer *l = call->layer;
    const size_t steps = csm_int8_steps(l);
    const unsigned present = classes_of(l, g);
    const csm_int8_group group = group_of(l, g);
    float lower[CSM_INT8_GROUP], upper[CSM_INT8_GROUP];
    fetch_ahead(l, g);
    csm_int8_dots(call->table, l->codes + g * steps * 4 * CSM_INT8_GROUP, steps, call->codes, call->vectors,
                  call->offset, s->dots);
    call->table->int8.reach(s->query, call->coded, &group, s->dots, s->reached);
    for (size_t i = 0; i < call->coded; i++) {
        kept *list = &s->lists[call->number[i]];
        if (!(s->reached[i] & present) || list->is_full) continue;
        call->table->int8.bounds(&s->query[i], &group, s->dots, lower, upper);
        csm_status status = keep(call, s->thread, list, call->number[i], g, s->reached[i] & present, lower, upper);
        if (status != CSM_OK) return status;
        s->query[i].below = s->filter[i].below = list->below;
        s->open -= (size_t)list->is_full;
    }
    return CSM_OK;
}

/* Leaves the filter of a thread out for a while where it has left more than a quarter. */
static void judge(pace *p, size_t queries) {
    if (p->hits > p->visits / 4 * queries) p->plain = PLAIN * p->visits;
    p->visits = p->hits = 0;
}

/* A group by codes of six bits, and where these do not exclude it, by full codes. */
static csm_status visit_narrow(scanner *s, size_t g, pace *p) {
    topk_call *call = s->call;
    const csm_int8_layer *l = call->layer;
    const size_t steps = csm_int8_steps(l);
    const unsigned present = classes_of(l, g);
    const csm_int8_group group = group_of(l, g);
    if (p->plain) {
        p->plain--;
        return visit_plain(s, g);
    }
    fetch_ahead(l, g);
    call->table->int8.narrow(l->codes + g * steps * 4 * CSM_INT8_GROUP, steps, s->narrow);
    call->table->int8.narrow_dots(s->narrow, steps, call->coarse_codes, call->coded, call->coarse_offset, s->dots);
    call->table->int8.test(s->filter, call->coded, &group, s->dots, s->reached);
    for (size_t i = 0; i < call->coded; i++) {
        kept *list = &s->lists[call->number[i]];
        if (!(s->reached[i] & present) || list->is_full) continue;
        csm_status status = refine(call, s->thread, list, i, g);
        if (status != CSM_OK) return status;
        s->query[i].below = s->filter[i].below = list->below;
        s->open -= (size_t)list->is_full;
        p->hits++;
    }
    if (++p->visits == WINDOW) judge(p, call->coded);
    return CSM_OK;
}

/* Drops the groups that wait and are no longer above the threshold; returns how many are left. */
static size_t drop_waiting(kept *list) {
    size_t count = 0;
    for (size_t j = 0; j < list->waits; j++)
        if (list->wait[j].upper > list->below) list->wait[count++] = list->wait[j];
    return list->waits = count;
}

/* Refines the groups that wait and are still above the threshold. */
static csm_status refine_waiting(topk_call *call, int thread, kept *list, size_t i) {
    pace *p = &call->paces[thread];
    for (size_t j = 0; j < list->waits && !list->is_full; j++) {
        const waiting *w = list->wait + j;
        if (j + WAITING_AHEAD < list->waits && w[WAITING_AHEAD].upper > list->below)
            fetch_group(call->layer, w[WAITING_AHEAD].group);
        if (!(w->upper > list->below)) continue;
        p->hits++;
        csm_status status = refine(call, thread, list, i, w->group);
        if (status != CSM_OK) return status;
        if (csm_stops(&call->interrupt, thread, call->layer->dims)) break;
    }
    list->waits = 0;
    return CSM_OK;
}

/* A group that four bits do not exclude.  It waits for a higher threshold, which excludes most; it is refined at once
 * where it is likely to raise the threshold, which is if the bound of one of its classes without what four bits leave
 * out is above it. */
static csm_status visit_found(scanner *s, size_t g, unsigned bits, const float *upper, pace *p) {
    topk_call *call = s->call;
    const csm_int8_layer *l = call->layer;
    const csm_int8_filter *f = s->filter;
    const float *scale = l->scale + g * CSM_INT8_GROUP;
    const float gap = l->gap[g] * f->constant, spread = gap + l->reach[g] * f->norm;
    kept *list = &s->lists[call->number[0]];
    float most = -INFINITY;
    int is_likely = 0;
    for (; bits; bits &= bits - 1) { /* usually one */
        const unsigned c = CSM_LOWEST_BIT(bits);
        const float left = (float)(255 - l->part[g * CSM_INT8_GROUP + c]) / 256;
        const float own = upper[c] - gap * left * scale[c]; /* the rounding is within the slack of the bound */
        is_likely |= !(upper[c] - spread * scale[c] <= list->below) || own != own;
        most = own > most ? own : most;
    }
    csm_status status = CSM_OK;
    if (is_likely) {
        p->hits++;
        status = refine(call, s->thread, list, 0, g);
    } else if (most > list->below) { /* the threshold may have risen since the test */
        if (!list->wait && !(list->wait = csm_allocate(WAITING * sizeof *list->wait))) return CSM_NO_MEMORY;
        list->wait[list->waits++] = (waiting){most, (uint32_t)g};
        if (list->waits == WAITING && drop_waiting(list) > WAITING / 2) {
            status = refine_waiting(call, s->thread, list, 0);
            judge(p, 1);
        }
    }
    s->query->below = s->filter->below = list->below;
    s->open = !list->is_full;
    return status;
}

/* Some groups from *g on, before `end`, by their leading four bits. */
static csm_status visit_nibbles(scanner *s, size_t *g, size_t end, pace *p) {
    topk_call *call = s->call;
    const csm_int8_layer *l = call->layer;
    if (p->plain) {
        p->plain--;
        return visit_plain(s, (*g)++);
    }
    const size_t lines = csm_int8_lines(l), begin = *g, count = s->block < end - begin ? s->block : end - begin;
    const csm_int8_scan scan = {
        .nibbles = l->nibbles,
        .scale = l->scale,
        .bias = l->is_biased ? l->bias : NULL,
        .gap = l->gap,
        .reach = l->reach,
        .lines = lines,
        .groups = csm_int8_groups(l),
        .ahead = AHEAD / (lines * 4 * CSM_INT8_GROUP),
        .x = call->coarse_codes,
        .offset = *call->coarse_offset,
        .filter = *s->filter,
    };
    call->table->int8.nibble_scan(&scan, begin, count, s->upper, s->reached);
    *g = begin + count;
    p->visits += count;
    s->block = 2 * s->block < BLOCK ? 2 * s->block : BLOCK;
    for (size_t i = 0; i < count && s->open; i++) {
        const unsigned bits = s->reached[i] ? s->reached[i] & classes_of(l, begin + i) : 0;
        if (!bits) continue;
        csm_status status = visit_found(s, begin + i, bits, s->upper + i * CSM_INT8_GROUP, p);
        if (status != CSM_OK) return status;
    }
    return CSM_OK;
}

/* The groups from *g on, before `end`: one, or some. */
static csm_status visit_groups(scanner *s, size_t *g, size_t end) {
    topk_call *call = s->call;
    if (call->bits == 4) return visit_nibbles(s, g, end, &call->paces[s->thread]);
    return call->bits == 6 ? visit_narrow(s, (*g)++, &call->paces[s->thread]) : visit_plain(s, (*g)++);
}

/* Refines what waits in the lists of threads, from the highest threshold of all of them: k lower bounds reach it. */
static csm_status waiting_body(void *context, size_t begin, size_t end, int thread) {
    topk_call *call = context;
    csm_status status = CSM_OK;
    for (size_t t = begin; t < end && status == CSM_OK; t++) status = refine_waiting(call, thread, &call->lists[t], 0);
    return status;
}
static csm_status finish_waiting(topk_call *call) {
    float threshold = -INFINITY;
    for (int t = 0; t < call->threads; t++)
        threshold = call->lists[t].threshold > threshold ? call->lists[t].threshold : threshold;
    for (int t = 0; t < call->threads; t++) raise_threshold(&call->lists[t], threshold);
    return csm_parallel((size_t)call->threads, 1, call->threads, waiting_body, call, &call->interrupt);
}

static csm_status scan_body(void *context, size_t begin, size_t end, int thread) {
    topk_call *call = context;
    const csm_int8_layer *l = call->layer;
    scanner s;
    s.call = call;
    s.thread = thread;
    s.lists = call->lists + (size_t)thread * call->queries;
    const size_t codes = csm_int8_steps(l) * 4 * CSM_INT8_GROUP;
    const size_t dots = CSM_INT8_GROUP * (2 * MAX_QUERIES + CSM_INT8_VECTORS) * sizeof(int32_t);
    const size_t upper = call->bits == 4 ? BLOCK * CSM_INT8_GROUP * sizeof(float) : 0;
    s.narrow = (uint8_t *)csm_scratch_get(&call->scratch, thread, 2, codes + dots + upper); /* 64 bytes a step */
    if (!s.narrow) return CSM_NO_MEMORY;
    s.dots = (int32_t *)(void *)(s.narrow + codes);
    s.upper = (float *)(void *)(s.narrow + codes + dots);
    s.block = s.lists[0].held ? BLOCK : 1;
    s.open = 0;
    for (size_t i = 0; i < call->coded; i++) {
        s.open += !s.lists[call->number[i]].is_full;
        s.query[i] = call->query[i];
        s.filter[i] = call->filter[i];
        s.query[i].below = s.filter[i].below = s.lists[call->number[i]].below;
    }
    for (size_t first = begin, stop; first < end && s.open; first = stop) { /* chunk by chunk */
        stop = (first / call->chunk + 1) * call->chunk;
        stop = stop < end ? stop : end;
        size_t g = group_at(call, first);
        for (const size_t last = g + (stop - first); g < last && s.open;) {
            const size_t from = g;
            const csm_status status = visit_groups(&s, &g, last);
            if (status != CSM_OK) return status;
            if (csm_stops(&call->interrupt, thread, (g - from) * l->dims * call->vectors)) return CSM_OK;
        }
    }
    return CSM_OK; /* csm_parallel reports an interrupt */
}

/* The candidates of all threads in one list, those below the threshold of the whole left out. */
static csm_status merge(topk_call *call, size_t q, int thread, kept *all) {
    *all = (kept){.threshold = -INFINITY};
    size_t total = 0;
    for (int t = 0; t < call->threads; t++) {
        const kept *list = &call->lists[(size_t)t * call->queries + q];
        if (list->is_full) all->is_full = 1;
        total += list->count;
    }
    if (all->is_full || total == 0) return CSM_OK;
    if (!grow(all, total)) return CSM_NO_MEMORY;
    for (int t = 0; t < call->threads; t++) {
        const kept *list = &call->lists[(size_t)t * call->queries + q];
        if (list->count == 0) continue;
        memcpy(all->lower + all->count, list->lower, list->count * sizeof(float));
        memcpy(all->upper + all->count, list->upper, list->count * sizeof(float));
        memcpy(all->id + all->count, list->id, list->count * sizeof(int32_t));
        all->count += list->count;
    }
    csm_status status = find_threshold(call, thread, all->lower, all->count, &all->threshold);
    if (status == CSM_OK) drop_below(all);
    if (all->count > call->limit) all->is_full = 1;
    return status;
}

/* Computes the exact scores of the candidates, and writes the k best. */
static csm_status rescore(topk_call *call, size_t q, int thread, const kept *all) {
    const csm_int8_layer *l = call->layer;
    const csm_int8_search *s = call->search;
    const size_t to = call->first + q, count = all->count < s->k ? all->count : s->k;
    const size_t row_size = csm_int8_row_size(l);
    char *memory = csm_scratch_get(&call->scratch, thread, 1, row_size + all->count * sizeof(csm_int8_scored));
    if (!memory) return CSM_NO_MEMORY;
    csm_int8_scored *best = (csm_int8_scored *)(memory + row_size);
    for (size_t i = 0; i < all->count; i++) {
        const size_t id = (size_t)all->id[i], from = csm_int8_row_of(l, id);
        const double *row = csm_int8_row(call->table, l, from, memory);
        best[i] = (csm_int8_scored){csm_int8_score(call->table, l, id, row, s->x + to * l->dims), (int64_t)from};
        if (csm_stops(&call->interrupt, thread, l->dims)) return CSM_OK; /* csm_parallel reports it */
    }
    if (all->count > 1) qsort(best, all->count, sizeof *best, csm_int8_compare);
    for (size_t i = 0; i < count; i++) {
        s->values[to * s->k + i] = best[i].score;
        s->indices[to * s->k + i] = best[i].id;
    }
    s->found[to] = (int64_t)count;
    s->rescored[to] = (int64_t)all->count;
    return CSM_OK;
}

static csm_status finish_body(void *context, size_t begin, size_t end, int thread) {
    topk_call *call = context;
    for (size_t q = begin; q < end; q++) {
        kept all = {0};
        call->search->found[call->first + q] = 0;
        call->search->rescored[call->first + q] = -1;
        if (call->is_exact[q]) continue;
        csm_status status = merge(call, q, thread, &all);
        if (status == CSM_OK && !all.is_full) status = rescore(call, q, thread, &all);
        csm_release(all.lower);
        if (status != CSM_OK) return status;
    }
    return CSM_OK;
}

/* The bits of the codes by which the classes of this scan are filtered. */
static int bits_for(const topk_call *call) {
    const csm_int8_layer *l = call->layer;
    if (l->dims > CSM_INT8_COARSE_DIMS) return 0;
    if (l->nibbles && call->queries == 1 && call->search->k <= HEAP_MOST) return 4;
    return call->queries >= MIN_FILTERED && !csm_int8_has_vnni(call->table) ? 6 : 0;
}

/* Codes of the queries of this scan. */
static void code_queries(topk_call *call, double *scaled) {
    const csm_int8_layer *l = call->layer;
    const csm_int8_search *s = call->search;
    const int wanted = s->limbs ? s->limbs : call->queries < FEW_QUERIES ? CSM_INT8_SCAN_LIMBS : 0;
    int bits = bits_for(call);
    call->vectors = call->coded = 0;
    for (size_t q = 0; q < call->queries; q++) {
        const csm_int8_codes c = csm_int8_code(l, s->x + (call->first + q) * l->dims, wanted, call->vectors,
                                               call->codes, call->offset, scaled);
        call->is_exact[q] = c.is_exact;
        if (c.is_exact) continue;
        call->number[call->coded] = q;
        call->query[call->coded++] = (csm_int8_query){
            .factor = (float)(c.limbs == 2 ? c.unit / CSM_INT8_SECOND : c.unit),
            /* The residuals of classes are multiplied by the norm of the coded query, their norms by its error. */
            .residual = csm_int8_up(c.size),
            .norm = csm_int8_up(c.error),
            .limbs = c.limbs,
            .vector = call->vectors,
            .is_wide = (double)l->dims * (CSM_INT8_SECOND + 1) * 127 * CSM_INT8_LIMIT >= 0x1p31,
        };
        call->vectors += (size_t)c.limbs;
        if (bits && !csm_int8_filter_of(l, &c, scaled, bits, call->coded - 1, call->coarse_codes, call->coarse_offset,
                                        &call->filter[call->coded - 1]))
            bits = 0;
    }
    call->bits = bits;
}

static csm_status scan(topk_call *call, double *scaled, int threads) {
    csm_buffer single[3];
    const csm_int8_layer *l = call->layer;
    const size_t count = (size_t)threads * call->queries;
    call->threads = threads;
    call->lists = csm_allocate(count * sizeof *call->lists + (size_t)threads * sizeof *call->paces);
    if (!call->lists) return CSM_NO_MEMORY;
    call->paces = (pace *)(call->lists + count);
    memset(call->paces, 0, (size_t)threads * sizeof *call->paces);
    for (size_t i = 0; i < count; i++) call->lists[i] = (kept){.threshold = -INFINITY, .below = -INFINITY};
    csm_status status = csm_scratch_begin(&call->scratch, threads, 3, single);
    if (status == CSM_OK) {
        code_queries(call, scaled);
        const size_t cost = (l->dims + 16) * (call->vectors + 1);
        if (call->vectors)
            status = csm_parallel(csm_int8_groups(l), 2 * CSM_PIECE_ELEMENTS / cost + 1, threads, scan_body, call,
                                  &call->interrupt);
        if (status == CSM_OK && call->bits == 4) status = finish_waiting(call);
        const int finishing = call->queries < (size_t)threads ? (int)call->queries : threads;
        if (status == CSM_OK) status = csm_parallel(call->queries, 1, finishing, finish_body, call, &call->interrupt);
        csm_scratch_end(&call->scratch);
    }
    for (size_t i = 0; i < count; i++) {
        csm_release(call->lists[i].lower);
        csm_release(call->lists[i].best);
        csm_release(call->lists[i].wait);
    }
    csm_release(call->lists);
    return status;
}

csm_status csm_run_int8_topk(const csm_table *table, const csm_int8_layer *l, const csm_int8_search *s) {
    csm_fp_environment saved = csm_fp_enter();
    topk_call call = {.table = table, .layer = l, .search = s};
    call.interrupt = (csm_interrupt){.check = l->interrupt, .caller = saved};
    const size_t eighth = l->classes / MAX_KEPT_PART, few = 2 * s->k + MIN_KEPT;
    call.limit = eighth > few ? eighth : few;
    spread_chunks(&call);
    const size_t block = s->queries < MAX_QUERIES ? s->queries : MAX_QUERIES;
    const double work = (double)l->classes * (double)(l->dims + 16) * (double)block / 8;
    const int threads = csm_threads_for(work, csm_int8_groups(l), l->threads < 1 ? 1 : l->threads);
    const size_t list = (4 * s->k + MIN_KEPT) * 12 * (size_t)threads, most = KEPT_BYTES / list;
    const size_t step = most < 1 ? 1 : most < block ? most : block;
    const size_t coded = csm_rounded(csm_int8_lines(l) * 8 * (2 * step + CSM_INT8_VECTORS));
    const size_t offsets = csm_rounded((2 * step + CSM_INT8_VECTORS) * sizeof(int32_t));
    const size_t both = 2 * (coded + offsets); /* of the scan and of the filter, which takes at most as much */
    char *memory = csm_allocate(both + csm_rounded(l->dims * sizeof(double)));
    csm_status status = memory ? CSM_OK : CSM_NO_MEMORY;
    if (memory) {
        memset(memory, 0, both);
        call.codes = (int8_t *)memory;
        call.offset = (int32_t *)(memory + coded);
        call.coarse_codes = (int8_t *)(memory + coded + offsets);
        call.coarse_offset = (int32_t *)(memory + 2 * coded + offsets);
    }
    for (size_t first = 0; status == CSM_OK && first < s->queries; first += step) {
        call.first = first;
        call.queries = s->queries - first < step ? s->queries - first : step;
        status = scan(&call, (double *)(memory + both), threads);
    }
    csm_release(memory);
    csm_fp_leave(call.interrupt.caller); /* the callback may have changed it */
    return status;
}
