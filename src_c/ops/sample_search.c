/* Drawing: the search of the last class that a filter keeps.
 *
 * Classes have a key, -x or the distance |x unit - center|, in whose rising order a filter keeps them until their
 * number or mass reaches its limit; among equal keys in the order of the indices.  Let S(key) be the mass, or the
 * number, of all up to a key.  The search keeps two keys, S(key[0]) < limit <= S(key[1]), and a pass adds up S at two
 * keys between them (kernel `divide`).
 *
 *   1. of the row: the two keys come from a sample of its logits, which tells how much mass comes after a key: that is
 *      the sum of smaller masses, and so far more certain than what comes before it.  The pass lists what is between
 *      the keys.  If the end is not there, another pass follows, from the median of the sample that is left.
 *   2. of that list: interpolation, and a class of the list in every other pass, which finds equal keys.
 *   3. a few classes, or those of one key, are added up one after the other.
 *
 * The sample and the order of the passes are guides only: S is added up in float64 within blocks and without rounding
 * over blocks, whether threads share the row or not.  The masses that are added up are the larger ones (but for the
 * order by distance), so that sums of floats are free of rounding where the last one is at least 2^-28 of the limit.
 *
 * Passes: one, rarely more, over the logits and their masses.  Error: S has that of 4096 additions in 16 lanes.
 * (64, 128256) float32, one thread: docs/decisions/sample.md.
 */
#include "sample.h"

#include "../kernel/softmax/combine.h"

enum {
    FEW = 48, /* so many classes are sorted */
    LISTED_MOST = 1 << 16, /* longest list */
    SHORT = 8192, /* rows up to here are listed without a sample */
    HEAVY = 8, /* so manieth logit of the sample and larger ones are listed for typical_p */
    ROUNDS_OF_PICKED = 16 /* passes that a sample may guide */
};
#define DEVIATIONS \
    2.5 /* of the estimate from the sample; with 3 lists are longer, with 2 a twentieth needs a second pass */
#define STEP 0.03125 /* how far two keys are from the interpolated one, as a part of what is left */

/* The classes between two keys. */
typedef struct listing {
    int64_t *number;
    char *x, *mass; /* numbers of the compute type; mass NULL: of classes that are counted */
    size_t count, room;
    double last; /* the upper key, and what comes before the list */
    double before;
    size_t number_before;
} listing;
typedef struct search {
    csm_sample_row *row;
    csm_sample_measure measure;
    double limit;
    double key[2], sum[2];
    size_t count[2];
    listing list;
    double *keys; /* of the sample, rising */
    size_t picked;
} search;
/* The last class that is kept; the sums with and without it. */
typedef struct end_of_set {
    double x, sum, without;
    int64_t at;
    int is_reached;
} end_of_set;

/* An element of an array of the compute type, without a copy of unknown size, which is a call. */
static inline double number_at(const csm_sample_row *row, const char *from, size_t i) {
    return csm_is_single(&row->call->base) ? (double)((const float *)(const void *)from)[i]
                                           : ((const double *)(const void *)from)[i];
}
static inline double key_of(const search *s, double x) {
    return s->measure == CSM_SAMPLE_NEAR ? csm_sample_distance(&s->row->set, x) : 0 - x;
}
static double number_before(double key) { /* NaN and infinities have none */
    uint64_t bits = csm_double_bits(key + 0.0);
    if (bits == 0) return -0x1p-1074;
    bits = bits >> 63 ? bits + 1 : bits - 1;
    return csm_double_of(bits);
}
static double middle_of(double a, double b) {
    const double most = 0x1.fffffffffffffp1023;
    const double low = a > -most ? a : -most, high = b < most ? b : most;
    const int64_t i = (int64_t)csm_double_bits(low + 0.0), j = (int64_t)csm_double_bits(high + 0.0);
    const int64_t first = i < 0 ? -(i & INT64_MAX) : i, last = j < 0 ? -(j & INT64_MAX) : j;
    const int64_t at = first / 2 + last / 2 + (first % 2 + last % 2) / 2;
    return at < 0 ? -csm_double_of((uint64_t)-at) : csm_double_of((uint64_t)at);
}
/* Whether no key is left between the two but the second. */
static int is_one_key(const search *s) { return s->key[1] < CSM_INF && s->key[0] >= number_before(s->key[1]); }

