/* What the drivers of int8 output layers share. */
#ifndef CSM_OPS_INT8_H
#define CSM_OPS_INT8_H

#include "../core/call.h"
#include "../core/extension.h"

enum {
    CSM_INT8_LIMBS = 3,     /* most limbs of a query */
    CSM_INT8_SCAN_LIMBS = 2 /* most of them in a scan */
};

/* rint() of a number below 2^51 without a call of libm, as the compiler needs without SSE 4.1. */
static inline double csm_int8_nearest(double x) { return (x + 0x1.8p52) - 0x1.8p52; }

/* A query in codes: x' = unit (a + a2 / 126 + a3 / 126^2) + error. */
typedef struct csm_int8_codes {
    double unit;
    double size, error; /* bounds of the norms of the coded part, and of the error with that of an exact score */
    double whole;       /* bound of the norm of x' */
    int limbs;
    int is_exact; /* the query cannot be coded in single precision, or holds NaN or infinity: compute all scores */
} csm_int8_codes;

/* Codes of one query: up to `limbs` limbs (0: as many as are worth while) at lane `vector` and the following ones of
 * blocks of CSM_INT8_VECTORS vectors, and -128 times their sums.  scaled: dims doubles of scratch. */
csm_int8_codes csm_int8_code(const csm_int8_layer *, const double *x, int limbs, size_t vector, int8_t *codes,
                             int32_t *offset, double *scaled);

/* A row of weights as doubles: in place, or in `to`, which has room for csm_int8_row_size() bytes. */
const double *csm_int8_row(const csm_table *, const csm_int8_layer *, size_t row, char *to);
static inline size_t csm_int8_row_size(const csm_int8_layer *l) { return 3 * csm_rounded(l->dims * sizeof(double)); }

/* The exact score of a class; row: csm_int8_row() of it. */
static inline double csm_int8_score(const csm_table *t, const csm_int8_layer *l, size_t id, const double *row,
                                    const double *x) {
    const double sum = t->int8.exact(row, x, l->dims) + (l->exact_bias ? l->exact_bias[id] : (double)l->bias[id]);
    return sum == sum ? sum : CSM_NAN;
}

/* The row of w, which is the class, of a code. */
static inline size_t csm_int8_row_of(const csm_int8_layer *l, size_t code) {
    return l->order ? (size_t)l->order[code] : code;
}

/* A class and its exact score, and the order of the best: NaN first, the score falling, then the class rising. */
typedef struct csm_int8_scored {
    double score;
    int64_t id;
} csm_int8_scored;
int csm_int8_compare(const void *left, const void *right);

/* Whether a class takes part for a query. */
int csm_int8_takes_part(const csm_int8_search *, size_t query, size_t id);

/* The scan's bias of classes that are switched off, in place of -infinity, which would make their upper bounds NaN: any
 * number is an upper bound of -infinity, and their lower bound is taken as -infinity.  Twice its size is still finite,
 * as the sum of |z| and |bias| in the bound must be. */
#define CSM_INT8_OFF_BIAS (-0x1p126F)

/* Scores and bounds of the classes of a group in double, from the products of three limbs of a query. */
void csm_int8_set_bounds(const csm_int8_layer *, const csm_int8_codes *, size_t group, const int32_t *dots,
                         const int32_t *second, double *scores, double *bounds);

static inline size_t csm_int8_steps(const csm_int8_layer *l) { return (l->dims + 3) / 4; }
static inline size_t csm_int8_groups(const csm_int8_layer *l) {
    return (l->classes + CSM_INT8_GROUP - 1) / CSM_INT8_GROUP;
}
/* The kernel of dot products for this table and CPU. */
void csm_int8_dots(const csm_table *, const uint8_t *codes, size_t steps, const int8_t *x, size_t vectors,
                   const int32_t *offset, int32_t *out);

/* Pairs of steps: lines of 64 bytes of the leading four bits. */
static inline size_t csm_int8_lines(const csm_int8_layer *l) { return (l->dims + 7) / 8; }

/* Coarse codes of a query that csm_int8_code() has coded and scaled, as number `vector`, and its filter but for the
 * threshold, for the leading 6 or 4 bits of the codes of weights.  codes: zeros before, blocks as those of
 * csm_int8_code(), of an even number of steps for 4 bits.
 * Returns 0 where products are so large that the filter must not be used. */
int csm_int8_filter_of(const csm_int8_layer *, const csm_int8_codes *, const double *scaled, int bits, size_t vector,
                       int8_t *codes, int32_t *offset, csm_int8_filter *);
/* Whether csm_int8_dots() multiplies by VNNI. */
int csm_int8_has_vnni(const csm_table *);

/* The smallest float that is not below a double. */
static inline float csm_int8_up(double x) {
    const float f = (float)x;
    return (double)f < x ? nextafterf(f, INFINITY) : f;
}

#endif
