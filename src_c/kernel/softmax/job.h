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
    const int64_t *indptr; /* only softmax: NULL, or the rows are one behind the other, and row r has more than
                            * CSM_SHORT_ROW elements, indptr[r] - indptr[0] to indptr[r + 1] - indptr[0] - 1 */
} csm_rows_job;
enum { CSM_SHORT_ROW = 16 }; /* rows of float up to this length are computed side by side */

/* Up to 16 rows of up to 16 elements, each with its place and length. */
typedef struct csm_short_rows {
    const char *x[16];
    size_t n[16];
} csm_short_rows;

/* Rows of different lengths one behind the other: row s has the elements indptr[s] - indptr[0] to
 * indptr[s + 1] - indptr[0] - 1 of `input`, and of a result that has the axis. */
typedef struct csm_ragged_job {
    const char *input;
    char *result;
    ptrdiff_t result_step; /* bytes between results without the axis */
    const int64_t *indptr;
    size_t count;
    const csm_temperature *temperature;
    void *scratch; /* CSM_BLOCK elements of the compute type */
} csm_ragged_job;
enum { CSM_RAGGED_ROWS = 256 }; /* most rows of such a job */

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
    CSM_TILE_BYTES = 520 * 1024, /* holds 16 rows of (CSM_BLOCK | 1) doubles and two numbers for each of the rows */
    CSM_TILE_WIDTH = 512,        /* rows of the widest tile */
    CSM_VJP_WIDTH = 128          /* rows of the widest tile of a gradient; float64: half of it */
};

/* Tiles of different lengths one behind the other: tile s has the classes indptr[s] - indptr[0] to
 * indptr[s + 1] - indptr[0] - 1 of `input`, and of a result that has the axis. */
typedef struct csm_ragged_tiles_job {
    const char *input;
    char *result;
    ptrdiff_t input_step, result_step; /* bytes between successive classes, or results without the axis */
    const int64_t *indptr;
    size_t count, width; /* at most CSM_RAGGED_ROWS, CSM_TILE_WIDTH */
    const csm_temperature *temperature;
} csm_ragged_tiles_job;
enum { CSM_SHORT_TILE = 32 };

/* Kernels that not every operation has; where there is none, the table casts a constant of 0. */
typedef int (*csm_tile_kernel)(const csm_tile_job *job);
typedef size_t (*csm_ragged_kernel)(const csm_ragged_job *job, uint32_t *left);
typedef size_t (*csm_ragged_tiles_kernel)(const csm_ragged_tiles_job *job, uint32_t *left);
typedef struct csm_kernels {
    /* Computes rows in order and returns the number of rows done.  If that is less than job->rows, the maximum of the
     * next row is outside the ordinary range; that row has been neither changed nor written. */
    size_t (*rows)(const csm_rows_job *job);
    /* Computes a tile, n <= CSM_BLOCK.  Returns 0, with nothing written, if a row is not ordinary.  May be NULL. */
    csm_tile_kernel tile;
    /* Sums one block, k <= CSM_BLOCK.  e: where softmax stores e', or NULL; the other kernels do not use it. */
    void (*pass1)(const void *input, const void *y, void *e, size_t k, const csm_temperature *t, csm_block *block);
    void (*combine)(const csm_block *blocks, size_t count, const csm_temperature *t, csm_row *row);
    /* Writes the result of one block.  input NULL (softmax only): the result holds e' from pass1. */
    void (*pass2)(const void *input, const void *y, void *result, size_t k, const csm_temperature *t,
                  const csm_row *row, const csm_block *block);
    /* Computes rows of different lengths, and returns the number of rows that it leaves to the caller, `left`: those
     * that `rows` leaves, of more than CSM_BLOCK elements or, if they have a result, of none.  NULL for gradients. */
    csm_ragged_kernel ragged;
    /* The same for rows side by side, of which it computes those of 1 to CSM_SHORT_TILE elements. */
    csm_ragged_tiles_kernel ragged_tiles;
} csm_kernels;

#endif