/* The interval of the logits up to a key. */
static void interval_of(const search *s, double key, double *interval) {
    interval[0] = CSM_INF;
    interval[1] = -CSM_INF;
    if (key == -CSM_INF) return;
    if (key < CSM_INF && s->measure == CSM_SAMPLE_NEAR) {
        csm_sample_around(s->row, key, 1, interval);
        return;
    }
    interval[0] = key < CSM_INF ? csm_sample_least(s->row, 0 - key) : csm_sample_lowest(s->row);
    interval[1] = CSM_INF;
}
static const csm_sample_kernels *kernels_of(const csm_sample_row *row) {
    return &row->call->base.table->sample[row->call->base.dtype];
}
static double sum_of(const search *s, const csm_sample_part *part, int i) {
    return s->measure == CSM_SAMPLE_COUNT ? (double)part->count[i] : part->sum[i];
}

/* Replaces the keys by two others and what is known of them; returns whether the end is between those. */
static int narrow_keys(search *s, const double *keys, const csm_sample_part *part) {
    const int is_after = !(sum_of(s, part, 1) >= s->limit), is_before = sum_of(s, part, 0) >= s->limit;
    for (int i = 0; i < 2; i++) {
        if (i == 0 ? is_before : is_after) continue;
        const int from = is_after ? 1 : is_before ? 0 : i;
        s->key[i] = keys[from];
        s->sum[i] = sum_of(s, part, from);
        s->count[i] = part->count[from];
    }
    return !is_after && !is_before;
}

/* A pass over a row. */
typedef struct pass {
    search *s;
    double interval[2][2];
    int lists;
    int is_placed; /* the place of each block in the list is known: its `far` */
} pass;

/* Copies what is listed of a block to a place of the list. */
#define LOOPS(REAL)                                                                                          \
    static void copy_##REAL(const REAL *x, size_t count, const uint32_t *places, const REAL *mass, REAL *to, \
                            REAL *to_mass) {                                                                 \
        for (size_t i = 0; i < count; i++) to[i] = x[places[i]];                                             \
        for (size_t i = 0; mass && i < count; i++) to_mass[i] = mass[places[i]];                             \
    }                                                                                                        \
    static void pack_##REAL(REAL *to, size_t k, const double *x) {                                           \
        for (size_t i = 0; i < k; i++) to[i] = (REAL)x[i];                                                   \
    }
