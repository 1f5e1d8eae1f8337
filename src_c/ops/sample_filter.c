/* Drawing: filters by passes over the row, whatever their order and however many classes they keep.
 *
 *   top_k        the k largest logits that are left
 *   top_p        the fewest of the most probable classes whose mass is at least top_p
 *   typical_p    the same of the classes whose -log p is nearest to the entropy: |x - sum p x| rises
 *   min_p        classes with at least min_p times the largest probability
 *   top_n_sigma  logits of at least max - n sigma, sigma the standard deviation of the finite logits that are left
 *
 * The classes that are left are always those on one side of a logit, or of a distance, and among equals those up to an
 * index (csm_sample_set), so that nothing is sorted.  To find that end, 4096 logits of the row are looked at, which
 * say between which two numbers it very probably is.  A pass adds up what is before them and lists what is between
 * them (sample_near.c).  What is listed, or the whole row if the end is not there, is added up in buckets of the
 * distance from the maximum (or from sum p x), and up to the bucket in which the sum passes its limit; if candidates
 * are many, buckets of the bits of their keys follow, each round of which has a thousandth of the range.  Candidates
 * are sorted and added up in order.  Samples and buckets are only guides: what is before the candidates is added up
 * in an order that does not depend on the threads, and without rounding over blocks.
 *
 * Passes: for each filter by mass one for the sums of the blocks and one more for the end; top_k does not need the
 * first; typical_p one more; top_n_sigma has three, min_p two.  Each computes the masses again.
 * Rows with NaN or +inf have no mass: the first sum finds them, so that all others see ordered numbers only.
 */
#include "sample.h"

#include "../kernel/softmax/combine.h"

enum {
    BUCKETS = 2048,
    GROUPS = 8, /* of blocks with buckets of their own, so that threads may share a row */
    CANDIDATES = 1024, /* so many are sorted; more of them are divided once more */
    SAMPLE = CSM_BLOCK, /* logits of a row that are looked at first ... */
    CLOSER_SAMPLE = 512, /* ... and of those that are listed, ... */
    LISTED_ELEMENTS = 2 * SAMPLE,
    CLOSER_ELEMENTS = 2048 /* ... if they are more than these */
};
#define RANGE 28 /* of the first buckets, in units of T: e^-28 times 2^31 classes is little */

typedef struct candidate {
    uint64_t key;
    int64_t at;
    double x, mass;
} candidate;

/* The search for the last class that is kept. */
typedef struct search {
    csm_sample_row *row;
    csm_sample_measure measure;
    double limit, origin, scale; /* buckets of the distance from the origin ... */
    int by_bits, shift;          /* ... or of the keys */
    uint64_t lo, hi;             /* the smallest and the largest key of the candidates */
    int first, last;             /* their buckets */
    double start, before;        /* what is before all of the row, and before the candidates */
    double slack;                /* of the guide, as a part of the limit */
    size_t count, groups;        /* number of candidates */
    double *sums;                /* groups x BUCKETS */
    candidate *list;
} search;

/* A number whose order as an integer is the falling order of the logits. */
static inline uint64_t falling_key(double x) {
    const uint64_t bits = csm_double_bits(x + 0.0); /* -0 is 0 */
    return ~(bits >> 63 ? ~bits : bits | (uint64_t)1 << 63);
}
static inline double distance_of(const search *s, double x) {
    return s->measure == CSM_SAMPLE_NEAR ? fabs(x - s->origin) : s->origin - x;
}
static inline uint64_t key_of(const search *s, double x) {
    return s->measure == CSM_SAMPLE_NEAR ? csm_double_bits(distance_of(s, x)) : falling_key(x);
}
/* The bucket of a logit: -1 before the range of the keys, BUCKETS after it. */
static inline int bucket_of(const search *s, double x) {
    if (!s->by_bits) {
        const double at = distance_of(s, x) * s->scale;
        return at < BUCKETS - 1 ? at > 0 ? (int)at : 0 : BUCKETS - 1;
    }
    const uint64_t key = key_of(s, x);
    return key < s->lo ? -1 : key > s->hi ? BUCKETS : (int)((key - s->lo) >> s->shift);
}

