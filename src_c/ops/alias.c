/* Draws from a given distribution over many classes: Walker's alias method (1977) with Vose's construction (1991), in
 * integers.
 *
 * Probabilities are rounded once, to masses n_j whose sum is K 2^32: largest remainder, ties to the lowest class, at
 * least 1 where the weight is not 0.  Column j of the table holds 2^32 units, the first `cut` of them of class j, the
 * rest of its alias.  The table realises n_j / (K 2^32) exactly, because every step of its construction is an integer
 * subtraction; so the logarithms that are reported for the masses are those of what is drawn.  Rounding moves a
 * probability by at most 2^-32 of the mean one.
 *
 * A draw multiplies a 64-bit number r by K: the upper word of the product is the column, the next 32 bits are compared
 * with the cut.  Its distribution differs from the table's by less than 2^-63.  Passes: one read of 8 bytes per draw at
 * a random place, GROUP of which are in flight (decision sampled 1 has the times).  Nothing depends on the number
 * of threads or on the instruction set: the masses come from plain double arithmetic, whose only sums run over fixed
 * blocks in a fixed order. */
#include "../core/call.h"
#include "../core/extension.h"
#include "../core/reduction.h"
#include "../math/scalars.h"

enum {
    GROUP = 16, /* draws whose cells are in flight */
    PIECE_CLASSES = 1 << 15, /* also the blocks of the sums: part of the specification */
    PIECE_DRAWS = 1 << 14,
    BUCKETS = 1 << 16 /* of a histogram of remainders, by half of their 32 bits */
};

/* The upper and the lower word of a product. */
static inline uint64_t multiply(uint64_t a, uint64_t b, uint64_t *low) {
#if defined(__SIZEOF_INT128__)
    const unsigned __int128 p = (unsigned __int128)a * b;
    *low = (uint64_t)p;
    return (uint64_t)(p >> 64);
#else
    const uint64_t a0 = (uint32_t)a, a1 = a >> 32, b0 = (uint32_t)b, b1 = b >> 32;
    const uint64_t middle = a1 * b0 + (a0 * b0 >> 32), other = a0 * b1 + (uint32_t)middle;
    *low = a * b;
    return a1 * b1 + (middle >> 32) + (other >> 32);
#endif
}

typedef struct alias_call {
    size_t n;
    const double *weights; /* NULL: log-uniform */
    double smoothing, power;
    int exponent; /* weights are scaled by 2^-exponent, so that no power overflows */
    double divisor; /* of scaled weights, 1 or, for powers in which less than 1 would vanish, the largest one */
    uint64_t *masses; /* until the last pass, the bits of the weights' powers */
    double *sums; /* of blocks */
    double scale; /* from a power to its mass */
    uint32_t *counts; /* a histogram */
    uint32_t bucket; /* the upper half of the remainder sought */
    int is_second; /* the histogram is that of the lower half, within the bucket */
    uint32_t threshold;
    uint64_t ties; /* classes at the threshold that still get a unit */
    const csm_alias_cell *cells;
    const uint64_t *random;
    int64_t *classes;
    size_t draws;
    double t; /* Poisson rate */
    double *slopes;
    csm_interrupt interrupt;
    csm_fp_environment saved;
} alias_call;

static alias_call begin_call(size_t n, const csm_options *o) {
    alias_call c = {.n = n};
    c.saved = csm_fp_enter();
    c.interrupt = (csm_interrupt){.check = o->interrupt, .context = o->interrupt_context, .caller = c.saved};
    return c;
}
static csm_status end_call(alias_call *c, csm_status status) {
    csm_release(c->sums);
    csm_release(c->counts);
    csm_fp_leave(c->interrupt.caller);
    return status;
}
static const csm_options *options_of(const csm_options *o, csm_options *defaults) {
    *defaults = csm_default_options();
    return o ? o : defaults;
}
static int threads_of(const csm_options *o, size_t elements, size_t units) {
    return csm_threads_for((double)elements, units, o->threads < 1 ? 1 : o->threads);
}
static size_t block_count(size_t n) { return (n + PIECE_CLASSES - 1) / PIECE_CLASSES; }
static size_t block_end(const alias_call *c, size_t block) {
    return c->n - block * PIECE_CLASSES < PIECE_CLASSES ? c->n : (block + 1) * PIECE_CLASSES;
}