LOOPS(float)
LOOPS(double)
#undef LOOPS
static void list_block(search *s, const csm_sample_look *look, size_t first, const uint32_t *places, size_t count,
                       size_t at) {
    const size_t size = s->row->call->base.wide_size;
    char *mass = s->list.mass ? s->list.mass + at * size : NULL;
    for (size_t i = 0; i < count; i++) s->list.number[at + i] = (int64_t)(first + places[i]);
    CSM_BY_TYPE(s->row, copy, (uintptr_t)look->x, count, places, (const void *)look->mass,
                (void *)(s->list.x + at * size), (void *)mass);
}
static csm_status pass_body(void *context, size_t begin, size_t end, int thread) {
    pass *p = context;
    search *s = p->s;
    csm_sample_row *row = s->row;
    uint32_t *places = NULL;
    if (p->lists || p->is_placed) {
        places = (uint32_t *)(void *)csm_sample_buffer(row->call, thread, CSM_SAMPLE_PLACES,
                                                       (CSM_BLOCK + CSM_SAMPLE_SPARE) * sizeof *places);
        if (!places) return CSM_NO_MEMORY;
    }
    for (size_t b = begin; b < end; b++) {
        csm_block *block = &row->blocks[b];
        csm_sample_look look;
        csm_sample_part part;
        double interval[2][2];
        if (p->is_placed && block->mass == block->count) continue;
        csm_status status = csm_sample_look_at(row, b, thread, s->measure != CSM_SAMPLE_COUNT, &look);
        if (status != CSM_OK) return status;
        for (int i = 0; i < 2; i++) {
            interval[i][0] = p->interval[i][0] > look.interval[0] ? p->interval[i][0] : look.interval[0];
            interval[i][1] = p->interval[i][1] < look.interval[1] ? p->interval[i][1] : look.interval[1];
        }
        kernels_of(row)->divide(look.x, look.mass, csm_block_length(row->count, b * CSM_BLOCK), interval[0],
                                interval[1], places, &part);
        const size_t listed = part.count[1] - part.count[0];
        if (p->is_placed) {
            list_block(s, &look, b * CSM_BLOCK, places, listed, (size_t)block->far);
            continue;
        }
        block->hi = part.sum[0];
        block->lo = part.low[0];
        block->top = part.sum[1];
        block->top_low = part.low[1];
        block->count = (double)part.count[0];
        block->mass = (double)part.count[1];
        if (!places) continue;
        if (listed > s->list.room - s->list.count) {
            places = NULL; /* too many: only sums are wanted */
            s->list.count = SIZE_MAX;
            continue;
        }
        list_block(s, &look, b * CSM_BLOCK, places, listed, s->list.count);
        s->list.count += listed;
    }
    return CSM_OK;
}
static csm_status run_pass(pass *p) {
    csm_sample_row *row = p->s->row;
    const size_t blocks = csm_block_count(row->count);
    if (!row->call->is_split) return pass_body(p, 0, blocks, row->thread);
    return csm_parallel(blocks, CSM_SAMPLE_PIECE, row->call->base.threads, pass_body, p, &row->call->base.interrupt);
}
/* Adds up the row at two keys and lists what is between them; list.count: SIZE_MAX if that is too much. */
static csm_status pass_over_row(search *s, const double *keys, csm_sample_part *part, int lists) {
    csm_sample_row *row = s->row;
    const size_t blocks = csm_block_count(row->count);
    const int is_split = row->call->is_split;
    pass p = {.s = s, .lists = lists && !is_split};
    csm_exact sum[2];
    for (int i = 0; i < 2; i++) {
        interval_of(s, keys[i], p.interval[i]);
        csm_exact_zero(&sum[i]);
    }
    s->list.count = lists && !is_split ? 0 : SIZE_MAX;
    csm_status status = run_pass(&p);
    if (status != CSM_OK) return status;
    *part = (csm_sample_part){.count = {0, 0}};
    for (size_t b = 0; b < blocks; b++) {
        csm_block *block = &row->blocks[b];
        block->far = (double)(part->count[1] - part->count[0]);
        part->count[0] += (size_t)block->count;
        part->count[1] += (size_t)block->mass;
        if (s->measure == CSM_SAMPLE_COUNT) continue;
        csm_exact_add(&sum[0], block->hi, 0, 1);
        csm_exact_add(&sum[0], block->lo, 0, 1);
        csm_exact_add(&sum[1], block->top, 0, 1);
        csm_exact_add(&sum[1], block->top_low, 0, 1);
    }
    for (int i = 0; i < 2; i++) csm_exact_pair(&sum[i], 0, &part->sum[i], &part->low[i]);
    const size_t listed = part->count[1] - part->count[0];
    if (lists && is_split && listed <= s->list.room) {
        p.is_placed = 1;
        status = run_pass(&p);
        s->list.count = listed;
    }
    s->list.last = keys[1];
    s->list.before = part->sum[0];
    s->list.number_before = part->count[0];
    return status;
}
/* The same of the list, without another list. */
static void pass_over_list(const search *s, const double *keys, csm_sample_part *part, uint32_t *places) {
    const listing *l = &s->list;
    double interval[2][2];
    for (int i = 0; i < 2; i++) interval_of(s, keys[i], interval[i]);
    kernels_of(s->row)->divide(l->x, l->mass, l->count, interval[0], interval[1], places, part);
    for (int i = 0; i < 2; i++) {
        part->sum[i] = l->before + (part->sum[i] + part->low[i]);
        part->count[i] += l->number_before;
    }
    if (keys[1] >= l->last && part->sum[1] < s->limit) part->sum[1] = s->limit; /* rounded the other way */
}

