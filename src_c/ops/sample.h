/* Drawing: what its files share.
 *
 *   sample.c          the driver: parameters, rows, threads
 *   sample_masses.c   blocks of a row, their masses and their sums
 *   sample_select.c   top-k and top-p of few classes, from a sorted selection
 *   sample_filter.c   all other filters, from passes over the row
 *   sample_search.c   the search of a filter's end
 *   sample_near.c     intervals of logits and the sample of a row, for that search
 *   sample_draw.c     the draws
 *   sample_take.c     draws without replacement, log-probabilities
 *   sample_shard.c    stages of rows whose classes are divided among shards
 */
#ifndef CSM_OPS_SAMPLE_H
#define CSM_OPS_SAMPLE_H

#include "../core/call.h"
#include "../core/extension.h"

/* Buffers of a thread.  COPY, RAW, WIDE, MASS: of a block, or of the row if it is kept. */
enum {
    CSM_SAMPLE_COPY,
    CSM_SAMPLE_RAW,
    CSM_SAMPLE_WIDE,
    CSM_SAMPLE_MASS,
    CSM_SAMPLE_SUMS,
    CSM_SAMPLE_SELECT,
    CSM_SAMPLE_BLOCKS,
    CSM_SAMPLE_VALUES,
    CSM_SAMPLE_KEPT,
    CSM_SAMPLE_RECORDS,
    CSM_SAMPLE_LOGS,
    CSM_SAMPLE_WEIGHED,
    CSM_SAMPLE_SORTED,
    CSM_SAMPLE_GUESSED,
    CSM_SAMPLE_PLACES,
    CSM_SAMPLE_NUMBERS,
    CSM_SAMPLE_LISTED,
    CSM_SAMPLE_LISTED_MASS,
    CSM_SAMPLE_BUFFERS
};
enum {
    CSM_SAMPLE_KEPT_ELEMENTS = 8 << 12, /* longest row whose e' are kept, in cache */
    CSM_SAMPLE_WEIGHED_ELEMENTS = 1 << 20, /* longest row whose e' are kept for filters */
    CSM_SAMPLE_PICKED = 2048, /* logits in the sample of a row; their places have 11 bits */
    CSM_SAMPLE_PIECE = 16 /* blocks of a row that is split */
};

typedef struct csm_sample_call {
    csm_call base;
    csm_view x, indices, uniforms, temperature, top_k, top_p, min_p, typical_p, top_n_sigma, log_prob, raw_log_prob;
    csm_sample_options options;
    csm_filter order[CSM_FILTER_COUNT];
    size_t order_count, draws, rows;
    int is_direct; /* x is contiguous and has no mask */
    int is_split; /* the threads share each row, instead of the rows */
    csm_scales unit; /* of T = 1 */
    csm_scales *scales; /* one for each thread, for the temperature of its row */
    csm_scratch scratch;
    const csm_sample_shard *shard; /* NULL: of whole rows */
} csm_sample_call;

/* Logits between two numbers of the compute type, ends included; those in the wider interval only up to an index. */
typedef struct csm_sample_range {
    double low, high, wide_low, wide_high;
    int64_t last;
} csm_sample_range;
/* The classes that filters have left: logits that are large enough, and logits near enough to the center / unit. */
typedef struct csm_sample_set {
    int is_active;
    csm_sample_range large, near;
    double center, unit; /* unit: 1, or 0.5 where distances are beyond the numbers */
} csm_sample_set;
static inline double csm_sample_distance(const csm_sample_set *set, double x) {
    return fabs(x * set->unit - set->center);
}

/* The state of a row while it is drawn from. */
typedef struct csm_sample_row {
    csm_sample_call *call;
    size_t index;
    int thread; /* whose buffers hold what all threads of the row share */
    csm_strided from, mask;
    const char *whole; /* the logits (or the selected ones) as contiguous storage; NULL: blocks are gathered */
    size_t count; /* and their number */
    const csm_scales *scales;
    int is_transformed; /* beyond exp's range reduction */
    double max; /* that of the masses, before any transformation */
    double highest; /* the largest logit that filters have left */
    csm_sample_set set; /* of the `count` logits */
    const uint64_t *removed; /* a bit for each of them: already drawn; or NULL */
    csm_block *blocks;
    char *mass; /* the e' of all logits, or NULL */
    double n, max_mass; /* n and e' of the maximum */
    double temperature, min_p, top_p, typical_p, top_n_sigma;
    size_t top_k;
    int64_t *classes; /* of the selected logits; NULL: 0, 1, ... */
    double *sums; /* prefix sums of the masses of each block, or NULL */
    double total; /* mass of all of them */
    double limit, sum; /* top-p: the mass wanted, and that of the `kept` first ones */
    size_t kept;
    char *copy; /* where the row is being copied to */
    csm_block *logs; /* the sums of the log family of each block */
    const double *picked; /* a sample of the logits, the largest first, or NULL */
    size_t picked_count;
} csm_sample_row;

