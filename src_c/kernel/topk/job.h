/* The scratch of a selection of the k best. */
#ifndef CSM_TOPK_JOB_H
#define CSM_TOPK_JOB_H

#include "../../vec/standard.h"
#include "../poll.h"

/* Counts of the digits of a radix sort: 16 KB, too large for the stack. */
typedef size_t csm_digit_counts[8][256];

/* Scratch of the selection of the k largest or smallest of a row: candidates and their indices, twice, and block maxima
 * (or, if dense, the row) in the compute type.  Every CSM_SELECT_GROUP elements from the start of the row have one
 * block maximum, +inf if they contain NaN; the maxima are still there after the selection. */
typedef struct csm_select {
    void *key, *spare_key;
    int64_t *index, *spare_index;
    void *level;
    csm_digit_counts *counts; /* if there may be more than CSM_SELECT_RANKED candidates */
    size_t capacity, count, maxima; /* numbers of candidates, and of block maxima (0 if dense) */
    csm_poll poll;
    int is_stopped; /* the call has been interrupted: nothing above is valid */
} csm_select;
enum {
    CSM_SELECT_GROUP = 8,
    CSM_SELECT_SLACK = 64,  /* elements: whole vectors */
    CSM_SELECT_RANKED = 128 /* candidates that are sorted without counts */
};
/* Whether maxima of blocks of CSM_SELECT_GROUP are too few for finding a threshold for k of n. */
static inline int csm_is_dense_selection(size_t n, size_t k) { return n < 128 || k > n / (3 * CSM_SELECT_GROUP); }

#endif