/* Adds up classes of one key, which are all that is between the keys, in the order of the indices. */
static csm_status walk_row(const search *s, end_of_set *end) {
    const csm_sample_row *row = s->row;
    end->sum = s->sum[0];
    for (size_t b = 0; b < csm_block_count(row->count); b++) {
        csm_sample_look look;
        csm_status status = csm_sample_look_at(row, b, row->thread, s->measure != CSM_SAMPLE_COUNT, &look);
        if (status != CSM_OK) return status;
        for (size_t i = 0; i < csm_block_length(row->count, b * CSM_BLOCK); i++) {
            const double x = number_at(row, look.x, i);
            if (key_of(s, x) != s->key[1] || x < look.interval[0] || x > look.interval[1]) continue;
            end->without = end->sum;
            end->sum += look.mass ? number_at(row, look.mass, i) : 1;
            end->x = x;
            end->at = (int64_t)(b * CSM_BLOCK + i);
            end->is_reached = 1;
            if (end->sum >= s->limit) return CSM_OK;
        }
    }
    return CSM_OK;
}
static double listed_x(const search *s, size_t i) { return number_at(s->row, s->list.x, i); }
/* Adds a class of the list up; returns whether it is the last one. */
static int add_listed(const search *s, size_t i, end_of_set *end) {
    end->without = end->sum;
    end->sum += s->list.mass ? number_at(s->row, s->list.mass, i) : 1;
    end->x = listed_x(s, i);
    end->at = s->list.number[i];
    end->is_reached = 1;
    return end->sum >= s->limit;
}
static void walk_list(const search *s, end_of_set *end) {
    end->sum = s->sum[0];
    for (size_t i = 0; i < s->list.count; i++)
        if (key_of(s, listed_x(s, i)) == s->key[1] && add_listed(s, i, end)) return;
}
/* Sorts the few classes between the keys, and adds them up. */
static void walk_few(const search *s, end_of_set *end) {
    uint32_t places[FEW + CSM_SAMPLE_SPARE];
    double keys[FEW];
    csm_sample_part part;
    pass_over_list(s, s->key, &part, places);
    const size_t count = part.count[1] - part.count[0];
    for (size_t i = 0; i < count; i++) {
        const uint32_t place = places[i];
        const double key = key_of(s, listed_x(s, place));
        size_t at = i;
        for (; at > 0 && keys[at - 1] > key; at--) {
            keys[at] = keys[at - 1];
            places[at] = places[at - 1];
        }
        keys[at] = key;
        places[at] = place;
    }
    end->sum = s->sum[0];
    for (size_t i = 0; i < count; i++)
        if (add_listed(s, places[i], end)) return;
}

/* Two keys about the interpolated end. */
static int interpolate(const search *s, double *keys) {
    const double width = s->key[1] - s->key[0], part = (s->limit - s->sum[0]) / (s->sum[1] - s->sum[0]);
    if (!(width < CSM_INF) || !(part >= 0 && part <= 1)) return 0;
    const double step = 2 / sqrt((double)(s->count[1] - s->count[0]));
    const double around = step > STEP ? step : STEP;
    const double low = s->key[0] + (part - around) * width, high = s->key[0] + (part + around) * width;
    keys[0] = low > s->key[0] ? low : s->key[0];
    keys[1] = high < s->key[1] ? high : s->key[1];
    return keys[0] < keys[1] && (keys[0] > s->key[0] || keys[1] < s->key[1]);
}
/* The key of a class of the list, and the number before it: the median of three places. */
static void choose_listed(const search *s, size_t round, double *keys) {
    const size_t count = s->list.count;
    double found[3];
    size_t at = count / 4 * (round % 4);
    for (int j = 0; j < 3; j++) {
        for (size_t i = 0; i < count; i++, at++) {
            if (at >= count) at = 0;
            found[j] = key_of(s, listed_x(s, at));
            if (found[j] > s->key[0] && found[j] <= s->key[1]) break;
        }
        at += count / 3;
        at = at >= count ? at - count : at;
    }
    const double low = found[0] < found[1] ? found[0] : found[1], high = found[0] < found[1] ? found[1] : found[0];
    keys[1] = found[2] < low ? low : found[2] > high ? high : found[2];
    keys[0] = number_before(keys[1]);
}
static csm_status search_list(search *s, end_of_set *end) {
    csm_sample_call *call = s->row->call;
    for (size_t round = 0; s->count[1] - s->count[0] > FEW; round++) {
        double keys[2];
        csm_sample_part part;
        if (is_one_key(s)) {
            walk_list(s, end);
            return CSM_OK;
        }
        if (round % 2 || !interpolate(s, keys)) choose_listed(s, round, keys);
        pass_over_list(s, keys, &part, NULL);
        narrow_keys(s, keys, &part);
        if (csm_stops(&call->base.interrupt, s->row->thread, s->list.count)) return CSM_INTERRUPTED;
    }
    walk_few(s, end);
    return CSM_OK;
}