/* A block of a row: the logits in the interval are those that are left. */
typedef struct csm_sample_look {
    const char *x, *mass;
    double interval[2];
} csm_sample_look;

static inline char *csm_sample_buffer(csm_sample_call *call, int thread, int which, size_t size) {
    return csm_scratch_get(&call->scratch, thread, which, size);
}
/* Copies one number of 2, 4 or 8 bytes: sizes that the compiler knows, or memcpy is a call. */
static inline void csm_sample_copy_number(char *to, const char *from, size_t size) {
    if (size == 2) memcpy(to, from, 2);
    else if (size == 4) memcpy(to, from, 4);
    else memcpy(to, from, 8);
}
/* The lowest number of the compute type: -inf is what has been left out. */
static inline double csm_sample_lowest(const csm_sample_row *row) {
    return csm_is_single(&row->call->base) ? -0x1.fffffep127 : -0x1.fffffffffffffp1023;
}
/* Calls a function of the compute type. */
#define CSM_BY_TYPE(row, function, mass, ...)                                                   \
    (csm_is_single(&(row)->call->base) ? function##_float((float *)(void *)(mass), __VA_ARGS__) \
                                       : function##_double((double *)(void *)(mass), __VA_ARGS__))

/* sample_masses.c */

/* Calls body on pieces of [0, units): on all threads if the row is split, else on the thread of the row. */
csm_status csm_sample_each(csm_sample_row *, size_t units, size_t piece, csm_body body);
csm_status csm_sample_blocks(csm_sample_row *, csm_body body);
csm_status csm_sample_in_order(csm_sample_row *, csm_body body); /* one block after the other */
csm_status csm_sample_copy(csm_sample_row *); /* makes the row contiguous */
/* The logits of a block in the compute type, -inf for those that are left out; NULL: no memory. */
char *csm_sample_wide(const csm_sample_row *, size_t b, int thread);
/* The same as contiguous storage of either type, or transformed; *dtype: its type. */
const char *csm_sample_fetch(const csm_sample_row *, size_t b, int thread, csm_dtype *dtype);
/* A block as filters see it; masses: whether they are wanted.  Asks for interrupts. */
csm_status csm_sample_look_at(const csm_sample_row *, size_t b, int thread, int masses, csm_sample_look *);
const csm_temperature *csm_sample_temperature(const csm_sample_row *);
/* Sets what depends on the largest logit.  A row whose maximum is not finite has no mass. */
csm_status csm_sample_set_max(csm_sample_row *, double max);
double csm_sample_mass_of(const csm_sample_row *, double x); /* e' of one logit, scaled as those of the row */
csm_status csm_sample_sum_body(void *row, size_t begin, size_t end, int thread);
/* Computes the sums of all blocks (hi + lo, times 2^n of the block) and what depends on the maximum. */
csm_status csm_sample_sum(csm_sample_row *);
/* Scales the sums of the blocks, and the e' that are kept, to the row's n.  A sum becomes 0 where every mass of its
 * block is too small for the compute type. */
csm_status csm_sample_scale_body(void *row, size_t begin, size_t end, int thread);
csm_status csm_sample_min_p_body(void *row, size_t begin, size_t end, int thread);
/* The masses of a block, after min-p: those that are kept, or new ones in the thread's buffer; NULL: no memory.
 * *sum: theirs, if they are new and min-p is used. */
char *csm_sample_masses(const csm_sample_row *, size_t b, int thread, double *sum);
csm_status csm_sample_sum_all(csm_sample_row *); /* sums of the blocks of all classes, or of those in the set */
double csm_sample_mass(const csm_sample_row *); /* of a whole row, of whose blocks the sums are known */
/* Sums the row for a filter and keeps the e' if it is not too long; *total: its mass. */
csm_status csm_sample_weigh(csm_sample_row *, double *total);
/* e' of k numbers of the compute type, scaled as those of the row; the numbers may be overwritten. */
void csm_sample_weigh_numbers(const csm_sample_row *, char *x, size_t k, char *mass);

/* sample_select.c */
csm_status csm_sample_selected(csm_sample_row *); /* top-k, top-p and min-p, then the sums of the blocks */
csm_status csm_sample_selected_masses(csm_sample_row *); /* of the selected logits, in their order */
csm_status csm_sample_nucleus(csm_sample_row *); /* the number of masses in order that reach the limit: `kept`, `sum` */
int csm_sample_begins_with_passes(const csm_sample_row *, double all); /* top-p of a mass, without top-k */

/* sample_filter.c */
csm_status csm_sample_filter(csm_sample_row *); /* all filters in the order of the call */
csm_status csm_sample_apply_min_p(csm_sample_row *); /* to the set, of which nothing needs to be known */

/* sample_search.c */

/* Narrows the set to its smallest part that holds `limit` classes, or a mass of at least `limit`, in falling order
 * or, for CSM_SAMPLE_NEAR, in rising order of the distance from set.center; among equals in the order of the indices.
 * The row has been weighed; for CSM_SAMPLE_COUNT only NaN and +inf have been ruled out.  total: the mass of the set,
 * as far as it is known.  *kept: the mass of what is left, or -1 where its last bits are not known.  *margin: how far
 * from the limit, as a part of it, the mass is with and without the last class: the lesser of the two. */
typedef enum csm_sample_measure { CSM_SAMPLE_COUNT, CSM_SAMPLE_MASS_OF, CSM_SAMPLE_NEAR } csm_sample_measure;
csm_status csm_sample_narrow(csm_sample_row *, csm_sample_measure, double limit, double total, double *kept,
                             double *margin);
csm_status csm_sample_total(csm_sample_row *, double *total); /* the mass of the set */
/* Leaves the classes up to an end in falling order: logits above x, and those equal to it up to the index `last`. */
void csm_sample_keep_to(csm_sample_row *, double x, int64_t last);

/* sample_near.c */
void csm_sample_clear_set(csm_sample_set *);
double csm_sample_next(const csm_sample_row *, double); /* the next larger number of the compute type */
double csm_sample_least(const csm_sample_row *, double); /* the smallest one that is at least x */
/* The interval of the numbers nearer to the centre of the row's set than a distance or, if `equal`, up to it. */
void csm_sample_around(const csm_sample_row *, double distance, int equal, double *interval);
/* Picks every so manieth logit of a row of at least CSM_SAMPLE_PICKED and nearly sorts what is picked. */
csm_status csm_sample_pick(csm_sample_row *);
/* Nearly sorts up to CSM_SAMPLE_PICKED numbers, the largest first, without -inf; returns their number.
 * room: for twice as many. */
size_t csm_sample_sort(const double *values, size_t count, uint64_t *room, double *sorted);
void csm_sample_unpack(const csm_sample_row *, const char *x, size_t k, double *to); /* numbers of the compute type */

/* sample_draw.c */
csm_status csm_sample_draw(csm_sample_row *); /* given the sums of the blocks in `hi` */
/* The first block whose running sum, in `lo`, is greater than the target, else the last with a mass. */
size_t csm_sample_find_block(const csm_block *, size_t count, double target);
/* Sets the running sums of the blocks. */
void csm_sample_add_blocks(csm_sample_row *);
/* The element of a block at which the sum of its masses passes the target. */
size_t csm_sample_find(const csm_sample_row *, const char *mass, size_t k, double target);

/* The draws of a row whose classes in this shard follow `first` blocks of others. */
csm_status csm_sample_draw_shard(csm_sample_row *, size_t first);

/* sample_shard.c */
csm_status csm_sample_shard_row(csm_sample_row *); /* the stage of the call */

/* sample_take.c */
csm_status csm_sample_take(csm_sample_row *); /* without replacement, with log-probabilities if they are wanted */
csm_status csm_sample_log_probs(csm_sample_row *); /* of draws that are done; raw ones, too */

#endif