/* The power of one weight: at least 2^-1000 where the weight is not 0. */
static double power_of(const alias_call *c, size_t j) {
    if (!c->weights) return csm_log1p(1 / ((double)j + 1), 0);
    const double weight = c->weights[j] + c->smoothing;
    if (!(weight > 0)) return 0;
    const double scaled = ldexp(weight, -c->exponent) / c->divisor;
    const double v = c->power == 1 ? scaled : c->power == 0 ? 1 : scaled > 0 ? csm_pow(scaled, 0, c->power, 0) : 0;
    return v < 0x1p-1000 ? 0x1p-1000 : v;
}
static csm_status powers_body(void *context, size_t begin, size_t end, int thread) {
    alias_call *c = context;
    (void)thread;
    for (size_t b = begin; b < end; b++) {
        double sum = 0, low = 0;
        for (size_t j = b * PIECE_CLASSES; j < block_end(c, b); j++) {
            const double v = power_of(c, j);
            csm_two_sum(&sum, &low, v);
            c->masses[j] = csm_double_bits(v);
        }
        c->sums[b] = sum + low;
    }
    return CSM_OK;
}

/* The mass of a power before its last unit, and the remainder in units of 2^-32. */
static uint64_t floor_of(const alias_call *c, double v, uint32_t *remainder) {
    const double quota = v * c->scale;
    *remainder = 0;
    if (v == 0) return 0;
    if (quota < 1) return 1;
    if (quota >= 0x1p53) return (uint64_t)quota;
    const uint64_t whole = (uint64_t)quota;
    *remainder = (uint32_t)((quota - (double)whole) * 0x1p32);
    return whole;
}
static csm_status histogram_body(void *context, size_t begin, size_t end, int thread) {
    alias_call *c = context;
    (void)thread;
    for (size_t j = begin; j < end; j++) {
        uint32_t remainder;
        floor_of(c, csm_double_of(c->masses[j]), &remainder);
        if (c->is_second) c->counts[remainder & (BUCKETS - 1)] += remainder >> 16 == c->bucket;
        else c->counts[remainder >> 16]++;
    }
    return CSM_OK;
}
static csm_status masses_body(void *context, size_t begin, size_t end, int thread) {
    alias_call *c = context;
    (void)thread;
    for (size_t j = begin; j < end; j++) {
        uint32_t remainder;
        c->masses[j] = floor_of(c, csm_double_of(c->masses[j]), &remainder);
        if (remainder > c->threshold) c->masses[j]++;
        else if (remainder && remainder == c->threshold && c->ties) {
            c->masses[j]++;
            c->ties--;
        }
    }
    return CSM_OK;
}
/* Calls body on pieces in order, in the calling thread. */
static csm_status in_order(alias_call *c, csm_body body) {
    return csm_parallel(c->n, PIECE_CLASSES, 1, body, c, &c->interrupt);
}

/* Sums of a pass over the powers: those whose quota is below 1 get one unit each, and the others share the rest. */
typedef struct quotas {
    uint64_t raised, floors; /* classes whose quota is below 1; the sum of all masses before the last units */
    double small; /* the sum of the powers that are raised */
    size_t largest; /* the class of the largest power */
} quotas;
static quotas add_quotas(const alias_call *c) {
    quotas q = {0, 0, 0, 0};
    double low = 0, largest = -1;
    for (size_t j = 0; j < c->n; j++) {
        uint32_t remainder;
        const double v = csm_double_of(c->masses[j]);
        q.floors += floor_of(c, v, &remainder);
        if (v > 0 && v * c->scale < 1) {
            q.raised++;
            csm_two_sum(&q.small, &low, v);
        }
        if (v > largest) {
            largest = v;
            q.largest = j;
        }
    }
    q.small += low;
    return q;
}
/* Finds the remainder above which a class gets another unit if `units` are to be given; *left: those left for classes
 * with just this remainder. */
static csm_status find_threshold(alias_call *c, uint64_t units) {
    uint32_t found[2] = {0, 0};
    c->threshold = UINT32_MAX;
    c->ties = 0;
    if (!units) return CSM_OK;
    for (c->is_second = 0; c->is_second < 2; c->is_second++) {
        memset(c->counts, 0, BUCKETS * sizeof *c->counts);
        csm_status status = in_order(c, histogram_body);
        if (status != CSM_OK) return status;
        uint32_t at = BUCKETS - 1;
        while (at > 0 && c->counts[at] < units) units -= c->counts[at--];
        found[c->is_second] = at;
        c->bucket = found[0];
    }
    c->threshold = found[0] << 16 | found[1];
    c->ties = units;
    return CSM_OK;
}

static csm_status round_masses(alias_call *c) {
    const uint64_t whole = (uint64_t)c->n << 32;
    const double total = csm_tree_sum(c->sums, block_count(c->n));
    quotas q = {0, 0, 0, 0};
    if (!(total > 0 && total < CSM_INF)) return CSM_NO_MASS;
    c->scale = (double)whole / total;
    for (int round = 0; round < 64; round++) { /* raising more classes leaves less to the others, hardly ever twice */
        const uint64_t before = q.raised;
        q = add_quotas(c);
        if (q.raised == before) break;
        c->scale = ((double)whole - (double)q.raised) / (total - q.small);
    }
    csm_status status = find_threshold(c, q.floors < whole ? whole - q.floors : 0);
    if (status == CSM_OK) status = in_order(c, masses_body);
    if (status != CSM_OK) return status;
    /* What the roundings of quotas beyond 2^53 leave, to either side, goes to the largest class: 2^-50 of its mass. */
    uint64_t sum = 0;
    for (size_t j = 0; j < c->n; j++) sum += c->masses[j];
    c->masses[q.largest] += whole - sum;
    return CSM_OK;
}