/* The sample of a row as the search sees it: keys rise. */
typedef struct picture {
    double *keys, *x;
    char *wide, *mass; /* room for numbers of the compute type */
    double *sorted;    /* what is sorted, the largest first, later masses; and how many of them ... */
    uint64_t *room;
    size_t count, sorted_count;
    double heavy; /* ... are at least this: all that the row has of them */
} picture;

static int is_in_wide(const csm_sample_range *r, double x) {
    return (x >= r->low && x <= r->high) || (x >= r->wide_low && x <= r->wide_high);
}
static csm_status begin_picture(search *s, picture *p) {
    csm_sample_row *row = s->row;
    enum { MOST = 2 * CSM_SAMPLE_PICKED };
    csm_status status = row->picked ? CSM_OK : csm_sample_pick(row);
    if (status != CSM_OK) return status;
    double *memory =
        (double *)(void *)csm_sample_buffer(row->call, row->thread, CSM_SAMPLE_GUESSED, 6 * MOST * sizeof *memory);
    if (!memory) return CSM_NO_MEMORY;
    *p = (picture){.keys = memory, .x = memory + MOST, .sorted = memory + 2 * MOST, .heavy = CSM_INF};
    p->wide = (char *)(memory + 3 * MOST);
    p->mass = (char *)(memory + 4 * MOST);
    p->room = (uint64_t *)(void *)(memory + 5 * MOST);
    memcpy(p->sorted, row->picked, row->picked_count * sizeof *p->sorted);
    p->sorted_count = row->picked_count;
    return CSM_OK;
}
/* Few logits hold much of the mass, and a sample lacks most of them: the largest ones are listed, in a pass that adds
 * nothing up.  Only typical_p leaves them out. */
static csm_status add_heavy(search *s, picture *p) {
    csm_sample_row *row = s->row;
    if (p->sorted_count <= HEAVY) return CSM_OK;
    const double least = p->sorted[HEAVY], keys[2] = {-CSM_INF, 0 - least};
    search all = {.row = row, .measure = CSM_SAMPLE_COUNT, .list = s->list};
    csm_sample_part part;
    all.list.mass = NULL;
    all.list.room = CSM_SAMPLE_PICKED;
    csm_status status = pass_over_row(&all, keys, &part, 1);
    if (status != CSM_OK || all.list.count > CSM_SAMPLE_PICKED) return status;
    size_t smaller = 0;
    while (smaller < row->picked_count && row->picked[smaller] >= least) smaller++;
    csm_sample_unpack(row, all.list.x, all.list.count, p->x);
    p->sorted_count = csm_sample_sort(p->x, all.list.count, p->room, p->sorted);
    for (; smaller < row->picked_count; smaller++)
        if (row->picked[smaller] < least) p->sorted[p->sorted_count++] = row->picked[smaller];
    p->heavy = least;
    return CSM_OK;
}
/* Orders the logits of the sample that are in the set by rising keys. */
static void order_picture(const search *s, picture *p) {
    const csm_sample_set *set = &s->row->set;
    const int is_near = s->measure == CSM_SAMPLE_NEAR;
    size_t at = 2 * CSM_SAMPLE_PICKED;
    for (size_t i = 0, j = p->sorted_count; i < j;) {
        const double high = p->sorted[i], low = p->sorted[j - 1];
        const int is_high = is_near && key_of(s, high) > key_of(s, low);
        const double chosen = is_high ? high : low;
        i += is_high;
        j -= !is_high;
        if (set->is_active && !(is_in_wide(&set->large, chosen) && is_in_wide(&set->near, chosen))) continue;
        p->keys[--at] = key_of(s, chosen);
        p->x[at] = chosen;
    }
    p->keys += at;
    p->x += at;
    p->count = 2 * CSM_SAMPLE_PICKED - at;
}
/* The numbers of classes of the sample before the end, at least and at most, from what comes after the end, and three
 * standard deviations of its estimate: the sum of the squares.  part: the sample, as a part of the row. */