/* Loops over the logits of a block and their masses (NULL: 1 each), for each compute type REAL. */
#define LOOPS(REAL)                                                                                                 \
    static void fill_##REAL(const REAL *x, size_t k, const search *s, const REAL *mass, double *sums) {             \
        for (size_t i = 0; i < k; i++) {                                                                            \
            const int bucket = bucket_of(s, (double)x[i]);                                                          \
            if (bucket >= 0 && bucket < BUCKETS) sums[bucket] += mass ? (double)mass[i] : 1;                        \
        }                                                                                                           \
    }                                                                                                               \
    /* The sum before the candidates; block: their number, and their smallest and largest key. */                   \
    static double before_##REAL(const REAL *x, size_t k, const search *s, const REAL *mass, csm_block *block) {     \
        double sum = 0;                                                                                             \
        uint64_t lo = UINT64_MAX, hi = 0;                                                                           \
        size_t count = 0;                                                                                           \
        for (size_t i = 0; i < k; i++) {                                                                            \
            const int bucket = bucket_of(s, (double)x[i]);                                                          \
            if (bucket < s->first) {                                                                                \
                sum += mass ? (double)mass[i] : 1;                                                                  \
            } else if (bucket <= s->last) {                                                                         \
                const uint64_t key = key_of(s, (double)x[i]);                                                       \
                lo = key < lo ? key : lo;                                                                           \
                hi = key > hi ? key : hi;                                                                           \
                count++;                                                                                            \
            }                                                                                                       \
        }                                                                                                           \
        block->count = (double)count;                                                                               \
        memcpy(&block->top, &lo, sizeof lo);                                                                        \
        memcpy(&block->top_low, &hi, sizeof hi);                                                                    \
        return sum;                                                                                                 \
    }                                                                                                               \
    static void list_##REAL(const REAL *x, size_t k, const search *s, const REAL *mass, size_t at, candidate *to) { \
        for (size_t i = 0; i < k; i++) {                                                                            \
            const uint64_t key = key_of(s, (double)x[i]);                                                           \
            if (key >= s->lo && key <= s->hi)                                                                       \
                *to++ = (candidate){key, (int64_t)(at + i), (double)x[i], mass ? (double)mass[i] : 1};              \
        }                                                                                                           \
    }                                                                                                               \
    static double smallest_##REAL(const REAL *x, size_t k, const REAL *mass, double threshold) {                    \
        double smallest = CSM_INF;                                                                                  \
        for (size_t i = 0; i < k; i++)                                                                              \
            if ((double)mass[i] >= threshold && (double)x[i] < smallest) smallest = (double)x[i];                   \
        return smallest;                                                                                            \
    }                                                                                                               \
    static double lowest_##REAL(const REAL *x, size_t k) {                                                          \
        double lowest = CSM_INF;                                                                                    \
        for (size_t i = 0; i < k; i++)                                                                              \
            if (x[i] > (REAL)-CSM_INF && (double)x[i] < lowest) lowest = (double)x[i];                              \
        return lowest;                                                                                              \
    }                                                                                                               \
    static void squares_##REAL(const REAL *mass, size_t k, double *sum, double *squares) {                          \
        for (size_t i = 0; i < k; i++) {                                                                            \
            const double m = mass ? (double)mass[i] : 1;                                                            \
            *sum += m;                                                                                              \
            *squares += m * m;                                                                                      \
        }                                                                                                           \
    }
LOOPS(float)
LOOPS(double)
#undef LOOPS

/* The logits of a block that are left and, unless `mass` is NULL, their masses. */
static csm_status look(const csm_sample_row *row, size_t b, int thread, char **x, char **mass) {
    double unused;
    if (mass && !(*mass = csm_sample_masses(row, b, thread, &unused))) return CSM_NO_MEMORY;
    *x = csm_sample_wide(row, b, thread);
    if (!*x) return CSM_NO_MEMORY;
    return csm_stops(&row->call->base.interrupt, thread, CSM_BLOCK) ? CSM_INTERRUPTED : CSM_OK;
}
static size_t length_of(const csm_sample_row *row, size_t b) { return csm_block_length(row->count, b * CSM_BLOCK); }

