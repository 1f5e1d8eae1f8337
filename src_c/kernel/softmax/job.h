/* The arguments of the kernels of the softmax family, and the table of the kernels. */
#ifndef CSM_SOFTMAX_JOB_H
#define CSM_SOFTMAX_JOB_H

#include "../../math/block.h"
#include "../../math/temperature.h"

/* How much a call prefetches: nothing if it fits the cache; the sources of long rows; sources and results. */
typedef enum csm_prefetch { CSM_PREFETCH_NOTHING, CSM_PREFETCH_LONG, CSM_PREFETCH_ALL } csm_prefetch;

/* Rows that are contiguous along the softmax axis, of up to CSM_BLOCK elements (longer rows use pass1 and pass2). */
typedef struct csm_rows_job {
    const char *input; /* x; for a gradient dy */
    const char *y;     /* for a gradient: the result of the forward function */
    char *result;
    ptrdiff_t input_step, y_step, result_step; /* bytes between rows */
    size_t rows, n;
    const csm_temperature *temperature;
    int has_temperatures; /* temperature points to one for each row: only softmax in float, n <= CSM_SHORT_ROW */
    void *scratch; /* CSM_BLOCK elements of the compute type */
    csm_prefetch prefetch;
} csm_rows_job;
enum { CSM_SHORT_ROW = 16 }; /* rows of float up to this length are computed side by side */

/* A tile of neighbouring rows that lie side by side: strided along the softmax axis, contiguous across. */
typedef struct csm_tile_job {
    const char *input, *y; /* as in csm_rows_job */
    char *result;
    ptrdiff_t input_step, y_step, result_step; /* bytes between successive classes */
    size_t n, width;
    const csm_temperature *temperature;
    void *scratch; /* CSM_TILE_BYTES */
} csm_tile_job;
enum {
    CSM_TILE_BYTES = 520 * 1024, /* holds 16 rows of (CSM_BLOCK | 1) doubles */
    CSM_TILE_WIDTH = 512,        /* rows of the widest tile */
    CSM_VJP_WIDTH = 128          /* rows of the widest tile of a gradient; float64: half of it */
};

typedef struct csm_kernels {
    /* Computes rows in order and returns the number of rows done.  If that is less than job->rows, the maximum of the
     * next row is outside the ordinary range; that row has been neither changed nor written. */
    size_t (*rows)(const csm_rows_job *job);
    /* Computes a tile, n <= CSM_BLOCK.  Returns 0, with nothing written, if a row is not ordinary.  May be NULL. */
    int (*tile)(const csm_tile_job *job);
    /* Sums one block, k <= CSM_BLOCK.  e: where softmax stores e', or NULL; the other kernels do not use it. */
    void (*pass1)(const void *input, const void *y, void *e, size_t k, const csm_temperature *t, csm_block *block);
    void (*combine)(const csm_block *blocks, size_t count, const csm_temperature *t, csm_row *row);
    /* Writes the result of one block.  input NULL (softmax only): the result holds e' from pass1. */
    void (*pass2)(const void *input, const void *y, void *result, size_t k, const csm_temperature *t,
                  const csm_row *row, const csm_block *block);
} csm_kernels;

#endif