static void bound_by_mass(const search *s, picture *p, double total, double part, size_t *first, size_t *last) {
    const double after = (total - s->limit) * part;
    double sum = 0, squares = 0, *mass = p->sorted;
    size_t middle = p->count;
    if (p->count == 0) return;
    CSM_BY_TYPE(s->row, pack, p->wide, p->count, p->x);
    for (size_t at = 0; at < p->count; at += CSM_BLOCK)
        csm_sample_weigh_numbers(s->row, p->wide + at * s->row->call->base.wide_size, csm_block_length(p->count, at),
                                 p->mass + at * s->row->call->base.wide_size);
    for (size_t i = 0; i < p->count; i++) mass[i] = number_at(s->row, p->mass, i) * (p->x[i] >= p->heavy ? part : 1);
    while (middle > 0 && sum < after) {
        middle--;
        sum += mass[middle];
        squares += p->x[middle] >= p->heavy ? 0 : mass[middle] * mass[middle];
    }
    const double error = DEVIATIONS * sqrt(squares);
    double more = sum;
    for (*last = middle; *last < p->count && more > after - error; ++*last) more -= mass[*last];
    for (*first = middle, more = sum; *first > 0 && more < after + error;) more += mass[--*first];
}
/* Chooses the first two keys.  total: the mass of the set. */
static csm_status guess(search *s, double total, double *keys) {
    const double part = (double)CSM_SAMPLE_PICKED / (double)s->row->count;
    picture p;
    csm_status status = begin_picture(s, &p);
    if (status == CSM_OK && s->measure == CSM_SAMPLE_NEAR) status = add_heavy(s, &p);
    if (status != CSM_OK) return status;
    order_picture(s, &p);
    size_t first = 0, last = p.count;
    if (s->measure == CSM_SAMPLE_COUNT) {
        const double wanted = s->limit * part,
                     error = DEVIATIONS * sqrt(wanted * (1 - s->limit / (double)s->row->count)) + 1;
        first = wanted > error ? (size_t)(wanted - error) : 0;
        last = (size_t)(wanted + error) + 1;
    } else {
        bound_by_mass(s, &p, total, part, &first, &last);
    }
    first = first < p.count ? first : p.count;
    keys[0] = first > 0 ? p.keys[first - 1] : -CSM_INF;
    keys[1] = last < p.count ? p.keys[last] : CSM_INF;
    if (keys[0] >= keys[1]) keys[0] = number_before(keys[1]);
    s->keys = p.keys;
    s->picked = p.count;
    return CSM_OK;
}
/* Chooses the next two keys of the row: all that is left if it fits into the list, else the median of the sample that
 * is left, else of the numbers. */
static void choose_of_row(const search *s, size_t round, double *keys) {
    keys[0] = s->key[0];
    keys[1] = s->key[1];
    if (s->count[1] - s->count[0] <= s->list.room) return;
    size_t first = 0, last = s->picked;
    while (first < last && s->keys[first] <= s->key[0]) first++;
    while (first < last && s->keys[last - 1] > s->key[1]) last--;
    if (first < last && round < ROUNDS_OF_PICKED) {
        keys[1] = s->keys[first + (last - first) / 2];
        keys[0] = number_before(keys[1]);
    } else {
        keys[0] = keys[1] = middle_of(s->key[0], s->key[1]);
    }
}
static csm_status find_end(search *s, double total, end_of_set *end) {
    double keys[2] = {-CSM_INF, CSM_INF};
    csm_status status = CSM_OK;
    if (s->row->count > SHORT) status = guess(s, total, keys);
    for (size_t round = 0; status == CSM_OK; round++) {
        csm_sample_part part;
        status = pass_over_row(s, keys, &part, 1);
        if (status != CSM_OK) return status;
        const int is_between = narrow_keys(s, keys, &part);
        if (s->key[0] == CSM_INF) { /* all of it does not suffice */
            end->sum = s->sum[0];
            return CSM_OK;
        }
        if (is_between && s->list.count < SIZE_MAX) return search_list(s, end);
        if (is_one_key(s)) return walk_row(s, end);
        choose_of_row(s, round, keys);
    }
    return status;
}