static csm_status for_each(search *s, size_t units, size_t piece, csm_body body) {
    csm_sample_call *call = s->row->call;
    if (!call->is_split) return body(s, 0, units, s->row->thread);
    return csm_parallel(units, piece, call->base.threads, body, s, &call->base.interrupt);
}

static csm_status fill_body(void *context, size_t begin, size_t end, int thread) {
    const search *s = context;
    const csm_sample_row *row = s->row;
    const size_t blocks = csm_block_count(row->count);
    for (size_t group = begin; group < end; group++)
        for (size_t b = blocks * group / s->groups; b < blocks * (group + 1) / s->groups; b++) {
            char *x, *mass = NULL;
            csm_status status = look(row, b, thread, &x, s->measure == CSM_SAMPLE_COUNT ? NULL : &mass);
            if (status != CSM_OK) return status;
            CSM_BY_TYPE(row, fill, x, length_of(row, b), s, (void *)mass, s->sums + group * BUCKETS);
        }
    return CSM_OK;
}
static csm_status before_body(void *context, size_t begin, size_t end, int thread) {
    const search *s = context;
    const csm_sample_row *row = s->row;
    for (size_t b = begin; b < end; b++) {
        char *x, *mass = NULL;
        csm_status status = look(row, b, thread, &x, s->measure == CSM_SAMPLE_COUNT ? NULL : &mass);
        if (status != CSM_OK) return status;
        row->blocks[b].hi = CSM_BY_TYPE(row, before, x, length_of(row, b), s, (void *)mass, &row->blocks[b]);
    }
    return CSM_OK;
}
/* blocks[b].n: the number of candidates before the block. */
static csm_status list_body(void *context, size_t begin, size_t end, int thread) {
    const search *s = context;
    const csm_sample_row *row = s->row;
    for (size_t b = begin; b < end; b++) {
        char *x, *mass = NULL;
        if (row->blocks[b].count == 0) continue;
        csm_status status = look(row, b, thread, &x, s->measure == CSM_SAMPLE_COUNT ? NULL : &mass);
        if (status != CSM_OK) return status;
        CSM_BY_TYPE(row, list, x, length_of(row, b), s, (void *)mass, b * CSM_BLOCK,
                    s->list + (size_t)row->blocks[b].n);
    }
    return CSM_OK;
}

/* Chooses the buckets in which the sum passes the limit. */
static csm_status fill_buckets(search *s) {
    memset(s->sums, 0, s->groups * BUCKETS * sizeof *s->sums);
    csm_status status = for_each(s, s->groups, 1, fill_body);
    double sum = s->before;
    int filled = 0;
    s->first = s->last = BUCKETS;
    for (int j = 0; j < BUCKETS && status == CSM_OK; j++) {
        double more = 0;
        for (size_t group = 0; group < s->groups; group++) more += s->sums[group * BUCKETS + j];
        sum += more;
        if (more > 0) filled = j;
        if (s->first == BUCKETS && sum >= s->limit * (1 - s->slack)) s->first = j;
        if (sum >= s->limit * (1 + s->slack)) {
            s->last = j;
            break;
        }
    }
    if (s->first == BUCKETS) s->first = filled;
    if (s->last == BUCKETS) s->last = BUCKETS - 1;
    return status;
}
/* Counts the candidates in the chosen buckets, and adds up what is before them. */
static csm_status count_candidates(search *s) {
    const csm_sample_row *row = s->row;
    const size_t blocks = csm_block_count(row->count);
    csm_exact sum;
    double rest;
    csm_status status = for_each(s, blocks, CSM_SAMPLE_PIECE, before_body);
    if (status != CSM_OK) return status;
    csm_exact_zero(&sum);
    s->count = 0;
    s->lo = UINT64_MAX;
    s->hi = 0;
    for (size_t b = 0; b < blocks; b++) {
        csm_block *block = &row->blocks[b];
        uint64_t lo, hi;
        memcpy(&lo, &block->top, sizeof lo);
        memcpy(&hi, &block->top_low, sizeof hi);
        s->lo = lo < s->lo ? lo : s->lo;
        s->hi = hi > s->hi ? hi : s->hi;
        block->n = (double)s->count;
        s->count += (size_t)block->count;
        csm_exact_add(&sum, block->hi, 0, 1);
    }
    csm_exact_add(&sum, s->start, 0, 1);
    csm_exact_pair(&sum, 0, &s->before, &rest);
    return CSM_OK;
}

