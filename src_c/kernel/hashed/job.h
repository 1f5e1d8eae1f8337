/* What the kernels of class hashing get. */
#ifndef CSM_HASHED_JOB_H
#define CSM_HASHED_JOB_H

#include "../../vec/standard.h"

enum {
    CSM_HASH_BLOCK = 1024, /* classes at a time: their sums and the table of one hash stay in L1 */
    CSM_HASH_ROWS = 8,     /* rows whose tables lie side by side */
    CSM_HASH_PART = 256    /* classes at a time for these */
};

/* R hashes of 64-bit ids: bucket = (h B) >> 32, h = ((first lo + second hi + add) mod 2^64) >> 32. */
typedef struct csm_hash {
    size_t hashes;
    uint64_t buckets; /* B, 1 to 2^32 */
    const uint64_t *first, *second, *add;
} csm_hash;

/* How the numbers of the buckets of a class make its score: their sum or least, over the divisor, plus a prior. */
typedef struct csm_hash_rule {
    size_t step;        /* floats between the tables of two hashes; 0: all have the same */
    int is_least;       /* the least instead of the sum */
    float divisor;
    const float *prior; /* of each class; NULL for 0 */
} csm_hash_rule;

typedef struct csm_hash_kernels {
    /* Buckets of up to CSM_HASH_BLOCK ids under hash r.  ids NULL: begin and the following ones, a multiple of
     * CSM_HASH_BLOCK. */
    void (*buckets)(const csm_hash *, size_t r, uint64_t begin, const uint64_t *ids, size_t n, uint32_t *to);
    /* Scores of the same classes for one row. */
    void (*scores)(const csm_hash *, const csm_hash_rule *, const float *tables, uint64_t begin, const uint64_t *ids,
                   size_t n, float *to);
    /* The same for CSM_HASH_ROWS rows: tables[bucket][row] for each hash, to[row] for the first `rows` of them. */
    void (*scores_of_rows)(const csm_hash *, const csm_hash_rule *, const float *tables, uint64_t begin,
                           const uint64_t *ids, size_t n, size_t rows, float *const *to);
} csm_hash_kernels;

#endif