csm_status csm_alias_masses(size_t n, const double *weights, double smoothing, double power, uint64_t *masses,
                            const csm_options *options) {
    csm_options defaults;
    const csm_options *o = options_of(options, &defaults);
    if (n == 0 || n > (size_t)1 << 31) return CSM_BAD_SHAPE;
    if (!(smoothing >= 0 && smoothing < CSM_INF && power >= 0 && power < CSM_INF)) return CSM_BAD_OPTION;
    alias_call c = begin_call(n, o);
    double largest = 0;
    csm_status status = CSM_OK;
    for (size_t j = 0; weights && j < n && status == CSM_OK; j++) {
        const double weight = weights[j] + smoothing;
        if (!(weights[j] >= 0 && weight < CSM_INF)) status = CSM_BAD_OPTION;
        largest = weight > largest ? weight : largest;
    }
    c.weights = weights;
    c.smoothing = smoothing;
    c.power = power;
    c.masses = masses;
    if (status == CSM_OK && weights && largest == 0) status = CSM_NO_MASS;
    const double scaled = weights && largest > 0 ? frexp(largest, &c.exponent) : 1;
    c.divisor = power > 256 ? scaled : 1;
    if (status == CSM_OK) {
        c.sums = csm_allocate(block_count(n) * sizeof *c.sums);
        c.counts = csm_allocate(BUCKETS * sizeof *c.counts);
        if (!c.sums || !c.counts) status = CSM_NO_MEMORY;
    }
    if (status == CSM_OK)
        status = csm_parallel(block_count(n), 1, threads_of(o, 32 * n, block_count(n)), powers_body, &c, &c.interrupt);
    if (status == CSM_OK) status = round_masses(&c);
    return end_call(&c, status);
}

/* Vose's construction in place, without lists: `from` is the class whose surplus fills columns; when it falls below a
 * column of its own, that column is filled from the next class with a surplus.  By conservation, the last ones hold
 * exactly one column. */
csm_status csm_alias_table(size_t n, const uint64_t *masses, csm_alias_cell *cells) {
    const uint64_t column = (uint64_t)1 << 32;
    if (n == 0 || n > (size_t)1 << 31) return CSM_BAD_SHAPE;
    uint64_t sum = 0;
    for (size_t j = 0; j < n; j++) {
        if (masses[j] > (uint64_t)n << 32) return CSM_BAD_OPTION;
        sum += masses[j];
    }
    if (sum != (uint64_t)n << 32) return CSM_BAD_OPTION;
    size_t from = 0;
    while (masses[from] < column) from++;
    uint64_t rest = masses[from];
    for (size_t j = 0; j < n; j++) {
        if (masses[j] >= column) continue;
        cells[j] = (csm_alias_cell){(uint32_t)masses[j], (uint32_t)from};
        rest -= column - masses[j];
        while (rest < column) {
            size_t next = from + 1;
            while (masses[next] < column) next++;
            cells[from] = (csm_alias_cell){(uint32_t)rest, (uint32_t)next};
            rest = masses[next] - (column - rest);
            from = next;
        }
    }
    for (size_t j = from; j < n; j++)
        if (masses[j] >= column) cells[j] = (csm_alias_cell){0, (uint32_t)j};
    return CSM_OK;
}

static csm_status draw_body(void *context, size_t begin, size_t end, int thread) {
    const alias_call *c = context;
    uint64_t column[GROUP];
    uint32_t fraction[GROUP];
    (void)thread;
    for (size_t i = begin; i < end; i += GROUP) {
        const size_t count = end - i < GROUP ? end - i : GROUP;
        for (size_t k = 0; k < count; k++) {
            uint64_t low;
            column[k] = multiply(c->random[i + k], c->n, &low);
            fraction[k] = (uint32_t)(low >> 32);
            PREFETCH(&c->cells[column[k]]);
        }
        for (size_t k = 0; k < count; k++) {
            const csm_alias_cell cell = c->cells[column[k]];
            c->classes[i + k] = (int64_t)(fraction[k] < cell.cut ? column[k] : cell.alias);
        }
    }
    return CSM_OK;
}
static csm_status uniform_body(void *context, size_t begin, size_t end, int thread) {
    const alias_call *c = context;
    uint64_t low;
    (void)thread;
    for (size_t i = begin; i < end; i++) c->classes[i] = (int64_t)multiply(c->random[i], c->n, &low);
    return CSM_OK;
}
csm_status csm_alias_draw(size_t n, const csm_alias_cell *cells, size_t draws, const uint64_t *random, int64_t *classes,
                          const csm_options *options) {
    csm_options defaults;
    const csm_options *o = options_of(options, &defaults);
    if (n == 0 || n > INT64_MAX || (cells && n > (size_t)1 << 31)) return CSM_BAD_SHAPE;
    alias_call c = begin_call(n, o);
    c.cells = cells;
    c.random = random;
    c.classes = classes;
    return end_call(&c, csm_parallel(draws, PIECE_DRAWS, threads_of(o, 4 * draws, draws / PIECE_DRAWS + 1),
                                     cells ? draw_body : uniform_body, &c, &c.interrupt));
}