static int precedes(const candidate *a, const candidate *b) {
    return a->key < b->key || (a->key == b->key && a->at < b->at);
}
/* Moves an element down the heap whose root is the last one in order. */
static void sift(candidate *list, size_t at, size_t count) {
    const candidate moved = list[at];
    for (size_t child; (child = 2 * at + 1) < count; at = child) {
        if (child + 1 < count && precedes(&list[child], &list[child + 1])) child++;
        if (!precedes(&moved, &list[child])) break;
        list[at] = list[child];
    }
    list[at] = moved;
}
/* Heap sort: no memory, no recursion, and its time does not depend on the data. */
static csm_status sort_candidates(candidate *list, size_t count, csm_poll *poll) {
    for (size_t i = count / 2; i-- > 0;) {
        sift(list, i, count);
        if (csm_poll_at(poll, i)) return CSM_INTERRUPTED;
    }
    for (size_t last = count; last-- > 1;) {
        const candidate best = list[0];
        list[0] = list[last];
        list[last] = best;
        sift(list, 0, last);
        if (csm_poll_at(poll, last)) return CSM_INTERRUPTED;
    }
    return CSM_OK;
}

/* What the last class that is kept is known by. */
typedef struct end_of_set {
    double x, sum, without; /* the sum with and without it */
    int64_t at;
    int is_reached; /* the sum has reached the limit */
} end_of_set;

/* Adds up candidates of one key in the order of the indices. */
static csm_status walk_equals(const search *s, end_of_set *end) {
    const csm_sample_row *row = s->row;
    for (size_t b = 0; b < csm_block_count(row->count) && !end->is_reached; b++) {
        char *x, *mass = NULL;
        const size_t k = length_of(row, b);
        if (row->blocks[b].count == 0) continue;
        csm_status status = look(row, b, row->thread, &x, s->measure == CSM_SAMPLE_COUNT ? NULL : &mass);
        if (status != CSM_OK) return status;
        for (size_t i = 0; i < k && !end->is_reached; i++) {
            const double value = csm_wide_at(&row->call->base, x, i);
            if (key_of(s, value) != s->lo) continue;
            end->without = end->sum;
            end->sum += mass ? csm_wide_at(&row->call->base, mass, i) : 1;
            end->x = value;
            end->at = (int64_t)(b * CSM_BLOCK + i);
            end->is_reached = end->sum >= s->limit;
        }
    }
    return CSM_OK;
}
static csm_status walk_candidates(search *s, end_of_set *end) {
    csm_sample_row *row = s->row;
    csm_poll poll = csm_poll_of(&row->call->base.interrupt, row->thread);
    const size_t size = s->count * sizeof *s->list;
    s->list = (candidate *)(void *)csm_sample_buffer(row->call, row->thread, CSM_SAMPLE_VALUES, size);
    if (!s->list) return CSM_NO_MEMORY;
    csm_status status = for_each(s, csm_block_count(row->count), CSM_SAMPLE_PIECE, list_body);
    if (status == CSM_OK) status = sort_candidates(s->list, s->count, &poll);
    for (size_t i = 0; i < s->count && status == CSM_OK && !end->is_reached; i++) {
        end->without = end->sum;
        end->sum += s->list[i].mass;
        end->x = s->list[i].x;
        end->at = s->list[i].at;
        end->is_reached = end->sum >= s->limit;
    }
    return status;
}

