/* What the drivers of trees share: one call's types, threads and interrupts, and sums along paths. */
#ifndef CSM_OPS_TREE_H
#define CSM_OPS_TREE_H

#include "../core/call.h"
#include "../core/extension.h"
#include "../core/reduction.h"

typedef struct csm_tree_job {
    const csm_tree_call *call;
    const csm_tree *tree;
    csm_dtype dtype;
    const csm_table *table;
    void (*dots)(const void *x, const char *rows, ptrdiff_t step, const int64_t *ids, size_t m, size_t d, void *out);
    size_t size;         /* of a number */
    ptrdiff_t row_bytes; /* of x and of theta */
    const csm_tree_loss *loss;
    const csm_tree_rows *rows;
    size_t k; /* of a search */
    double *values;
    int64_t *indices, *evaluated;
    const int64_t *of_row; /* of a walk: the row of x */
    const double *uniforms;
    csm_scratch scratch;
    csm_interrupt interrupt;
} csm_tree_job;

void csm_tree_job_begin(csm_tree_job *, csm_dtype, const csm_table *, const csm_tree_call *);
/* Distributes units of about `elements` elements over threads. */
csm_status csm_tree_job_run(csm_tree_job *, size_t units, double elements, csm_body);
csm_status csm_tree_job_end(csm_tree_job *, csm_status);

/* Logits of n nodes from their products with x, which are of the dtype. */
void csm_tree_logits(const csm_tree_job *, const int64_t *ids, size_t n, const void *u, double *z);

/* Adds a term to a pair; nothing is lost while the sum is finite. */
static inline void csm_tree_add(double *sum, double *low, double term) {
    const double s = *sum + term, v = s - *sum, lost = (*sum - (s - v)) + (term - v);
    *sum = s;
    if (lost == lost) *low += lost; /* of infinities it is NaN */
}

#endif