static csm_status begin_search(search *s, csm_sample_row *row, csm_sample_measure measure, double limit) {
    csm_sample_call *call = row->call;
    const size_t room = row->count < LISTED_MOST ? row->count : LISTED_MOST, size = room * call->base.wide_size;
    *s = (search){.row = row, .measure = measure, .limit = limit, .key = {-CSM_INF, CSM_INF}};
    s->count[1] = row->count;
    s->list.room = room;
    s->list.number =
        (int64_t *)(void *)csm_sample_buffer(call, row->thread, CSM_SAMPLE_NUMBERS, room * sizeof *s->list.number);
    s->list.x = csm_sample_buffer(call, row->thread, CSM_SAMPLE_LISTED, size);
    if (!s->list.number || !s->list.x) return CSM_NO_MEMORY;
    if (measure == CSM_SAMPLE_COUNT) return CSM_OK;
    s->list.mass = csm_sample_buffer(call, row->thread, CSM_SAMPLE_LISTED_MASS, size);
    return s->list.mass ? CSM_OK : CSM_NO_MEMORY;
}

/* The classes before an end, and up to it. */
static csm_sample_range range_of(const csm_sample_row *row, csm_sample_measure measure, double x, int64_t at) {
    csm_sample_range r = {csm_sample_next(row, x), CSM_INF, x, CSM_INF, at};
    double interval[2];
    if (measure != CSM_SAMPLE_NEAR) return r;
    const double distance = csm_sample_distance(&row->set, x);
    csm_sample_around(row, distance, 0, interval);
    r.low = interval[0];
    r.high = interval[1];
    csm_sample_around(row, distance, 1, interval);
    r.wide_low = interval[0];
    r.wide_high = interval[1];
    return r;
}

csm_status csm_sample_narrow(csm_sample_row *row, csm_sample_measure measure, double limit, double total, double *kept,
                             double *margin) {
    csm_sample_set *set = &row->set;
    end_of_set end = {.is_reached = 0};
    search s;
    csm_status status = begin_search(&s, row, measure, limit);
    if (status == CSM_OK) status = find_end(&s, total, &end);
    if (status != CSM_OK) return status;
    *kept = csm_is_single(&row->call->base) ? end.sum : -1;
    const double over = fabs(end.sum - limit) / limit, under = fabs(limit - end.without) / limit;
    *margin = over < under ? over : under;
    /* Floats that are multiples of a last bit, up to 2^52 times it, add up without rounding. */
    if (csm_is_single(&row->call->base) && limit < 0x1p28 * (end.sum - end.without)) *margin = CSM_INF;
    if (!end.is_reached) return CSM_OK; /* all are kept */
    if (measure == CSM_SAMPLE_NEAR) set->near = range_of(row, measure, end.x, end.at);
    else csm_sample_keep_to(row, end.x, end.at);
    set->is_active = 1;
    return CSM_OK;
}
void csm_sample_keep_to(csm_sample_row *row, double x, int64_t last) {
    row->set.large = range_of(row, CSM_SAMPLE_COUNT, x, last);
    row->set.is_active = 1;
}

csm_status csm_sample_total(csm_sample_row *row, double *total) {
    const double all[2] = {CSM_INF, CSM_INF};
    search s = {.row = row, .measure = CSM_SAMPLE_MASS_OF};
    csm_sample_part part;
    csm_status status = pass_over_row(&s, all, &part, 0);
    *total = part.sum[1];
    return status;
}