static csm_status find_end(search *s, end_of_set *end) {
    csm_status status;
    s->by_bits = 0;
    s->before = s->start;
    for (size_t known = SIZE_MAX;; known = s->count) {
        status = fill_buckets(s);
        if (status == CSM_OK) status = count_candidates(s);
        if (status != CSM_OK) return status;
        if (s->count <= CANDIDATES || s->lo == s->hi || (s->by_bits && (s->shift == 0 || s->count == known))) break;
        s->by_bits = 1;
        for (s->shift = 0; (s->hi - s->lo) >> s->shift >= BUCKETS;) s->shift++;
    }
    *end = (end_of_set){.sum = s->before};
    if (s->before >= s->limit) return CSM_OK; /* the guide has led too far */
    return s->lo == s->hi ? walk_equals(s, end) : walk_candidates(s, end);
}

/* Searches the whole row, and again with some slack if the sums of the buckets have been rounded the other way. */
static csm_status find_with_slack(search *s, end_of_set *end) {
    csm_status status = find_end(s, end);
    if (status != CSM_OK || end->is_reached) return status;
    s->slack = (double)s->row->count * 0x1p-51;
    return find_end(s, end);
}
static csm_status begin_search(search *s, csm_sample_row *row, csm_sample_measure measure, double limit) {
    *s = (search){.row = row, .measure = measure, .limit = limit, .groups = row->call->is_split ? GROUPS : 1};
    const size_t size = s->groups * BUCKETS * sizeof *s->sums;
    s->sums = (double *)(void *)csm_sample_buffer(row->call, row->thread, CSM_SAMPLE_SUMS, size);
    s->origin = measure == CSM_SAMPLE_NEAR ? row->set.center : row->max;
    const double range = RANGE * (row->scales->temperature > 0x1p-1000 ? row->scales->temperature : 0x1p-1000);
    s->scale = range < 0x1p1000 ? BUCKETS / range : 0x1p-1000;
    return s->sums ? CSM_OK : CSM_NO_MEMORY;
}

/* The interval of the logits before an end, or up to it. */
static csm_sample_range range_of(const csm_sample_row *row, csm_sample_measure measure, double x, int64_t at) {
    csm_sample_range r = {x, CSM_INF, x, CSM_INF, at};
    if (measure == CSM_SAMPLE_NEAR) csm_sample_around(row, fabs(x - row->set.center), &r);
    else r.low = csm_sample_next(row, x);
    return r;
}

/* The interval of the logits in the buckets before one of them, or, if `wide`, up to it. */
static csm_sample_range range_of_buckets(const search *s, csm_sample_row *row, int bucket, int wide) {
    const double distance = (double)(bucket + wide) / s->scale;
    if (s->measure != CSM_SAMPLE_NEAR) {
        const double x = csm_sample_least(row, s->origin - distance);
        return (csm_sample_range){x, CSM_INF, x, CSM_INF, 0};
    }
    csm_sample_range r = {0};
    csm_sample_around(row, distance, &r);
    return r;
}
/* Chooses two intervals between whose ends that of the set very probably is.  part: the limit, as a part of all, or
 * -1 if it is to be estimated. */