/* 1 - e^-a for a >= 0. */
static double included(double a) {
    if (a < 0x1p-7) return a * (1 - a / 2 * (1 - a / 3 * (1 - a / 4 * (1 - a / 5 * (1 - a / 6 * (1 - a / 7))))));
    return -csm_exp_less(-a, 0, 1);
}
static csm_status inclusion_body(void *context, size_t begin, size_t end, int thread) {
    alias_call *c = context;
    (void)thread;
    for (size_t b = begin; b < end; b++) {
        double sum = 0, slope = 0;
        for (size_t j = b * PIECE_CLASSES; j < block_end(c, b); j++) {
            const double p = (double)c->masses[j] * c->scale, out = included(c->t * p);
            sum += out;
            slope += p * (1 - out);
        }
        c->sums[b] = sum;
        c->slopes[b] = slope;
    }
    return CSM_OK;
}

/* log(rate p) of draws with replacement, or log(1 - e^(-rate p)) of a Poisson process; p = mass / total. */
typedef struct log_call {
    alias_call base;
    const int64_t *ids;
    double *log_q;
    int is_poisson;
} log_call;
static csm_status log_body(void *context, size_t begin, size_t end, int thread) {
    const log_call *c = context;
    (void)thread;
    for (size_t i = begin; i < end; i++) {
        const double mass = c->base.masses ? (double)c->base.masses[c->ids[i]] : 1, a = mass * c->base.scale;
        double low, expected = c->is_poisson ? included(a) : a;
        c->log_q[i] = expected > 0 ? csm_log(expected, 0, &low) : -CSM_INF;
    }
    return CSM_OK;
}
csm_status csm_alias_log_q(const uint64_t *masses, uint64_t total, double rate, int is_poisson, size_t count,
                           const int64_t *ids, double *log_q, const csm_options *options) {
    csm_options defaults;
    const csm_options *o = options_of(options, &defaults);
    if (!(rate >= 0 && rate < CSM_INF) || total == 0) return CSM_BAD_OPTION;
    log_call c = {.base = begin_call(0, o), .ids = ids, .log_q = log_q, .is_poisson = is_poisson};
    c.base.masses = (uint64_t *)(uintptr_t)masses;
    c.base.scale = rate / (double)total;
    csm_status status = csm_parallel(count, PIECE_CLASSES, threads_of(o, 16 * count, count / PIECE_CLASSES + 1),
                                     log_body, &c, &c.base.interrupt);
    return end_call(&c.base, status);
}
csm_status csm_alias_inclusion(size_t n, const uint64_t *masses, double t, double *expected, double *slope,
                               const csm_options *options) {
    csm_options defaults;
    const csm_options *o = options_of(options, &defaults);
    if (n == 0 || (masses && n > (size_t)1 << 31)) return CSM_BAD_SHAPE;
    if (!(t >= 0 && t < CSM_INF)) return CSM_BAD_OPTION;
    if (!masses) {
        const double p = 1 / (double)n, out = included(t * p);
        *expected = (double)n * out;
        *slope = 1 - out;
        return CSM_OK;
    }
    const size_t blocks = block_count(n);
    alias_call c = begin_call(n, o);
    c.masses = (uint64_t *)(uintptr_t)masses;
    c.t = t;
    c.scale = 1 / (double)((uint64_t)n << 32);
    c.sums = csm_allocate(2 * blocks * sizeof *c.sums);
    if (!c.sums) return end_call(&c, CSM_NO_MEMORY);
    c.slopes = c.sums + blocks;
    csm_status status = csm_parallel(blocks, 1, threads_of(o, 8 * n, blocks), inclusion_body, &c, &c.interrupt);
    if (status == CSM_OK) {
        *expected = csm_tree_sum(c.sums, blocks);
        *slope = csm_tree_sum(c.slopes, blocks);
    }
    return end_call(&c, status);
}