static csm_status guess(csm_sample_row *row, csm_sample_measure measure, double limit, double part,
                        csm_sample_range *before, csm_sample_range *until) {
    csm_sample_row some;
    const size_t size = part < 0 ? CLOSER_SAMPLE : SAMPLE;
    double sum = 0, squares = 0, so_far = 0;
    *before = (csm_sample_range){CSM_INF, -CSM_INF, CSM_INF, -CSM_INF, 0};
    *until = (csm_sample_range){-CSM_INF, CSM_INF, -CSM_INF, CSM_INF, 0};
    csm_status status = csm_sample_pick(row, size, &some);
    if (status != CSM_OK) return status;
    char *x, *mass = NULL;
    status = look(&some, 0, row->thread, &x, measure == CSM_SAMPLE_COUNT ? NULL : &mass);
    if (status != CSM_OK) return status;
    CSM_BY_TYPE(row, squares, (uintptr_t)mass, some.count, &sum, &squares);
    /* three standard deviations of the sum up to the limit */
    const double error = 3 * sqrt((part < 0 ? 0.5 : part * (1 - part) + 0.01) * squares);
    const double middle = part < 0 ? limit * (double)size / (double)row->count : part * sum;
    search s;
    status = begin_search(&s, &some, measure, limit);
    if (status != CSM_OK) return status;
    s.groups = 1;
    memset(s.sums, 0, BUCKETS * sizeof *s.sums);
    status = fill_body(&s, 0, 1, row->thread);
    int first = -1, last = -1;
    for (int j = 0; j < BUCKETS && status == CSM_OK; j++) {
        so_far += s.sums[j];
        if (first < 0 && so_far >= middle - error) first = j;
        if (last < 0 && so_far >= middle + error) last = j;
    }
    if (first > 0) *before = range_of_buckets(&s, row, first, 0);
    if (last >= 0 && last < BUCKETS - 1) *until = range_of_buckets(&s, row, last, 1);
    return status;
}
/* Searches between those intervals, and once more between two of what is listed there; end->is_reached is 0 if the end
 * is not there.  start: what is before all of the row. */
static csm_status find_between(csm_sample_row *row, csm_sample_measure measure, double limit, double part, double start,
                               int level, end_of_set *end) {
    csm_sample_range before, until;
    csm_sample_row listed;
    const uint32_t *list;
    double more = 0;
    csm_status status = guess(row, measure, limit - start, part, &before, &until);
    end->is_reached = 0;
    if (status == CSM_OK)
        status = csm_sample_list(row, measure == CSM_SAMPLE_COUNT, level, &before, &until, &more, &listed, &list);
    start += more;
    if (status != CSM_OK || start >= limit || listed.count == 0) return status;
    if (level == 0 && listed.count >= CLOSER_ELEMENTS) {
        status = find_between(&listed, measure, limit, -1, start, 1, end);
        if (status != CSM_OK) return status;
    }
    if (!end->is_reached) {
        search s;
        status = begin_search(&s, &listed, measure, limit);
        if (status != CSM_OK) return status;
        s.start = start;
        status = find_with_slack(&s, end);
    }
    if (status == CSM_OK && end->is_reached) end->at = (int64_t)list[end->at];
    return status;
}

csm_status csm_sample_narrow(csm_sample_row *row, csm_sample_measure measure, double limit, double part,
                             double *margin) {
    csm_sample_set *set = &row->set;
    end_of_set end = {.is_reached = 0};
    csm_status status = CSM_OK;
    int is_all = 0;
    if (row->count >= LISTED_ELEMENTS && !row->call->is_split)
        status = find_between(row, measure, limit, part, 0, 0, &end);
    if (status == CSM_OK && !end.is_reached) {
        search s;
        status = begin_search(&s, row, measure, limit);
        if (status == CSM_OK) status = find_with_slack(&s, &end);
        is_all = !end.is_reached && s.before >= limit;
    }
    if (status != CSM_OK) return status;
    const double over = fabs(end.sum - limit) / limit, under = fabs(limit - end.without) / limit;
    *margin = over < under ? over : under;
    /* Floats that are multiples of a last bit, up to 2^52 times it, add up without rounding. */
    if (csm_is_single(&row->call->base) && limit < 0x1p28 * (end.sum - end.without)) *margin = CSM_INF;
    if (!(end.x > -CSM_INF) || is_all) return CSM_OK; /* all are kept */
    if (measure == CSM_SAMPLE_NEAR) set->near = range_of(row, measure, end.x, end.at);
    else set->large = range_of(row, measure, end.x, end.at);
    set->is_active = 1;
    return CSM_OK;
}

/* Keeps logits of at least `low`. */
static void keep_from(csm_sample_row *row, double low) {
    csm_sample_set *set = &row->set;
    if (csm_is_single(&row->call->base) && low > -CSM_INF) low = csm_sample_least(row, low);
    if (!(low > set->large.wide_low)) return;
    set->is_active = 1;
    set->large = (csm_sample_range){low, CSM_INF, low, CSM_INF, INT64_MAX};
}

static csm_status smallest_body(void *context, size_t begin, size_t end, int thread) {
    csm_sample_row *row = context;
    for (size_t b = begin; b < end; b++) {
        char *x, *mass;
        csm_status status = look(row, b, thread, &x, &mass);
        if (status != CSM_OK) return status;
        row->blocks[b].far = CSM_BY_TYPE(row, smallest, x, length_of(row, b), (void *)mass, row->limit);
    }
    return CSM_OK;
}
csm_status csm_sample_apply_min_p(csm_sample_row *row) {
    double low = CSM_INF;
    row->limit = row->min_p * row->max_mass;
    row->min_p = 0;
    csm_status status = csm_sample_blocks(row, smallest_body);
    for (size_t b = 0; b < csm_block_count(row->count) && status == CSM_OK; b++)
        if (row->blocks[b].far < low) low = row->blocks[b].far;
    if (status == CSM_OK) keep_from(row, low);
    return status;
}

static const csm_sample_kernels *table_of(const csm_sample_row *row) {
    return &row->call->base.table->sample[row->call->base.dtype];
}
static csm_status moment_body(void *context, size_t begin, size_t end, int thread) {
    csm_sample_row *row = context;
    for (size_t b = begin; b < end; b++) {
        char *x, *mass;
        csm_status status = look(row, b, thread, &x, &mass);
        if (status != CSM_OK) return status;
        row->blocks[b].far = table_of(row)->moment(x, mass, length_of(row, b), row->max);
    }
    return CSM_OK;
}
/* The sum of what a pass has left in `far`. */
static double sum_of_far(const csm_sample_row *row) {
    csm_exact sum;
    double total, rest;
    csm_exact_zero(&sum);
    for (size_t b = 0; b < csm_block_count(row->count); b++) csm_exact_add(&sum, row->blocks[b].far, 0, 1);
    csm_exact_pair(&sum, 0, &total, &rest);
    return total;
}
static csm_status keep_typical(csm_sample_row *row) {
    const double total = csm_sample_mass(row);
    double unused;
    csm_status status = csm_sample_blocks(row, moment_body);
    if (status != CSM_OK) return status;
    row->set.center = row->max + sum_of_far(row) / total;
    return csm_sample_narrow(row, CSM_SAMPLE_NEAR, row->typical_p * total, row->typical_p, &unused);
}

static csm_status lowest_body(void *context, size_t begin, size_t end, int thread) {
    csm_sample_row *row = context;
    for (size_t b = begin; b < end; b++) {
        char *x;
        csm_status status = look(row, b, thread, &x, NULL);
        if (status != CSM_OK) return status;
        row->blocks[b].max = CSM_BY_TYPE(row, lowest, x, length_of(row, b));
    }
    return CSM_OK;
}
/* A pass of top_n_sigma, in whose row `numbers` are those of `spread`. */
typedef struct spreading {
    csm_sample_row *row;
    double numbers[3];
    int power;
} spreading;
static csm_status spread_body(void *context, size_t begin, size_t end, int thread) {
    const spreading *s = context;
    const csm_sample_row *row = s->row;
    for (size_t b = begin; b < end; b++) {
        char *x;
        csm_status status = look(row, b, thread, &x, NULL);
        if (status != CSM_OK) return status;
        row->blocks[b].far = table_of(row)->spread(x, length_of(row, b), s->numbers, s->power, &row->blocks[b].count);
    }
    return CSM_OK;
}
static csm_status spread(spreading *s) {
    csm_sample_call *call = s->row->call;
    const size_t blocks = csm_block_count(s->row->count);
    if (!call->is_split) return spread_body(s, 0, blocks, s->row->thread);
    return csm_parallel(blocks, CSM_SAMPLE_PIECE, call->base.threads, spread_body, s, &call->base.interrupt);
}
/* The scale of distances from the maximum: at most 1 for doubles, so that their squares are numbers; 0: all are 0.  The
 * squares of floats are numbers anyway. */
static csm_status scale_of(csm_sample_row *row, double *scale) {
    double lowest = CSM_INF;
    *scale = 1;
    if (csm_is_single(&row->call->base)) return CSM_OK;
    csm_status status = csm_sample_blocks(row, lowest_body);
    for (size_t b = 0; b < csm_block_count(row->count); b++)
        if (row->blocks[b].max < lowest) lowest = row->blocks[b].max;
    const double range = row->max * 0.5 - lowest * 0.5;
    while (range * *scale > 1) *scale *= 0x1p-60;
    while (range > 0 && range * *scale < 0x1p-60) *scale *= 0x1p60;
    if (!(range > 0)) *scale = 0;
    return status;
}
static csm_status keep_sigmas(csm_sample_row *row) {
    double count = 0, scale;
    csm_status status = scale_of(row, &scale);
    if (status != CSM_OK || scale == 0) return status;
    spreading s = {.row = row, .numbers = {row->max * 0.5, scale, 0}, .power = 1};
    status = spread(&s);
    if (status != CSM_OK) return status;
    for (size_t b = 0; b < csm_block_count(row->count); b++) count += row->blocks[b].count;
    s.numbers[2] = sum_of_far(row) / count;
    s.power = 2;
    status = spread(&s);
    if (status != CSM_OK) return status;
    const double sigma = sqrt(sum_of_far(row) / count) / scale * 2;
    keep_from(row, row->max - row->top_n_sigma * sigma);
    return CSM_OK;
}

static csm_status keep_largest(csm_sample_row *row) {
    double unused;
    const double k = (double)row->top_k;
    return csm_sample_narrow(row, CSM_SAMPLE_COUNT, k, k / (double)row->count, &unused);
}

csm_status csm_sample_filter(csm_sample_row *row) {
    csm_sample_call *call = row->call;
    const csm_scales *tempered = row->scales;
    const size_t n = row->count;
    double unused;
    int is_summed = 0;
    csm_status status = CSM_OK;
    if (call->order_count > 0 && call->order[0] != CSM_FILTER_TEMPERATURE) row->scales = &call->unit;
    if (row->temperature == 0) row->scales = &call->unit; /* the largest logit is chosen where T comes */
    status = csm_sample_sum(row); /* finds rows without mass */
    is_summed = 1;
    const double min_p = row->min_p;
    row->min_p = 0;
    for (size_t i = 0; i < call->order_count && status == CSM_OK; i++) {
        const csm_filter filter = call->order[i];
        const int by_mass = (filter == CSM_FILTER_TYPICAL_P && row->typical_p < 1) ||
                            (filter == CSM_FILTER_TOP_P && row->top_p < 1) || (filter == CSM_FILTER_MIN_P && min_p > 0);
        const int by_logit = (filter == CSM_FILTER_TOP_N_SIGMA && row->top_n_sigma < CSM_INF) ||
                             (filter == CSM_FILTER_TOP_K && row->top_k < n);
        if (filter == CSM_FILTER_TEMPERATURE) {
            if (row->temperature == 0) return csm_sample_narrow(row, CSM_SAMPLE_COUNT, 1, 0, &unused);
            is_summed = is_summed && row->scales == tempered;
            row->scales = tempered;
            continue;
        }
        if (!by_mass && !by_logit) continue;
        if (!is_summed) status = csm_sample_sum(row);
        is_summed = 0;
        if (status != CSM_OK) return status;
        switch (filter) {
        case CSM_FILTER_TOP_N_SIGMA: status = keep_sigmas(row); break;
        case CSM_FILTER_TOP_K: status = keep_largest(row); break;
        case CSM_FILTER_TYPICAL_P: status = keep_typical(row); break;
        case CSM_FILTER_TOP_P:
            status = csm_sample_narrow(row, CSM_SAMPLE_MASS_OF, row->top_p * csm_sample_mass(row), row->top_p, &unused);
            break;
        default: row->min_p = min_p; status = csm_sample_apply_min_p(row);
        }
    }
    return status;
}
